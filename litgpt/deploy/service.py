"""What all routes share: the served models, the queue, and an answer's way to its client."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request

from litgpt.deploy.access import CHARACTERS_PER_TOKEN
from litgpt.deploy.backends.task import Backend, Delta, GenerationTask, ResponseStream
from litgpt.deploy.metrics import Metrics
from litgpt.deploy.protocol.errors import APIError, model_failed
from litgpt.deploy.request_log import RequestRecord
from litgpt.deploy.served_models import ServedModel
from litgpt.deploy.settings import Settings
from litgpt.engine.sampling import Logprob
from litgpt.errors import LitGPTError, check_token_ids, closest, quoted

log = logging.getLogger("uvicorn.error")

PREPARING = 4
"""Threads that render and encode at the same time; more would only take the interpreter from each other."""
T = TypeVar("T")


class Service:
    """What the routes serve, and how.

    Args:
        served_models: The models that requests may name; the base model first.
        backend: What runs them.
        settings: The command line.
    """

    def __init__(self, served_models: Mapping[str, ServedModel], backend: Backend, settings: Settings) -> None:
        self.served_models, self.backend, self.settings = served_models, backend, settings
        self.limits = settings.limits
        self.metrics = Metrics()
        self.in_flight = 0
        """Answers that run or wait."""
        self.requests: set[InFlightRequest] = set()
        """The requests that these belong to."""
        self.draining = False
        """Finish what runs, and refuse what comes."""
        self._mean_seconds = 1.0
        self._threads: CapacityLimiter | None = None

    @property
    def base(self) -> ServedModel:
        """The model itself."""
        return next(iter(self.served_models.values()))

    @property
    def prompt_limit(self) -> int:
        """Tokens that a prompt may have."""
        return min(self.limits.prompt or self.backend.length, self.backend.length)

    @property
    def room(self) -> int:
        """Answers that may run or wait at the same time."""
        return self.backend.slots + self.limits.queue

    def served_model(self, name: str | None) -> ServedModel:
        """Returns the model of a name; of None, the base model.

        Raises:
            APIError: There is none.
        """
        found = self.base if name is None else self.served_models.get(name)
        if found is None:
            message = f"There is no model {quoted(name)} here.{closest(str(name), self.served_models)} See /v1/models."
            raise APIError(404, message, "model", "model_not_found")
        return found

    async def prepare(self, parse: Callable[..., T], *arguments: Any) -> T:
        """Calls a function that takes a while in another thread, and returns its result; a few at a time."""
        if self._threads is None:
            self._threads = CapacityLimiter(PREPARING)
        return await to_thread.run_sync(partial(parse, *arguments), limiter=self._threads)

    def check_length(self, characters: int, field: str) -> None:
        """Refuses a text of so many characters that is certainly too long, before anything is made of it.

        Raises:
            APIError: It is.
        """
        most = self.prompt_limit * CHARACTERS_PER_TOKEN
        if characters > most:
            raise self.too_long(f"more than {most} characters", field)

    def check_tokens(self, tokens: Sequence[int], field: str, served_model: ServedModel) -> None:
        """Refuses a prompt that is empty, too long, or not of the model's vocabulary.

        Raises:
            APIError: It is.
        """
        if len(tokens) > self.prompt_limit:
            raise self.too_long(f"{len(tokens)} tokens", field)
        if not tokens:
            raise APIError(400, "The prompt is empty; give at least one token.", field)
        try:
            check_token_ids(tokens, served_model.inference_model.model.transformer.wte.num_embeddings, "The prompt")
        except LitGPTError as error:
            raise APIError(400, str(error), field) from None

    def too_long(self, has: str, field: str) -> APIError:
        """The error for a prompt that is too long."""
        message = f"The prompt has {has} and the context only {self.prompt_limit}; shorten the prompt."
        return APIError(400, message, field, "context_length_exceeded")

    # -- the queue

    def admit(self, n: int) -> None:
        """Lets `n` answers join the queue.

        Raises:
            APIError: There is no room, or the server is about to end.
        """
        room = self.room
        if self.draining:
            raise APIError(503, "The server is shutting down; ask another one.", code="shutting_down", retry_after=5)
        if n > room:
            raise APIError(400, f"One request asks for {n} answers, and there is room for {room}; split it.")
        if self.in_flight + n > room:
            rounds = (self.in_flight + n - room) / self.backend.slots
            wait = min(max(math.ceil(rounds * self._mean_seconds), 1), 60)
            message = f"The server is busy: {self.in_flight} answers run or wait; try again in {wait} seconds."
            raise APIError(429, message, code="server_busy", retry_after=wait)
        self.in_flight += n

    def leave(self, n: int, seconds: float) -> None:
        """Takes `n` answers out that took so long."""
        self.in_flight -= n
        self._mean_seconds += 0.1 * (seconds - self._mean_seconds)

    async def embed(self, served_model: ServedModel, tokens: list[int]) -> list[float]:
        """Returns a text's embedding; waits in the queue with the answers.

        Raises:
            APIError: There is no room, or it takes too long.
        """
        async with self._in_queue():
            return await self.backend.embed(served_model.name, tokens, self.settings.pooling)

    async def score(self, served_model: ServedModel, tokens: list[int], top: int) -> list[Logprob]:
        """Returns a text's log-probabilities and the `top` best alternatives'; waits in the queue with the answers.

        Raises:
            APIError: There is no room, or it takes too long.
        """
        async with self._in_queue():
            return await self.backend.score(served_model.name, tokens, top)

    @asynccontextmanager
    async def _in_queue(self) -> AsyncIterator[None]:
        self.admit(1)
        started = perf_counter()
        try:
            async with asyncio.timeout(self.limits.seconds):
                yield
        except TimeoutError:
            raise APIError(504, f"It took more than {self.limits.seconds:g} seconds.", code="timeout") from None
        except (LitGPTError, APIError):
            raise
        except Exception as error:
            log.error("The model failed on a text.", exc_info=error)
            raise model_failed() from error
        finally:
            self.leave(1, perf_counter() - started)

    # -- the end

    def abort(self) -> None:
        """Ends what still runs, with an error for its clients."""
        for request in [*self.requests]:
            request.abort(APIError(503, "The server had to stop before this answer was done.", code="shutting_down"))


class InFlightRequest:
    """The answers to one HTTP request: they wait for a slot, come delta by delta, and end when their client goes.

    Use it in this order: `begin`, then iterate over `deltas`. Whatever happens, the answers leave the queue.
    """

    def __init__(self, service: Service, http: Request) -> None:
        self._service = service
        self._http = http
        self.record: RequestRecord = http.state.record
        self._stream: ResponseStream | None = None
        self._watching: asyncio.Task[None] | None = None
        self._failure: APIError | None = None
        self._n = 0
        seconds = service.limits.seconds
        self._deadline = None if seconds is None else self.record.came + seconds

    async def begin(self, tasks: Sequence[GenerationTask]) -> None:
        """Joins the queue and waits for a slot.

        Raises:
            APIError: There is no room, or no slot was free in time.
            LitGPTError: A task makes no sense.
        """
        service = self._service
        service.admit(len(tasks))
        self._n = len(tasks)
        self.record.model = tasks[0].model
        service.requests.add(self)
        try:
            self._watching = asyncio.create_task(self._cancel_when_gone())
            self._stream = await service.backend.open(tasks)
            wait = service.limits.wait
            end = None if wait is None else perf_counter() + wait
            while not self._stream.begun and self._failure is None:
                if not await self._changed(end):
                    self._raise_late(end is not None and perf_counter() >= end)
            if self._failure is not None:
                raise self._failure
        except BaseException:
            self.end()
            raise

    def _raise_late(self, in_queue: bool) -> None:
        limits = self._service.limits
        if in_queue:
            message = f"The server is busy: no turn within {limits.wait:g} seconds; try again later."
            raise APIError(504, message, code="queue_timeout", retry_after=1)
        raise APIError(504, f"The answer took more than {limits.seconds:g} seconds.", code="timeout")

    async def _changed(self, end: float | None) -> bool:
        """Waits for something to happen; False: a deadline passed."""
        assert self._stream is not None
        ends = [time for time in (end, self._deadline) if time is not None]
        try:
            await asyncio.wait_for(self._stream.change(), max(min(ends) - perf_counter(), 0) if ends else None)
        except TimeoutError:
            return False
        return True

    async def deltas(self) -> AsyncIterator[Delta]:
        """What comes out, until all answers are done.

        Raises:
            APIError: The model failed, or it takes too long.
        """
        async for delta in self.deltas_or_silence(None):
            if delta is not None:
                yield delta

    async def deltas_or_silence(self, quiet: float | None) -> AsyncIterator[Delta | None]:
        """What comes out, and None whenever nothing came for `quiet` seconds; None: say nothing of that.

        Raises:
            APIError: The model failed, or it takes too long.
        """
        assert self._stream is not None
        left = self._n
        try:
            while left:
                for delta in self._stream.take():
                    left -= self._note(delta)
                    if self._failure is not None:
                        continue
                    if delta.error is not None:
                        raise model_failed() if delta.fault == "server" else APIError(422, delta.error)
                    yield delta
                if self._failure is not None:
                    raise self._failure
                if left and not await self._changed(None if quiet is None else perf_counter() + quiet):
                    if self._deadline is not None and perf_counter() >= self._deadline:
                        self._raise_late(in_queue=False)
                    yield None
        except APIError as error:
            self.record.failure = error.label
            raise
        finally:
            self.end()

    def _note(self, delta: Delta) -> bool:
        """Counts a delta in the record; whether it was the last of its answer."""
        record = self.record
        if record.first is None and (delta.counts.generated or delta.text):
            record.first = perf_counter()
            record.waited = delta.counts.waited
        if delta.finish_reason is None:
            return False
        record.prompt_tokens += delta.counts.prompt
        record.shared_tokens += delta.counts.shared
        record.generated_tokens += delta.counts.generated
        record.finish_reasons.append(delta.finish_reason)
        return True

    def abort(self, error: APIError) -> None:
        """Ends the answers with an error."""
        self._failure = error
        if self._stream is not None:
            self._stream.cancel()

    def end(self) -> None:
        """Leaves the queue; the answers are cancelled where they aren't done."""
        if self._watching is not None:
            self._watching.cancel()
        if self._stream is not None:
            self._stream.cancel()
        if self._n:
            self._service.leave(self._n, perf_counter() - self.record.came)
            self._service.requests.discard(self)
            self._n = 0

    async def _cancel_when_gone(self) -> None:
        while (await self._http.receive())["type"] != "http.disconnect":
            pass
        self.abort(APIError(499, "The client went away."))

"""What all routes share: what can be asked for, who may join the queue, and an answer's way to its client."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import Request

from litgpt.deploy.backends.task import Backend, Delta, GenerationTask, ResponseStream
from litgpt.deploy.keys import Keys
from litgpt.deploy.limits import CHARACTERS_PER_TOKEN, Limits
from litgpt.deploy.metrics import Metrics
from litgpt.deploy.protocol.errors import APIError
from litgpt.deploy.request_log import RequestLog, RequestRecord
from litgpt.deploy.served_models import ServedModel
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError, closest

PREPARING = 4
"""Threads that render and encode at the same time; more would only take the interpreter from each other."""

GAUGE_NAMES = {"running": "answers_running", "waiting": "answers_waiting"}


@dataclass
class Service:
    """What the routes serve, and how."""

    served_models: Mapping[str, ServedModel]
    """What can be asked for, by name; the base model first."""
    backend: Backend
    sampling: Sampling = field(default_factory=Sampling)
    """Of requests that don't say otherwise."""
    max_new_tokens: int = 50
    """Of requests to `api_path` that don't say otherwise."""
    api_path: str = "/predict"
    stream: bool = False
    """Answer at `api_path` in lines as the text comes."""
    pooling: Literal["mean", "last"] = "mean"
    """What an embedding is made of."""
    limits: Limits = field(default_factory=Limits)
    keys: Keys = field(default_factory=Keys)
    origins: Sequence[str] = ()
    """Web pages of these origins may ask, from a browser; `*`: all."""
    log: RequestLog | None = None

    def __post_init__(self) -> None:
        self.metrics = Metrics()
        self.in_flight = 0
        """Answers that run or wait."""
        self.draining = False
        """Finish what runs, and refuse what comes."""
        self._mean_seconds = 1.0
        self._requests: set[InFlightRequest] = set()
        self._threads: CapacityLimiter | None = None

    @property
    def base(self) -> ServedModel:
        """The model itself."""
        return next(iter(self.served_models.values()))

    @property
    def prompt_limit(self) -> int:
        """Tokens that a prompt may have."""
        return min(self.limits.prompt or self.backend.length, self.backend.length)

    def served_model(self, name: str) -> ServedModel:
        """What a request's `model` names.

        Raises:
            Problem: Nothing.
        """
        found = self.served_models.get(name)
        if found is None:
            message = f"There is no model {name[:100]!r} here.{closest(name[:100], self.served_models)} See /v1/models."
            raise APIError(404, message, "model", "model_not_found")
        return found

    async def prepare(self, work: Any) -> Any:
        """Does something that takes a while in another thread; a few at a time."""
        if self._threads is None:
            self._threads = CapacityLimiter(PREPARING)
        return await to_thread.run_sync(work, limiter=self._threads)

    def check_length(self, characters: int, field: str) -> None:
        """Refuses a text of so many characters that is certainly too long, before anything is made of it.

        Raises:
            Problem: It is.
        """
        most = self.prompt_limit * CHARACTERS_PER_TOKEN
        if characters > most:
            raise self.too_long(f"more than {most} characters", field)

    def check_tokens(self, tokens: Sequence[int], field: str) -> None:
        """Refuses a prompt that is empty or too long.

        Raises:
            Problem: It is.
        """
        if len(tokens) > self.prompt_limit:
            raise self.too_long(f"{len(tokens)} tokens", field)
        if not tokens:
            raise APIError(400, "The prompt is empty; give at least one token.", field)

    def too_long(self, has: str, field: str) -> APIError:
        """What is told of a prompt that is too long."""
        message = f"The prompt has {has} and the context only {self.prompt_limit}; shorten the prompt."
        return APIError(400, message, field, "context_length_exceeded")

    # -- the queue

    def admit(self, n: int) -> None:
        """Lets `n` answers join the queue.

        Raises:
            Problem: There is no room, or the server is about to end.
        """
        if self.draining:
            raise APIError(503, "The server is shutting down; ask another one.", code="shutting_down", retry_after=5)
        room = self.backend.slots + self.limits.queue
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

    def gauges(self) -> dict[str, float]:
        """What is going on right now."""
        own = {GAUGE_NAMES.get(name, name): value for name, value in self.backend.gauges().items()}
        if "cache_tokens" in own:
            own["cache_use_ratio"] = own["cache_tokens"] / max(own["cache_capacity_tokens"], 1)
        return own

    async def compute(
        self, kind: Literal["embed", "score"], served_model: ServedModel, tokens: list[int], **options: Any
    ) -> Any:
        """`Backend.compute`, in line with the answers.

        Raises:
            Problem: There is no room, or it takes too long.
        """
        self.admit(1)
        started = perf_counter()
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await self.backend.compute(kind, served_model.name, tokens, **options)
        except TimeoutError:
            raise APIError(504, f"It took more than {self.limits.seconds:g} seconds.", code="timeout") from None
        except LitGPTError:
            raise
        except (RuntimeError, IndexError, ValueError) as error:
            raise failed(str(error)) from error
        finally:
            self.leave(1, perf_counter() - started)

    # -- the end

    def abort(self) -> None:
        """Ends what still runs, with an error that its clients are told."""
        for request in [*self._requests]:
            request.abort(APIError(503, "The server had to stop before this answer was done.", code="shutting_down"))

    def request(self, http: Request) -> InFlightRequest:
        """An answer-to-be of one HTTP request."""
        return InFlightRequest(self, http)


class InFlightRequest:
    """The answers to one HTTP request: they wait for a slot, come piece by piece, and end when their client goes.

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
        """Joins the queue and waits for a turn.

        Raises:
            Problem: There is no room, or the turn didn't come in time.
            LitGPTError: A work makes no sense.
        """
        service = self._service
        service.admit(len(tasks))
        self._n = len(tasks)
        self._open = len(tasks)
        self.record.model = tasks[0].model
        service._requests.add(self)
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

    def _raise_late(self, in_line: bool) -> None:
        limits = self._service.limits
        if in_line:
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
            Problem: The model failed, or it takes too long.
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
                        raise failed(delta.error) if delta.fault == "server" else APIError(422, delta.error)
                    yield delta
                if self._failure is not None:
                    raise self._failure
                if left and not await self._changed(None):
                    self._raise_late(in_line=False)
        except APIError as error:
            self.record.failure = error.word
            raise
        finally:
            self.end()

    def _note(self, delta: Delta) -> bool:
        """Notes what was told, for the record; whether it was the last of its answer."""
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
        """Ends the answers with a problem."""
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
            self._service._requests.discard(self)
            self._n = 0

    async def _cancel_when_gone(self) -> None:
        while (await self._http.receive())["type"] != "http.disconnect":
            pass
        self.abort(APIError(499, "The client went away."))


def failed(reason: str) -> APIError:
    """What is told when the model failed: the reason is for the server's log."""
    del reason
    return APIError(500, "The model failed on this request; the server's log says why.", code="model_failed")

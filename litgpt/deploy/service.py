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

from litgpt.deploy.backends.task import Answers, Backend, News, Work
from litgpt.deploy.keys import Keys
from litgpt.deploy.limits import CHARACTERS_PER_TOKEN, Limits
from litgpt.deploy.metrics import Metrics
from litgpt.deploy.protocol.errors import Problem
from litgpt.deploy.request_log import Record, RequestLog
from litgpt.deploy.served_models import Voice
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError, closest

PREPARING = 4
"""Threads that render and encode at the same time; more would only take the interpreter from each other."""

GAUGE_NAMES = {"running": "answers_running", "waiting": "answers_waiting"}


@dataclass
class Service:
    """What the routes serve, and how."""

    voices: Mapping[str, Voice]
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
        self._lives: set[Live] = set()
        self._threads: CapacityLimiter | None = None

    @property
    def base(self) -> Voice:
        """The model itself."""
        return next(iter(self.voices.values()))

    @property
    def prompt_limit(self) -> int:
        """Tokens that a prompt may have."""
        return min(self.limits.prompt or self.backend.length, self.backend.length)

    def voice(self, name: str) -> Voice:
        """What a request's `model` names.

        Raises:
            Problem: Nothing.
        """
        found = self.voices.get(name)
        if found is None:
            message = f"There is no model {name[:100]!r} here.{closest(name[:100], self.voices)} See /v1/models."
            raise Problem(404, message, "model", "model_not_found")
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
            raise Problem(400, "The prompt is empty; give at least one token.", field)

    def too_long(self, has: str, field: str) -> Problem:
        """What is told of a prompt that is too long."""
        message = f"The prompt has {has} and the context only {self.prompt_limit}; shorten the prompt."
        return Problem(400, message, field, "context_length_exceeded")

    # -- the queue

    def admit(self, n: int) -> None:
        """Lets `n` answers join the queue.

        Raises:
            Problem: There is no room, or the server is about to end.
        """
        if self.draining:
            raise Problem(503, "The server is shutting down; ask another one.", code="shutting_down", retry_after=5)
        room = self.backend.slots + self.limits.queue
        if n > room:
            raise Problem(400, f"One request asks for {n} answers, and there is room for {room}; split it.")
        if self.in_flight + n > room:
            rounds = (self.in_flight + n - room) / self.backend.slots
            wait = min(max(math.ceil(rounds * self._mean_seconds), 1), 60)
            message = f"The server is busy: {self.in_flight} answers run or wait; try again in {wait} seconds."
            raise Problem(429, message, code="server_busy", retry_after=wait)
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

    async def compute(self, kind: Literal["embed", "score"], voice: Voice, tokens: list[int], **options: Any) -> Any:
        """`Backend.compute`, in line with the answers.

        Raises:
            Problem: There is no room, or it takes too long.
        """
        self.admit(1)
        started = perf_counter()
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await self.backend.compute(kind, voice.name, tokens, **options)
        except TimeoutError:
            raise Problem(504, f"It took more than {self.limits.seconds:g} seconds.", code="timeout") from None
        except LitGPTError:
            raise
        except (RuntimeError, IndexError, ValueError) as error:
            raise failed(str(error)) from error
        finally:
            self.leave(1, perf_counter() - started)

    # -- the end

    def abort(self) -> None:
        """Ends what still runs, with an error that its clients are told."""
        for live in [*self._lives]:
            live.abort(Problem(503, "The server had to stop before this answer was done.", code="shutting_down"))

    def live(self, http: Request) -> Live:
        """An answer-to-be of one HTTP request."""
        return Live(self, http)


class Live:
    """The answers to one HTTP request: they wait for a slot, come piece by piece, and end when their client goes.

    Use it in this order: `begin`, then iterate over `news`. Whatever happens, the answers leave the queue.
    """

    def __init__(self, service: Service, http: Request) -> None:
        self._service = service
        self._http = http
        self.record: Record = http.state.record
        self._answers: Answers | None = None
        self._watching: asyncio.Task[None] | None = None
        self._failure: Problem | None = None
        self._n = 0
        seconds = service.limits.seconds
        self._deadline = None if seconds is None else self.record.came + seconds

    async def begin(self, works: Sequence[Work]) -> None:
        """Joins the queue and waits for a turn.

        Raises:
            Problem: There is no room, or the turn didn't come in time.
            LitGPTError: A work makes no sense.
        """
        service = self._service
        service.admit(len(works))
        self._n = len(works)
        self._open = len(works)
        self.record.model = works[0].model
        service._lives.add(self)
        try:
            self._watching = asyncio.create_task(self._cancel_when_gone())
            self._answers = await service.backend.open(works)
            wait = service.limits.wait
            end = None if wait is None else perf_counter() + wait
            while not self._answers.begun and self._failure is None:
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
            raise Problem(504, message, code="queue_timeout", retry_after=1)
        raise Problem(504, f"The answer took more than {limits.seconds:g} seconds.", code="timeout")

    async def _changed(self, end: float | None) -> bool:
        """Waits for something to happen; False: a deadline passed."""
        assert self._answers is not None
        ends = [time for time in (end, self._deadline) if time is not None]
        try:
            await asyncio.wait_for(self._answers.change(), max(min(ends) - perf_counter(), 0) if ends else None)
        except TimeoutError:
            return False
        return True

    async def news(self) -> AsyncIterator[News]:
        """What comes out, until all answers are done.

        Raises:
            Problem: The model failed, or it takes too long.
        """
        assert self._answers is not None
        left = self._n
        try:
            while left:
                for news in self._answers.take():
                    left -= self._note(news)
                    if self._failure is not None:
                        continue
                    if news.error is not None:
                        raise failed(news.error) if news.fault == "server" else Problem(422, news.error)
                    yield news
                if self._failure is not None:
                    raise self._failure
                if left and not await self._changed(None):
                    self._raise_late(in_line=False)
        except Problem as problem:
            self.record.failure = problem.word
            raise
        finally:
            self.end()

    def _note(self, news: News) -> bool:
        """Notes what was told, for the record; whether it was the last of its answer."""
        record = self.record
        if record.first is None and (news.counts.generated or news.text):
            record.first = perf_counter()
            record.waited = news.counts.waited
        if news.finish_reason is None:
            return False
        record.prompt_tokens += news.counts.prompt
        record.shared_tokens += news.counts.shared
        record.generated_tokens += news.counts.generated
        record.finish_reasons.append(news.finish_reason)
        return True

    def abort(self, problem: Problem) -> None:
        """Ends the answers with a problem."""
        self._failure = problem
        if self._answers is not None:
            self._answers.cancel()

    def end(self) -> None:
        """Leaves the queue; the answers are cancelled where they aren't done."""
        if self._watching is not None:
            self._watching.cancel()
        if self._answers is not None:
            self._answers.cancel()
        if self._n:
            self._service.leave(self._n, perf_counter() - self.record.came)
            self._service._lives.discard(self)
            self._n = 0

    async def _cancel_when_gone(self) -> None:
        while (await self._http.receive())["type"] != "http.disconnect":
            pass
        self.abort(Problem(499, "The client went away."))


def failed(reason: str) -> Problem:
    """What is told when the model failed: the reason is for the server's log."""
    del reason
    return Problem(500, "The model failed on this request; the server's log says why.", code="model_failed")

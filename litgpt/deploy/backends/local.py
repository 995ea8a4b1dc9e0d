"""The model in the server's own process: an engine in a thread, heard from in the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any, Literal

from litgpt.deploy.backends import embeddings as vectors
from litgpt.deploy.backends.task import Answers, Backend, Following, News, Work, follow
from litgpt.deploy.served_models import Voice
from litgpt.engine.sampling import Sampling

log = logging.getLogger("uvicorn.error")

STUCK_SECONDS = 120.0
"""A step that takes longer counts as trouble."""
PROBE_SECONDS = 20.0
"""What the model gets to answer a probe in."""


class LocalAnswers(Answers):
    """Answers of an engine that a thread of this process drives."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._following: list[Following] = []
        self._cancelled = False

    def submit(self, voices: Mapping[str, Voice], works: Sequence[Work]) -> None:
        """Puts works in line; in any thread.

        Raises:
            LitGPTError: One of them makes no sense; then none is left in line.
        """
        try:
            for choice, work in enumerate(works):
                self._following.append(follow(voices[work.model], choice, work, self._notify))
        except BaseException:
            self.cancel()
            raise
        if self._cancelled:  # while they were prepared
            self.cancel()

    def _notify(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server is going down
            self._loop.call_soon_threadsafe(self._news.set)

    async def change(self) -> None:
        await self._news.wait()
        self._news.clear()

    def take(self) -> list[News]:
        found = [news for following in self._following if (news := following.news())]
        for following in self._following:
            error = following.request.error
            if error is not None and any(news.error and news.fault == "server" for news in found):
                log.error("A step of the engine failed.", exc_info=error)
                break
        return found

    @property
    def begun(self) -> bool:
        requests = [following.request for following in self._following]
        return any(request.timing.admitted is not None or request.done for request in requests)

    def cancel(self) -> None:
        self._cancelled = True
        for following in self._following:
            following.request.cancel()


class LocalBackend(Backend):
    """Runs the engine in a thread.

    Args:
        voices: What can be asked for, by name; all on one engine.
    """

    def __init__(self, voices: Mapping[str, Voice]) -> None:
        self.voices = voices
        self.engine = next(iter(voices.values())).engine
        self.slots, self.length = self.engine.slots, self.engine.length
        self._probed = False
        self._probing: asyncio.Task[str | None] | None = None

    async def start(self) -> None:
        self.engine.start()
        self._probed = await self._probe() is None

    async def stop(self) -> None:
        await asyncio.to_thread(self.engine.stop)

    async def open(self, works: Sequence[Work]) -> Answers:
        answers = LocalAnswers()
        try:
            await asyncio.to_thread(answers.submit, self.voices, works)
        except asyncio.CancelledError:
            answers.cancel()
            raise
        return answers

    async def compute(self, kind: Literal["embed", "score"], model: str, tokens: list[int], **options: Any) -> Any:
        voice = self.voices[model]
        future = self.engine.run_between_steps(lambda: vectors.compute(kind, voice, tokens, **options))
        return await asyncio.wrap_future(future)

    def gauges(self) -> dict[str, float]:
        engine = self.engine
        return {
            "running": engine.n_running,
            "waiting": engine.n_waiting,
            "slots": engine.slots,
            "cache_tokens": engine.n_cached,
            "cache_capacity_tokens": engine.slots * engine.length,
        }

    async def trouble(self) -> str | None:
        engine = self.engine
        if not engine.alive:
            return "the engine has ended"
        if engine.error is not None or not self._probed:
            if self._probing is None or self._probing.done():  # one probe for all who ask at the same time
                self._probing = asyncio.create_task(self._probe())
            trouble = await asyncio.shield(self._probing)
            self._probed = self._probed or trouble is None
            return trouble
        if engine.step_began is not None and perf_counter() - engine.step_began > STUCK_SECONDS:
            return "a step of the model doesn't end"
        return None

    async def _probe(self) -> str | None:
        """Why the model doesn't answer one token."""
        request = self.engine.submit([0], Sampling(temperature=0), max_new_tokens=1)
        try:
            await asyncio.wait_for(asyncio.to_thread(request.result), PROBE_SECONDS)
        except TimeoutError:
            request.cancel()
            return "the model doesn't answer"
        except Exception:
            return "the last step failed"
        return None

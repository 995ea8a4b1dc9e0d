"""The model in the server's own process: an engine in a thread, whose answers arrive in the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Any, Literal

from litgpt.deploy.backends.embeddings import embed, score
from litgpt.deploy.backends.task import Backend, Delta, GenerationTask, OutputStream, ResponseStream, submit
from litgpt.deploy.served_models import ServedModel
from litgpt.engine.sampling import Logprob, Sampling

log = logging.getLogger("uvicorn.error")

STUCK_SECONDS = 120.0
"""A step that takes longer counts as trouble."""
PROBE_SECONDS = 20.0
"""What the model gets to answer a probe in."""


class LocalResponseStream(ResponseStream):
    """Answers of an engine that a thread of this process drives."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._outputs: list[OutputStream] = []
        self._cancelled = False

    def submit(self, served_models: Mapping[str, ServedModel], tasks: Sequence[GenerationTask]) -> None:
        """Submits tasks; in any thread.

        Raises:
            LitGPTError: One of them makes no sense; then none is left in the queue.
        """
        try:
            for choice, task in enumerate(tasks):
                self._outputs.append(submit(served_models[task.model], choice, task, self._notify))
        except BaseException:
            self.cancel()
            raise
        if self._cancelled:  # while they were prepared
            self.cancel()

    def _notify(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server is going down
            self._loop.call_soon_threadsafe(self._changed.set)

    async def change(self) -> None:
        await self._changed.wait()
        self._changed.clear()

    def take(self) -> list[Delta]:
        found = [delta for output in self._outputs if (delta := output.delta())]
        if any(delta.error and delta.fault == "server" for delta in found):
            error = next(output.request.error for output in self._outputs if output.request.error is not None)
            log.error("A step of the engine failed.", exc_info=error)
        return found

    @property
    def begun(self) -> bool:
        requests = [output.request for output in self._outputs]
        return any(request.timing.admitted is not None or request.done for request in requests)

    def cancel(self) -> None:
        self._cancelled = True
        for output in self._outputs:
            output.request.cancel()


class LocalBackend(Backend):
    """Runs the engine in a thread.

    Args:
        served_models: The models that requests may name; all on one engine.
    """

    def __init__(self, served_models: Mapping[str, ServedModel]) -> None:
        self.served_models = served_models
        self.engine = next(iter(served_models.values())).engine
        self.slots, self.length = self.engine.slots, self.engine.length
        self._probed = False
        self._probing: asyncio.Task[str | None] | None = None

    async def start(self) -> None:
        self.engine.start()
        self._probed = await self._probe() is None

    async def stop(self) -> None:
        await asyncio.to_thread(self.engine.stop)

    async def open(self, tasks: Sequence[GenerationTask]) -> ResponseStream:
        stream = LocalResponseStream()
        try:
            await asyncio.to_thread(stream.submit, self.served_models, tasks)
        except asyncio.CancelledError:
            stream.cancel()
            raise
        return stream

    async def embed(self, model: str, tokens: list[int], pooling: Literal["mean", "last"]) -> list[float]:
        return await self._between_steps(partial(embed, self.served_models[model], tokens, pooling))

    async def score(self, model: str, tokens: list[int], top: int) -> list[Logprob]:
        return await self._between_steps(partial(score, self.served_models[model], tokens, top))

    async def _between_steps(self, work: Callable[[], Any]) -> Any:
        return await asyncio.wrap_future(self.engine.run_between_steps(work))

    def gauges(self) -> dict[str, float]:
        engine = self.engine
        capacity = engine.slots * engine.length
        return {
            "answers_running": engine.n_running,
            "answers_waiting": engine.n_waiting,
            "slots": engine.slots,
            "cache_tokens": (cached := engine.n_cached),
            "cache_capacity_tokens": capacity,
            "cache_use_ratio": cached / max(capacity, 1),
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
        except Exception as error:
            log.error("The model failed on a token that was asked to see whether it answers.", exc_info=error)
            return "the last step failed"
        return None

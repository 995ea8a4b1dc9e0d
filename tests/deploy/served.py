"""A small model behind the application, for the tests of the routes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from litgpt.deploy.access import Keys
from litgpt.deploy.backends.local import LocalBackend
from litgpt.deploy.backends.task import Counts, Delta, ResponseStream
from litgpt.deploy.served_models import ServedModel
from litgpt.deploy.service import Service
from litgpt.deploy.settings import Settings
from litgpt.deploy.uvicorn_server import Server, bind, configure
from litgpt.engine.inference_model import InferenceModel
from litgpt.engine.request import FinishReason
from litgpt.engine.sampling import Sampling

GREEDY = Sampling(temperature=0)


class Script(ResponseStream):
    """An answer that is known beforehand, a few characters at a time."""

    begun = True

    def __init__(self, text: str, size: int = 4, reason: FinishReason = "stop") -> None:
        self._pieces = [text[at : at + size] for at in range(0, len(text), size)]
        self._reason = reason

    async def change(self) -> None:
        return

    def take(self) -> list[Delta]:
        piece = self._pieces.pop(0) if self._pieces else ""
        return [Delta(0, piece, finish_reason=None if self._pieces else self._reason, counts=Counts(3, 0, 5))]

    def cancel(self) -> None:
        return


def make_service(inference_model: InferenceModel, slots: int = 4, keys: Sequence[str] = (), **settings: Any) -> Service:
    """A service that answers greedily under the name `tiny`, eight tokens at `/predict`; `settings` are `Settings`'."""
    served_models = {"tiny": ServedModel("tiny", inference_model, inference_model.engine(slots))}
    return service_of(served_models, keys=Keys(keys), **{"max_new_tokens": 8} | settings)


def service_of(served_models: Mapping[str, ServedModel], **settings: Any) -> Service:
    """A service that answers greedily."""
    return Service(
        served_models, LocalBackend(served_models), Settings(Path("tiny"), **{"sampling": GREEDY} | settings)
    )


def alone(inference_model: InferenceModel, prompt: str, n: int | None = 8, sampling: Sampling = GREEDY) -> str:
    """The answer to a prompt on an engine of its own."""
    return "".join(inference_model.reply(inference_model.engine(), inference_model.encode(prompt), sampling, n))


def asynchronous(app, work):
    """Runs `work(client)` against an application in an event loop."""

    async def run():
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")
        async with app.router.lifespan_context(app), client:
            return await work(client)

    return asyncio.run(run())


@contextmanager
def running(service: Service) -> Iterator[str]:
    """A server in a thread, on a free port of this machine; its address. Afterwards no answer may be left."""
    listener = bind("127.0.0.1", 0)
    server = Server(configure(service), service, listener)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
        assert not thread.is_alive()
        assert service.in_flight == 0 and not service.base.engine.busy

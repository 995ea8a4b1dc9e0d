"""`litgpt serve --server litserve`: the same routes, with the engines in LitServe's worker processes.

LitServe starts a process for each replica and one or more for HTTP. The application of `litgpt.deploy.app` stands as a
middleware before LitServe's own, so that keys, errors, ids and streams are those of the default server. LitServe's
queues carry the works to the replicas and the news back; they carry nothing else, so a task that has been sent runs to
its end: when its client goes away, its slot is not freed before.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import litserve as ls
from litserve.loops.continuous_batching_loop import ContinuousBatchingLoop, Output
from litserve.server import ResponseBufferItem
from litserve.utils import LitAPIStatus, WorkerSetupStatus
from starlette.types import ASGIApp, Receive, Scope, Send

from litgpt.checkpoint.finetuned import Finetuned
from litgpt.checkpoint.hub import auto_download
from litgpt.deploy.app import make_app
from litgpt.deploy.backends.embeddings import embed, score
from litgpt.deploy.backends.task import Backend, Delta, GenerationTask, OutputStream, ResponseStream, submit
from litgpt.deploy.connections import OPTIONS
from litgpt.deploy.served_models import ServedModel, base_of, find_adapter, load_served_models
from litgpt.deploy.service import Service
from litgpt.deploy.settings import Loading, Settings
from litgpt.engine.inference_model import InferenceModel, find_source, prompting_of
from litgpt.engine.sampling import Logprob, Sampling
from litgpt.errors import LitGPTError, one_line, quoted
from litgpt.model import GPT
from litgpt.runtime import pick_device
from litgpt.tokenizer import Tokenizer

log = logging.getLogger("uvicorn.error")

HOSTS = ("127.0.0.1", "0.0.0.0", "::")
PROBE_SECONDS = 20.0
LENGTH_WITHOUT_LIMIT = 8192
"""Tokens of a sequence on a device whose memory isn't known here, unless `--max_length` says otherwise."""


@dataclass(frozen=True)
class EngineCall:
    """A function of `litgpt.deploy.backends.embeddings`, called between two steps."""

    function: Callable[..., Any]
    model: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Outcome:
    """What a call returned."""

    value: Any


@dataclass(frozen=True)
class Failure:
    """Why a call failed, or a replica."""

    reason: str


# ------------------------------------------------------------------------------------------- in a worker process


class EngineAPI(ls.LitAPI):
    """An engine as LitServe's continuous batching loop drives it.

    Args:
        folder: The folder of the model.
        name: What requests call it.
        adapters: Those beside it, folder by name.
        loading: How it is loaded.
        at_once: Answers that may be given to one replica; those beyond its slots wait in its own queue.
    """

    def __init__(self, folder: str, name: str, adapters: Mapping[str, Path], loading: Loading, at_once: int) -> None:
        super().__init__(stream=True, loop=Loop())
        self.settings = (folder, name, adapters, loading)
        self.at_once = at_once

    def setup(self, device: str) -> None:
        """Loads the model onto a replica's device."""
        folder, name, adapters, loading = self.settings
        self.served_models = load_served_models(folder, name, adapters, loading, device)
        self.engine = self.served_models[name].engine
        self.running: dict[str, list[OutputStream]] = {}
        """The answers of each HTTP request; none for a call."""
        self.announced: set[str] = set()
        """Requests that have a slot, as has been sent."""
        self.early: deque[Output] = deque()
        """What can be sent before the next step."""

    def add_request(self, uid: str, work: Sequence[GenerationTask] | EngineCall) -> None:
        """Takes the tasks of one HTTP request; while the engine may be taking a step, in another thread."""
        try:
            if isinstance(work, EngineCall):
                served_model = self.served_models[work.model]
                future = self.engine.run_between_steps(partial(work.function, served_model, *work.arguments))
                self.running[uid] = []
                future.add_done_callback(lambda done: self._finish(uid, _outcome(done)))
            else:
                self.running[uid] = [submit(self.served_models[task.model], i, task) for i, task in enumerate(work)]
        except LitGPTError as error:
            self._finish(uid, error)
        except Exception as error:
            log.error("The engine took no request.", exc_info=error)
            self._finish(uid, Failure(one_line(error)))

    def _finish(self, uid: str, content: Any) -> None:
        """Has `content` sent as all there is to a request."""
        self.early.append(Output(uid, content, LitAPIStatus.OK))
        self.early.append(Output(uid, None, LitAPIStatus.FINISH_STREAMING))

    def has_capacity(self) -> bool:
        """Whether to take another HTTP request."""
        return len(self.running) < self.at_once

    def has_active_requests(self) -> bool:
        """Whether there is anything to do or to send."""
        return bool(self.running or self.early)

    def step(self, _: Any) -> list[Output]:
        """As many steps of the engine as it takes until something comes out, and what that is."""
        outputs: list[Output] = []
        while not outputs and self.has_active_requests():
            try:
                if self.engine.busy:
                    self.engine.step()
            except Exception as error:  # the requests tell their clients that there is one
                log.error("A step of the engine failed.", exc_info=error)
            outputs = self._outputs()
            if not self.engine.busy:
                break
        return outputs

    def _outputs(self) -> list[Output]:
        outputs: list[Output] = []
        for uid, streams in [*self.running.items()]:
            deltas = [delta for stream in streams if (delta := stream.delta())]
            admitted = any(stream.request.timing.admitted is not None for stream in streams)
            if deltas or (admitted and uid not in self.announced):
                self.announced.add(uid)
                outputs.append(Output(uid, deltas, LitAPIStatus.OK))
            if streams and all(stream.closed for stream in streams):
                outputs.append(Output(uid, None, LitAPIStatus.FINISH_STREAMING))
                del self.running[uid]
                self.announced.discard(uid)
        while self.early:
            output = self.early.popleft()
            outputs.append(output)
            if output.status == LitAPIStatus.FINISH_STREAMING:
                self.running.pop(output.uid, None)
        return outputs


def _outcome(done: Future[Any]) -> Outcome | Failure:
    error = done.exception()
    if error is None:
        return Outcome(done.result())
    log.error("The model failed on a text.", exc_info=error)
    return Failure(one_line(error))


class Loop(ContinuousBatchingLoop):
    """LitServe's continuous batching. What is in line is looked at once a millisecond and not for up to a second."""

    def get_request(self, request_queue: Any, timeout: float = 0.05, block: bool = True) -> Any:
        """The next request in line, if there is one soon."""
        return super().get_request(request_queue, timeout=min(timeout, 0.05), block=block)


# ----------------------------------------------------------------------------------------- in an HTTP process


class QueueBackend(Backend):
    """Engines behind LitServe's queues."""

    def __init__(self, slots: int, length: int, model: str) -> None:
        self.slots, self.length, self.model = slots, length, model
        self.server: ls.LitServer | None = None
        self.heard = -math.inf
        """When something last came from a replica."""
        self._path = ""
        self._in_flight = 0

    def connect(self, server: ls.LitServer, path: str) -> None:
        """Takes up the queues of a server for the API at `path`."""
        self.server, self._path = server, path

    def send(self, content: Any) -> QueueResponseStream:
        """Puts something in the queue that all replicas take from."""
        assert self.server is not None
        uid = str(uuid.uuid4())
        item = ResponseBufferItem(event=asyncio.Event(), response_queue=deque())
        self.server.response_buffer[uid] = item
        stream = QueueResponseStream(self, uid, item)
        queue = self.server.litapi_request_queues[self._path]
        self._in_flight += 1
        # The queue is another process': to put something there is to wait for that process.
        stream.sending = asyncio.create_task(
            asyncio.to_thread(queue.put, (self.server.app.response_queue_id, uid, time.monotonic(), content))
        )
        return stream

    def leave(self, uid: str) -> None:
        """Forgets what was sent, whatever still comes of it."""
        assert self.server is not None
        if self.server.response_buffer.pop(uid, None) is not None:
            self._in_flight -= 1

    async def start(self) -> None:
        return

    async def stop(self) -> None:
        return

    async def open(self, tasks: Sequence[GenerationTask]) -> ResponseStream:
        return self.send(list(tasks))

    async def embed(self, model: str, tokens: list[int], pooling: Literal["mean", "last"]) -> list[float]:
        return await self._call(EngineCall(embed, model, (tokens, pooling)))

    async def score(self, model: str, tokens: list[int], top: int) -> list[Logprob]:
        return await self._call(EngineCall(score, model, (tokens, top)))

    async def _call(self, call: EngineCall) -> Any:
        stream = self.send(call)
        try:
            while not (outcome := stream.outcome()):
                await stream.change()
        finally:
            stream.cancel()
        if isinstance(outcome, Failure):
            raise RuntimeError(outcome.reason)
        return outcome.value

    def gauges(self) -> dict[str, float]:
        running = min(self._in_flight, self.slots)
        return {"answers_running": running, "answers_waiting": self._in_flight - running, "slots": self.slots}

    async def trouble(self) -> str | None:
        assert self.server is not None
        if any(state != WorkerSetupStatus.READY for state in self.server.workers_setup_status.values()):
            return "a replica is not ready"
        if time.monotonic() - self.heard < PROBE_SECONDS:  # a question would only wait behind what is being answered
            return None
        stream = await self.open([GenerationTask(self.model, [0], Sampling(temperature=0), 1)])
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                while not (last := [delta for delta in stream.take() if delta.finish_reason]):
                    await stream.change()
        except TimeoutError:
            return "the model doesn't answer"
        finally:
            stream.cancel()
        return "the last step failed" if last[-1].error else None


class QueueResponseStream(ResponseStream):
    """Answers of a replica, as they come through LitServe's queues."""

    def __init__(self, backend: QueueBackend, uid: str, item: ResponseBufferItem) -> None:
        self._backend, self._uid, self._item = backend, uid, item
        self._begun = False
        self.sending: asyncio.Task[None] | None = None

    async def change(self) -> None:
        await self._item.event.wait()
        self._item.event.clear()
        self._begun = True

    def _received(self) -> list[Any]:
        found = []
        while self._item.response_queue:
            self._backend.heard = time.monotonic()
            content, status = self._item.response_queue.popleft()
            if status == LitAPIStatus.ERROR:
                log.error("A replica failed on a request: %s", quoted(content))
                found.append(Failure("the replica failed"))
            elif status != LitAPIStatus.FINISH_STREAMING:
                found.append(content)
        return found

    def take(self) -> list[Delta]:
        deltas: list[Delta] = []
        for content in self._received():
            if isinstance(content, LitGPTError):
                deltas.append(Delta(0, finish_reason="error", error=str(content), fault="request"))
            elif isinstance(content, Failure):
                deltas.append(Delta(0, finish_reason="error", error=content.reason))
            else:
                deltas += content
        return deltas

    def outcome(self) -> Outcome | Failure | None:
        """What a call returned; None: not known yet."""
        found = next(iter(self._received()), None)
        if isinstance(found, LitGPTError):
            raise found
        return found

    @property
    def begun(self) -> bool:
        return self._begun or bool(self._item.response_queue)

    def cancel(self) -> None:
        self._backend.leave(self._uid)
        self._item.event.set()  # nothing more comes, and a caller that waits for it has to know


class InFront:
    """The application, before LitServe's own; LitServe keeps its `/info`.

    Args:
        app: LitServe's.
        ours: Ours.
    """

    def __init__(self, app: ASGIApp, ours: ASGIApp) -> None:
        self.app, self.ours = app, ours

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        theirs = scope["type"] != "http" or scope["path"] == "/info"
        await (self.app if theirs else self.ours)(scope, receive, send)


# -------------------------------------------------------------------------------------------- the main process


def run_litserve(settings: Settings, host: str, port: int, devices: int, replicas: int) -> None:
    """Serves with LitServe until it is asked to end.

    Raises:
        LitGPTError: The address can't be LitServe's, the folder can't be used, or a process of it ended by itself.
    """
    if host not in HOSTS or not 1024 <= port <= 65535:
        raise LitGPTError(
            f"LitServe can't listen on {host} port {port}; it takes the hosts {', '.join(HOSTS)} and ports from 1024."
        )
    server = make_server(settings, devices, replicas)
    # LitServe ends in order on Ctrl-C only, and leaves its processes behind on SIGTERM.
    own, asked = os.getpid(), False

    def end(number: int, frame: Any) -> None:
        nonlocal asked
        if os.getpid() == own:
            asked = True
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    server.uvicorn_graceful_timeout = settings.shutdown_timeout
    # Its key would be asked for in a header that OpenAI's clients don't send; the application has checked its own.
    try:
        server.run(
            host=host,
            port=port,
            num_api_servers=1,
            generate_client_file=False,
            log_level="warning",
            **OPTIONS,
        )
    except RuntimeError as error:  # a replica didn't start; why, it has said itself
        raise LitGPTError(f"LitServe did not start: {error}. What stands above says why.") from None
    except (EOFError, ConnectionError):  # its processes are going already
        pass
    if not asked:
        raise LitGPTError("LitServe ended, because one of its processes did. What stands above says why.")


def make_server(settings: Settings, devices: int, replicas: int) -> ls.LitServer:
    """A LitServe server with the application before it, and `replicas` engines on each of so many devices.

    Raises:
        LitGPTError: There are no such devices, or the folder can't be used.
    """
    loading, kind = settings.loading, pick_device(settings.loading.accelerator).type
    if devices > 1 and kind != "cuda":
        raise LitGPTError(f"--devices {devices} is for several GPUs; on {kind} use --replicas {devices}.")
    if kind == "cuda":
        pick_device(f"cuda:{devices - 1}")
    folder = str(auto_download(settings.checkpoint_dir, loading.access_token))
    served_models = plain_served_models(folder, settings)
    slots = loading.slots * devices * replicas
    length = min(
        loading.length or LENGTH_WITHOUT_LIMIT, served_models[settings.model_name].inference_model.model.max_seq_length
    )
    backend = QueueBackend(slots, length, settings.model_name)
    worker = replace(loading, length=length, access_token=None)
    api = EngineAPI(folder, settings.model_name, settings.adapters, worker, loading.slots)
    server = ls.LitServer(
        api,
        accelerator=kind,
        devices=devices,
        workers_per_device=replicas,
        timeout=False,
        middlewares=[(InFront, {"ours": make_app(Service(served_models, backend, settings))})],
    )
    backend.connect(server, api.api_path)
    return server


def plain_served_models(folder: str, settings: Settings) -> dict[str, ServedModel]:
    """What can be asked for, without weights: what it takes to read requests, not to answer them."""
    source = find_source(folder)
    tokenizer_dir, style = prompting_of(source)
    model = GPT.skeleton(source.base.config if isinstance(source, Finetuned) else source.config)
    if isinstance(source, Finetuned):
        source.method.attach(model)  # a vocabulary that has grown, say
    inference_model = InferenceModel(model, Tokenizer(tokenizer_dir), style)
    inference_model.tokenizer.parse_special_tokens = settings.loading.parse_special_tokens
    served_models = {settings.model_name: ServedModel(settings.model_name, inference_model, None)}
    for name, place in settings.adapters.items():
        style = find_adapter(name, place, base_of(folder)).prompt_style()
        served_models[name] = ServedModel(name, replace(inference_model, style=style), None, name)
    return served_models

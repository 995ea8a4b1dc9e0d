"""The HTTP application: routes over one engine, which works on all requests together in a thread of its own."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict

from litgpt.errors import LitGPTError, closest
from litgpt.generate.engine import Engine
from litgpt.generate.sampling import Sampling
from litgpt.generate.speaker import Speaker
from litgpt.generate.text import Reply

log = logging.getLogger("uvicorn.error")


@dataclass
class Service:
    """What the routes serve, and how."""

    speaker: Speaker
    engine: Engine
    sampling: Sampling
    """Of requests that don't say otherwise."""
    max_new_tokens: int
    """Of requests that don't say otherwise."""
    api_path: str = "/predict"
    stream: bool = False
    """Answer in lines as the text comes."""
    timeout: float | None = None
    """The most seconds that a request waits for its turn; None: as long as it takes."""
    api_key: str | None = None
    """What requests must carry; None: nothing."""


class Prediction(BaseModel):
    """The body of a request: a prompt, and what is to differ from the server's settings."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None

    def sampling(self, base: Sampling) -> Sampling:
        """The server's settings with this request's in their place; a `top_k` of null chooses among all tokens.

        Raises:
            LitGPTError: A value is out of its range.
        """
        given = {name: getattr(self, name) for name in ("temperature", "top_p", "seed")}
        changes = {name: value for name, value in given.items() if value is not None}
        if "top_k" in self.model_fields_set:
            changes["top_k"] = self.top_k
        return replace(base, **changes)


class LiveReply:
    """An answer on its way from the engine's thread to the event loop; ended when its client goes away."""

    def __init__(self, service: Service, body: Prediction, http: Request) -> None:
        self._service = service
        self._body = body
        self._http = http
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

    async def start(self) -> None:
        """Puts the request in line and waits for its turn.

        Raises:
            LitGPTError: The prompt or a setting makes no sense.
            HTTPException: Its turn didn't come in time.
        """
        self.reply = await run_in_threadpool(self._submit)  # a long prompt takes its time to encode
        self._watching = asyncio.create_task(self._cancel_when_gone())
        try:
            async with asyncio.timeout(self._service.timeout):
                await self._news.wait()
        except TimeoutError:
            self._end()
            detail = f"The server is busy: no turn within {self._service.timeout:g} seconds; try again later."
            raise HTTPException(504, detail) from None
        except asyncio.CancelledError:  # the server goes down
            self._end()
            raise

    def _submit(self) -> Reply:
        speaker, body = self._service.speaker, self._body
        stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
        limit = self._service.max_new_tokens if body.max_new_tokens is None else body.max_new_tokens
        sampling = body.sampling(self._service.sampling)
        return speaker.reply(self._service.engine, speaker.encode(body.prompt), sampling, limit, stops, self._notify)

    def _notify(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server is going down
            self._loop.call_soon_threadsafe(self._news.set)

    async def pieces(self) -> AsyncIterator[str]:
        """The text as it comes.

        Raises:
            HTTPException: The engine failed.
        """
        request = self.reply.request
        try:
            while True:
                self._news.clear()
                done = request.done
                piece = self.reply.push(request.take())
                if done:
                    piece += self.reply.close()
                if piece:
                    yield piece
                if done or self.reply.finish_reason is not None:
                    break
                await self._news.wait()
            if request.error is not None:
                log.error("A step of the engine failed.", exc_info=request.error)
                raise HTTPException(500, "The model failed on this request; the server's log says why.")
        finally:
            self._end()

    def _end(self) -> None:
        self.reply.request.cancel()
        self._watching.cancel()

    async def _cancel_when_gone(self) -> None:
        while (await self._http.receive())["type"] != "http.disconnect":
            pass
        self.reply.request.cancel()


def make_app(service: Service) -> FastAPI:
    """The application over a service."""

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        yield
        await run_in_threadpool(service.engine.stop)

    async def check_key(http: Request) -> None:
        if service.api_key is not None and not _has_key(http, service.api_key):
            raise HTTPException(401, "The API key is missing or wrong; send it as `Authorization: Bearer KEY`.")

    app = FastAPI(title="litgpt", lifespan=running)
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.add_exception_handler(LitGPTError, _tell_mistake)

    @app.get("/health", response_class=PlainTextResponse)
    async def health() -> Response:
        """`ok` while the model answers."""
        if service.engine.error is not None:
            return PlainTextResponse("the last step failed", status_code=503)
        return PlainTextResponse("ok")

    @app.post(service.api_path, dependencies=[Depends(check_key)])
    async def predict(body: Prediction, http: Request) -> Any:
        """`{"prompt": text}` -> `{"output": text}`, or such lines as the text comes."""
        live = LiveReply(service, body, http)
        await live.start()
        if service.stream:
            return StreamingResponse(_lines(live.pieces()), media_type="application/x-ndjson")
        return {"output": "".join([piece async for piece in live.pieces()])}

    return app


async def _lines(pieces: AsyncIterator[str]) -> AsyncIterator[str]:
    """One JSON line a piece; a failure is the last line, because the status has long been sent."""
    try:
        async for piece in pieces:
            yield json.dumps({"output": piece}) + "\n"
    except HTTPException as error:
        yield json.dumps({"error": error.detail}) + "\n"


def _has_key(http: Request, key: str) -> bool:
    """Whether a request carries the key; takes the same time whatever it carries."""
    sent = http.headers.get("authorization", "").removeprefix("Bearer ") or http.headers.get("x-api-key", "")
    return hmac.compare_digest(sent.encode(), key.encode())


async def _tell_mistake(http: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=400)


async def _tell_invalid(http: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": _explain(error.errors()[0])}, status_code=422)


def _explain(problem: dict[str, Any]) -> str:
    """One sentence for what is wrong with a body; nothing of the body itself but a field's name."""
    place: Sequence[Any] = problem["loc"][1:]  # after "body"
    if problem["type"] == "json_invalid":
        return f"The body is not valid JSON: {problem['ctx']['error']}."
    if not place or problem["type"] in ("model_attributes_type", "dict_type"):
        return 'The body must be a JSON object like {"prompt": "..."}, sent as application/json.'
    name = str(place[0])
    if problem["type"] == "missing":
        return f"The field `{name}` is missing."
    if problem["type"] == "extra_forbidden":
        return f"There is no field `{name[:50]}`.{closest(name[:50], Prediction.model_fields)}"
    return f"The field `{name}` is of the wrong kind: {problem['msg'][0].lower()}{problem['msg'][1:]}."

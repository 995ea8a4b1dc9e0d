"""The HTTP application: all routes over one service, and one shape for everything that goes wrong."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from inspect import signature
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from litgpt import __version__
from litgpt.deploy.access import Gate
from litgpt.deploy.metrics import Metrics
from litgpt.deploy.protocol.errors import AnthropicErrorAnswer, APIError, ErrorAnswer, explain, is_anthropic
from litgpt.deploy.request_log import RequestLog, RequestRecord
from litgpt.deploy.routes import chat as chat_route
from litgpt.deploy.routes import completions as completions_route
from litgpt.deploy.routes import messages as messages_route
from litgpt.deploy.routes import others as other_routes
from litgpt.deploy.routes import page as page_route
from litgpt.deploy.routes import predict as predict_route
from litgpt.deploy.routes import responses as responses_route
from litgpt.deploy.service import Service
from litgpt.errors import LitGPTError

PRIVATE_NETWORK: dict[str, Any] = (
    {"allow_private_network": True} if "allow_private_network" in signature(CORSMiddleware).parameters else {}
)
"""Lets pages from the internet ask a server in the local network, where Starlette is new enough to know of that."""
GONE = 499
"""The status of a request whose client went away, as nginx has it."""
ROUTES = (page_route, predict_route, chat_route, completions_route, messages_route, responses_route, other_routes)
WORDS = {
    400: "The body can't be read as JSON.",
    404: "There is nothing at this path.",
    405: "This path takes another method.",
}


def make_app(service: Service) -> FastAPI:
    """The application over a service."""
    settings = service.settings

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        await service.backend.start()
        yield
        await service.backend.stop()
        if settings.log is not None:
            settings.log.close()

    # Its pages of documentation would load scripts from elsewhere; the description itself is at /openapi.json.
    app = FastAPI(title="litgpt", version=__version__, lifespan=running, docs_url=None, redoc_url=None)
    known: set[str] = set()
    for module in ROUTES:
        router = module.make_router(service)
        paths = {route.path for route in router.routes if isinstance(route, APIRoute)}
        known |= paths
        refusal = AnthropicErrorAnswer if any(map(is_anthropic, paths)) else ErrorAnswer
        app.include_router(router, responses={"4XX": {"model": refusal}, "5XX": {"model": refusal}})
    install_error_handlers(app, service)
    app.add_middleware(Gate, limits=settings.limits, keys=settings.keys, detail=settings.api_path, hosts=settings.hosts)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # clients send some of their own; what is allowed is the origin, and no cookie opens
            **PRIVATE_NETWORK,
            expose_headers=["retry-after", "x-request-id", "request-id"],
        )
    app.add_middleware(RequestRecorder, metrics=service.metrics, paths=frozenset(known), log=settings.log)
    return app


def install_error_handlers(app: FastAPI, service: Service) -> None:
    """Answers every way a request can fail in one shape."""

    def respond(http: Request, error: APIError) -> Response:
        http.state.record.failure = error.label
        return error.response(http.url.path, service.settings.api_path)

    @app.exception_handler(APIError)
    async def of_ours(http: Request, error: APIError) -> Response:
        return respond(http, error)

    @app.exception_handler(LitGPTError)
    async def mistake(http: Request, error: LitGPTError) -> Response:
        return respond(http, APIError(400, str(error)))

    @app.exception_handler(RecursionError)
    async def too_deep(http: Request, error: RecursionError) -> Response:
        return respond(http, APIError(400, "The body is nested too deeply; use fewer levels."))

    @app.exception_handler(RequestValidationError)
    async def invalid(http: Request, error: RequestValidationError) -> Response:
        route = http.scope.get("route")
        model = getattr(getattr(route, "body_field", None), "field_info", None)
        known = getattr(getattr(model, "annotation", None), "model_fields", {})
        fields = sorted(known, key=lambda name: not known[name].is_required())
        message, param = explain(error.errors(), fields or ["model"])
        return respond(http, APIError(422 if http.url.path == service.settings.api_path else 400, message, param))

    @app.exception_handler(HTTPException)
    async def of_the_framework(http: Request, error: HTTPException) -> Response:
        answer = respond(http, APIError(error.status_code, WORDS.get(error.status_code, str(error.detail))))
        answer.headers.update(error.headers or {})
        return answer


class RequestRecorder:
    """Records every request that passes, and its outcome.

    Args:
        app: What answers.
        metrics: Where it is counted.
        paths: Paths that are counted under their name; others together, for clients can invent any number.
        log: Where it is written; None: nowhere.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str], log: RequestLog | None) -> None:
        self.app, self.metrics, self.log = app, metrics, log
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        record = RequestRecord(path, (scope.get("client") or (None,))[0])
        scope.setdefault("state", {})["record"] = record
        complete = False

        async def record_and_send(message: Message) -> None:
            nonlocal complete
            if message["type"] == "http.response.start":
                record.status = message["status"]
                names = (b"x-request-id", b"request-id")  # OpenAI's clients read the one, Anthropic's the other
                message["headers"] = [*message.get("headers", []), *((name, record.id.encode()) for name in names)]
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self.app(scope, receive, record_and_send)
        finally:
            if not complete or "cancelled" in record.finish_reasons:
                record.status = GONE if record.failure is None else record.status or 500
            self.metrics.count(record)
            if self.log is not None and record.path not in ("/health", "/metrics"):
                self.log.write(record)

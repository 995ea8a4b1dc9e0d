"""How requests end: each is recorded, and everything that goes wrong has one shape."""

from __future__ import annotations

from collections.abc import Collection

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from litgpt.deploy.metrics import Metrics
from litgpt.deploy.protocol.errors import APIError, explain
from litgpt.deploy.request_log import RequestLog, RequestRecord
from litgpt.errors import LitGPTError

GONE = 499
"""The status of a request whose client went away, as nginx has it."""
WORDS = {
    400: "The body can't be read as JSON.",
    404: "There is nothing at this path.",
    405: "This path takes another method.",
}


def install_error_handlers(app: FastAPI, detail: str) -> None:
    """Answers every way a request can fail in one shape; at the path `detail` in that of `/predict`."""

    def respond(http: Request, error: APIError) -> Response:
        http.state.record.failure = error.label
        return error.response(http.url.path, detail)

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
        return respond(http, APIError(422 if http.url.path == detail else 400, message, param))

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

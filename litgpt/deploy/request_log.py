"""What is noted of each request, for the metrics and the log: times and counts, never a text and never a key."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from litgpt.deploy.metrics import Metrics
from litgpt.deploy.protocol.errors import dumps
from litgpt.errors import LitGPTError

GONE = 499
"""The status of a request whose client went away, as nginx has it."""


@dataclass
class RequestRecord:
    """One request."""

    path: str
    client: str | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    came: float = field(default_factory=perf_counter)
    status: int = 0
    model: str | None = None
    stream: bool = False
    prompt_tokens: int = 0
    shared_tokens: int = 0
    generated_tokens: int = 0
    finish_reasons: list[str] = field(default_factory=list)
    waited: float | None = None
    """Seconds."""
    first: float | None = None
    """When its first token came."""
    failure: str | None = None
    """What went wrong, in a word."""

    def line(self) -> bytes:
        """It as a line of JSON."""
        now = perf_counter()
        first = None if self.first is None else round(self.first - self.came, 4)
        entry = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": self.id,
            "client": self.client,
            "path": self.path,
            "status": self.status,
            "model": self.model,
            "stream": self.stream,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.shared_tokens,
            "completion_tokens": self.generated_tokens,
            "finish_reasons": self.finish_reasons,
            "queue_seconds": None if self.waited is None else round(self.waited, 4),
            "first_token_seconds": first,
            "seconds": round(now - self.came, 4),
            "failure": self.failure,
        }
        return dumps(entry)


class RequestLog:
    """Where lines of JSON go: a file, or the standard output as `-`.

    Raises:
        LitGPTError: The file can't be written.
    """

    def __init__(self, path: str) -> None:
        try:
            self._file: TextIO = sys.stdout if path == "-" else Path(path).open("a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise LitGPTError(f"--request_log {path} can't be written ({error.strerror}).") from None

    def write(self, record: RequestRecord) -> None:
        """Adds a line; a full disk must not end the server."""
        try:
            self._file.write(record.line().decode() + "\n")
            self._file.flush()
        except OSError:
            pass

    def close(self) -> None:
        """Closes a file of its own."""
        if self._file is not sys.stdout:
            self._file.close()


class RequestRecorder:
    """Notes every request that passes, and what became of it.

    Args:
        app: What answers.
        metrics: Where it is counted.
        paths: Paths that are counted under their name; others together, for anyone can think of many.
        log: Where it is written; None: nowhere.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Collection[str], log: RequestLog | None) -> None:
        self.app, self.metrics, self.log = app, metrics, log
        self._paths = paths
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._paths else "other"
        record = RequestRecord(path, (scope.get("client") or (None,))[0])
        scope.setdefault("state", {})["record"] = record
        complete = False

        async def noting(message: Message) -> None:
            nonlocal complete
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", record.id.encode())]
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        self.in_flight += 1
        try:
            await self.app(scope, receive, noting)
        finally:
            self.in_flight -= 1
            if not complete or "cancelled" in record.finish_reasons:
                record.status = GONE if record.failure is None else record.status or 500
            self._note(record)

    def _note(self, record: RequestRecord) -> None:
        metrics = self.metrics
        metrics.requests[record.path, record.status] += 1
        if record.prompt_tokens:
            now = perf_counter()
            metrics.tokens.update(
                prompt=record.prompt_tokens, shared=record.shared_tokens, generated=record.generated_tokens
            )
            metrics.answers.update(record.finish_reasons)
            metrics.request_seconds.observe(now - record.came)
            if record.waited is not None:
                metrics.queue_seconds.observe(record.waited)
            if record.first is not None:
                metrics.first_token_seconds.observe(record.first - record.came)
                if record.generated_tokens > 1:
                    # Of several answers to one request, each had its own share of the time.
                    steps = record.generated_tokens / max(len(record.finish_reasons), 1) - 1
                    if steps > 0:
                        metrics.token_seconds.observe((now - record.first) / steps)
        if self.log is not None and record.path not in ("/health", "/metrics"):
            self.log.write(record)

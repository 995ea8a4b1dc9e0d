"""What one request may ask for, and the gate that refuses it before anything is read or computed."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, fields

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from litgpt.deploy.keys import Keys
from litgpt.deploy.protocol.errors import APIError
from litgpt.errors import LitGPTError

CHARACTERS_PER_TOKEN = 64
"""A text with more characters than this for each token of the limit is refused before it is encoded."""
PUBLIC = frozenset({"/", "/health", "/openapi.json", "/favicon.ico"})
"""Paths that need no key."""


@dataclass(frozen=True)
class Limits:
    """The most that a request may ask for.

    Raises:
        LitGPTError: A limit is less than one.
    """

    queue: int = 64
    """Answers that wait while all slots are taken; what comes then is told to come again."""
    body: int = 8_000_000
    """Bytes of a request."""
    prompt: int | None = None
    """Tokens of a prompt; None: the model's context."""
    choices: int = 16
    """Answers to one prompt (`n`)."""
    stops: int = 16
    """Stop strings."""
    wait: float | None = None
    """Seconds that a request waits for its turn; None: as long as it takes."""
    seconds: float | None = None
    """Seconds that a request takes altogether; None: as long as it takes."""
    upload: float = 60.0
    """Seconds between two pieces of a body."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("queue", "wait", "seconds", "upload") else 1
            if value is not None and (value < least or value != value or value == math.inf):
                raise LitGPTError(f"The limit on {field.name} is {value}; it must be {least} or more.")


class Gate:
    """Checks the key and the size of every request before the application reads it.

    Args:
        app: What is behind the gate.
        limits: What a request may ask for.
        keys: What it must carry, unless its path is public.
        detail: The path whose errors are told as `/predict` tells them.
    """

    def __init__(self, app: ASGIApp, limits: Limits, keys: Keys, detail: str) -> None:
        self.app, self.limits, self.keys, self.detail = app, limits, keys, detail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        error = self._refusal(scope)
        if error is None:
            await self.app(scope, _Measured(receive, self.limits), send)
        else:
            await error.response(scope["path"] == self.detail)(scope, receive, send)

    def _refusal(self, scope: Scope) -> APIError | None:
        headers = dict(scope["headers"])
        if scope["path"] not in PUBLIC and not self.keys.admit(headers):
            message = "The API key is missing or wrong; send it as `Authorization: Bearer KEY`."
            return APIError(401, message, code="invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limits.body:
            return APIError(413, _too_large(self.limits.body), code="request_too_large")
        return None


class _Measured:
    """A client's messages, until they are too many or too slow."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._left = limits.body
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), self._limits.upload)
        except TimeoutError:
            raise HTTPException(408, f"The body didn't come within {self._limits.upload:g} seconds.") from None
        self._left -= len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._left < 0:
            raise HTTPException(413, _too_large(self._limits.body))
        return message


def _too_large(limit: int) -> str:
    return f"The body has more than the {limit} bytes that a request may have here; shorten it."

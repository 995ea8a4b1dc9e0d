"""API keys and limits, and the gate that checks both before anything of a request is read or computed."""

from __future__ import annotations

import asyncio
import hmac
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from litgpt.deploy.protocol.errors import APIError
from litgpt.errors import LitGPTError

VARIABLES = ("LITGPT_API_KEY", "LIT_SERVER_API_KEY")
"""Read where the command line has no key; the second one is LitServe's."""
CHARACTERS_PER_TOKEN = 64
"""A text with more characters than this for each token of the limit is refused before it is encoded."""
PUBLIC = frozenset({"/", "/health", "/openapi.json", "/favicon.ico"})
"""Paths that need no key."""


class Keys:
    """The keys that a request may carry; only their hashes are kept.

    Raises:
        LitGPTError: A key has characters that no header can carry.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        found = [key.strip() for key in keys if key.strip()]
        if any(not key.isascii() or not key.isprintable() or " " in key for key in found):
            raise LitGPTError("An API key has characters that no header can carry; use letters, digits and -_.")
        self._hashes = [sha256(key.encode()).digest() for key in found]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def admit(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request carries one of the keys; takes the same time whatever it carries."""
        bearer = headers.get(b"authorization", b"")
        sent = bearer[7:].strip() if bearer[:7].lower() == b"bearer " else headers.get(b"x-api-key", b"")
        digest = sha256(sent).digest()
        # Every key is compared, so that the time shows neither which one it was nor whether there was one.
        matches = [hmac.compare_digest(digest, known) for known in self._hashes]
        return not self._hashes or any(matches)


def read_keys(given: str | None, file: Path | None) -> Keys:
    """The keys of `--api_key` (several with commas between) and of a file (one a line), else of the environment.

    Raises:
        LitGPTError: The file can't be read or holds no key.
    """
    keys = given.split(",") if given else []
    if given is not None and not any(key.strip() for key in keys):
        raise LitGPTError("--api_key is empty; give a key or leave it out.")
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text file"
            raise LitGPTError(f"--api_key_file {file} can't be read ({reason}).") from None
        found = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise LitGPTError(f"--api_key_file {file} holds no key; write one a line.")
        keys += found
    if not keys:
        keys = [key for name in VARIABLES for key in os.environ.get(name, "").split(",")]
    return Keys(keys)


@dataclass(frozen=True)
class Limits:
    """The most that a request may ask for.

    Raises:
        LitGPTError: A limit is less than one.
    """

    queue: int = 64
    """Answers that wait while all slots are taken; what comes then is refused with a time to come again."""
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
        detail: The path whose errors have the shape of `/predict`'s.
    """

    def __init__(self, app: ASGIApp, limits: Limits, keys: Keys, detail: str) -> None:
        self.app, self.limits, self.keys, self.detail = app, limits, keys, detail

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
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

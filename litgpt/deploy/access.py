"""API keys, names of the server and limits, and the gate that checks them before anything of a request is read."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import sha256
from pathlib import Path
from time import perf_counter

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from litgpt.deploy.protocol.errors import APIError, model_failed
from litgpt.errors import LitGPTError, file_error, quoted

log = logging.getLogger("uvicorn.error")

VARIABLES = ("LITGPT_API_KEY", "LIT_SERVER_API_KEY")
"""Read where the command line has no key; the second one is LitServe's."""
CHARACTERS_PER_TOKEN = 64
"""A text with more characters than this for each token of the limit is refused before it is encoded."""
MAX_HEAD = 65536
"""Bytes of a request's path and headers."""
MIN_BYTES_PER_SECOND = 10_000
"""What a client has to send on average of a body, once `Limits.upload` is over."""
MAX_BODIES = 256_000_000
"""Bytes of the bodies of all requests that are being answered."""
MAX_VALUES, MAX_CONTAINERS = 2_000_000, 100_000
"""Of JSON in a body: values that follow others, and lists and objects, which the collector of garbage goes over again
and again while they are read."""
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
        sent = [bearer[7:].strip() if bearer[:7].lower() == b"bearer " else b"", headers.get(b"x-api-key", b"")]
        digests = [sha256(key).digest() for key in sent]
        # Every key is compared, so that the time shows neither which one it was nor whether there was one.
        matches = [hmac.compare_digest(digest, known) for digest in digests for known in self._hashes]
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
            raise file_error(error, f"--api_key_file {file} can't be read ({reason}).") from None
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
    upload: float = 20.0
    """Seconds for a body; a large one gets more, by `MIN_BYTES_PER_SECOND`."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("queue", "wait", "seconds", "upload") else 1
            if value is not None and (value < least or value != value or value == math.inf):
                raise LitGPTError(f"The limit on {field.name} is {value}; it must be {least} or more.")


LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
"""What a browser on this machine may call a server that listens for this machine alone."""


def listed(given: list[str] | str | None) -> tuple[str, ...]:
    """A list, or one text with commas between."""
    parts = given.split(",") if isinstance(given, str) else given or ()
    return tuple(part.strip() for part in parts if part.strip())


def is_loopback(host: str) -> bool:
    """Whether a server that listens on `host` is reachable from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.casefold() == "localhost"


def names_of_server(host: str, given: Sequence[str], has_keys: bool) -> frozenset[str] | None:
    """The names that requests may call the server by in their `Host`; None: any.

    A web page elsewhere can give its own name this machine's address (DNS rebinding), and its script then reads what
    a server without keys answers; the name that it calls the server by gives it away.

    Args:
        host: What the server listens on.
        given: Further names, `--allowed_hosts`; `*` is any.
        has_keys: Whether requests need a key, which such a script hasn't got.
    """
    if "*" in given or not (given or (is_loopback(host) and not has_keys)):
        return None
    own = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return frozenset(name.casefold() for name in (*LOOPBACK, own, *given))


def host_name(value: str) -> str:
    """The name in a `Host` header, without port and without the dot that may end it."""
    name, bracket, _ = value.strip().casefold().partition("]")
    return name + bracket if bracket else name.partition(":")[0].removesuffix(".")


class Gate:
    """Checks the name, the key and the size of every request before the application reads it.

    Args:
        app: What is behind the gate.
        limits: What a request may ask for.
        keys: What it must carry, unless its path is public.
        hosts: The names that it may call the server by; None: any.
        detail: The path whose errors have the shape of `/predict`'s.
    """

    def __init__(
        self, app: ASGIApp, limits: Limits, keys: Keys, detail: str, hosts: frozenset[str] | None = None
    ) -> None:
        self.app, self.limits, self.keys, self.detail, self.hosts = app, limits, keys, detail, hosts
        self._bodies = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI call."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        error = self._refusal(scope)
        if error is not None:
            await error.response(scope["path"], self.detail)(scope, receive, send)
            return
        measured, started = _Measured(receive, self.limits, self._take), False

        async def send_on(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, measured, send_on)
        except Exception as failure:
            if started:
                raise
            # Answered here and not by the framework, which is further out, where no origin is allowed.
            log.error("A request failed.", exc_info=failure)
            scope["state"]["record"].failure = model_failed().label
            await model_failed().response(scope["path"], self.detail)(scope, receive, send)
        finally:
            self._bodies -= measured.received

    def _take(self, n: int) -> None:
        """Takes `n` bytes of a body in.

        Raises:
            HTTPException: All bodies together would need too much memory.
        """
        if self._bodies + n > max(MAX_BODIES, self.limits.body):
            raise HTTPException(503, "The server is busy with large requests; try again in a few seconds.")
        self._bodies += n

    def _refusal(self, scope: Scope) -> APIError | None:
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        if size + len(scope["path"]) + len(scope.get("query_string", b"")) > MAX_HEAD:
            return APIError(431, f"The path and the headers have more than {MAX_HEAD} bytes; shorten them.")
        headers = dict(scope["headers"])
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1:
            return APIError(400, f"A request has one Host header, and this one has {len(hosts)}.", code="invalid_host")
        if self.hosts is not None and host_name(hosts[0]) not in self.hosts:
            message = f"This server doesn't answer to the name {quoted(hosts[0])}; allow it by --allowed_hosts NAME."
            return APIError(403, message, code="invalid_host")
        if scope["path"] not in PUBLIC and not self.keys.admit(headers):
            message = "The API key is missing or wrong; send it as `Authorization: Bearer KEY` or `x-api-key: KEY`."
            return APIError(401, message, code="invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limits.body:
            return APIError(413, _too_large(self.limits.body), code="request_too_large")
        return None


class _Measured:
    """A client's messages, until they are too many or too slow."""

    def __init__(self, receive: Receive, limits: Limits, take: Callable[[int], None]) -> None:
        self._receive, self._limits, self._take = receive, limits, take
        self.received = 0
        """Bytes."""
        self._pieces: list[bytes] = []
        self._began = perf_counter()
        self._complete = False

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            seconds = self._limits.upload + self.received / MIN_BYTES_PER_SECOND
            message = await asyncio.wait_for(self._receive(), self._began + seconds - perf_counter())
        except TimeoutError:
            raise HTTPException(408, f"The body didn't come within {seconds:.3g} seconds.") from None
        piece = message.get("body", b"")
        n = len(piece)
        if self.received + n > self._limits.body:
            raise HTTPException(413, _too_large(self._limits.body))
        self._take(n)
        self.received += n
        self._pieces.append(piece)
        if not message.get("more_body", False):
            self._complete = True
            check_values(self._pieces)
            self._pieces.clear()
        return message


def check_values(pieces: Sequence[bytes]) -> None:
    """Refuses a body of JSON with very many values, before it is read.

    Raises:
        HTTPException: It has too many.
    """
    for most, marks, what in (MAX_VALUES, (b",",), "values"), (MAX_CONTAINERS, (b"[", b"{"), "lists and objects"):
        if sum(piece.count(mark) for piece in pieces for mark in marks) > most:
            plain = b"".join(pieces).replace(b"\\\\", b"").replace(b'\\"', b"")
            bare = b"".join(plain.split(b'"')[::2])  # without texts, where most may stand
            if sum(map(bare.count, marks)) > most:
                raise HTTPException(413, f"The body has more than {most} {what}; send fewer.")


def _too_large(limit: int) -> str:
    return f"The body has more than the {limit} bytes that a request may have here; shorten it."

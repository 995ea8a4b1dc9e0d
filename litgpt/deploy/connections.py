"""What a client may hold of the server before the application sees a request: a connection, some bytes, some time."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from litgpt.deploy.access import MAX_HEAD
from litgpt.deploy.protocol.errors import APIError, dumps

MAX_CONNECTIONS = 2048
"""Beyond this many, the one that has waited longest without a request gives its place up."""
HEAD_SECONDS = 10.0
"""From the opening of a connection, or the first byte of a request, to the end of its headers."""
REST_SECONDS = 5.0
"""What a client gets to send the rest of a request that has been answered already."""
STALL_SECONDS = 60.0
"""How long a client may leave an answer unread."""
KEEP_ALIVE_SECONDS = 65
"""How long a connection stays open between requests: longer than proxies keep theirs, so that none writes to a closed
one."""
LINGER_SECONDS = 1.0
"""Between a refusal and the end of its connection: closed at once, it might be lost on its way."""


class BoundedProtocol(H11Protocol):
    """uvicorn's connection, whose client sends and reads within bounds or loses it.

    uvicorn's other implementation, httptools', keeps headers of any size; this one, which it always has, does not.
    """

    _waiting: asyncio.TimerHandle | None = None
    _waits_for = ""
    _stalled: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Takes a connection; where there are too many, an idle one ends."""
        super().connection_made(transport)
        self.since = self.loop.time()
        self._wait("head", HEAD_SECONDS)
        if len(self.connections) > MAX_CONNECTIONS:
            idle = [other for other in self.connections if other is not self and other.idle]
            if not idle:
                self._refuse(APIError(503, "The server has too many connections; try again later.", code="server_busy"))
                return
            oldest = min(idle, key=lambda other: other.since)
            self.connections.discard(oldest)
            oldest.transport.abort()

    @property
    def idle(self) -> bool:
        """Whether no request is being answered here."""
        return self.cycle is None or self.cycle.response_complete

    def connection_lost(self, error: Exception | None) -> None:
        """Ends the clocks with the connection."""
        self._wait()
        self.resume_writing()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        """Takes bytes in; unless they complete the headers, a clock that they don't stop runs on."""
        if self._refused:
            return
        super().data_received(data)
        if self._refused:
            return
        if self.conn.their_state is h11.IDLE:
            self._wait("head", HEAD_SECONDS)
        elif not (self.idle and self.conn.their_state is h11.SEND_BODY):
            self._wait()

    def on_response_complete(self) -> None:
        """Waits for the next request, or for the rest of this one."""
        self.since = self.loop.time()
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self._wait("rest", REST_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no HTTP, or has too long a head."""
        if self.idle or not self.cycle.response_started:
            message = f"This is no HTTP/1.1 request with a head of at most {MAX_HEAD} bytes."
            self._refuse(APIError(400, message, code="invalid_http"))
        else:
            self.transport.close()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is written to."""
        super().pause_writing()
        self._stalled = self._stalled or self.loop.call_later(STALL_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read on."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _wait(self, what: str = "", seconds: float = 0.0) -> None:
        """Ends the connection after so many seconds, unless it waits for something else before."""
        if what == self._waits_for:
            return
        if self._waiting is not None:
            self._waiting.cancel()
        self._waits_for = what
        self._waiting = self.loop.call_later(seconds, self.transport.abort) if what else None

    def _refuse(self, error: APIError) -> None:
        body, phrase = dumps(error.body()), HTTPStatus(error.status).phrase
        head = f"HTTP/1.1 {error.status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
        self._refused = True
        self._wait("end", LINGER_SECONDS)


OPTIONS: dict[str, Any] = {
    "http": BoundedProtocol,
    "h11_max_incomplete_event_size": MAX_HEAD,
    "timeout_keep_alive": KEEP_ALIVE_SECONDS,
    "access_log": False,  # paths may carry what people should not have put there; `--request_log` writes without
    "server_header": False,
    "ws": "none",
}
"""Of every uvicorn that the application runs under."""

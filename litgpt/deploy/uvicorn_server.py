"""An application on a socket, from the first connection to the last answer."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import uvicorn

from litgpt.deploy.connections import OPTIONS
from litgpt.errors import LitGPTError

if TYPE_CHECKING:
    from litgpt.deploy.service import Service

MANY_FILES = 65536


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address; connections are refused until a server listens on it.

    Raises:
        LitGPTError: The address is taken, not this machine's, or none at all.
    """
    bound = None
    try:
        if not 0 <= port < 2**16:
            raise OSError("a port is a number from 0 to 65535")
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        if os.name == "posix":  # a server that was just stopped leaves its port in a waiting state
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        return bound
    except OSError as error:
        if bound is not None:
            bound.close()
        reason = error.strerror or str(error)
        raise LitGPTError(f"Can't listen on {host} port {port} ({reason}); choose another --host or --port.") from None


class Server(uvicorn.Server):
    """uvicorn, which prints where it listens, and has the service, if any, refuse requests once it is asked to end."""

    def __init__(self, config: uvicorn.Config, service: Service | None, listener: socket.socket) -> None:
        super().__init__(config)
        self._service, self._listener = service, listener

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets=sockets)
        if self.started and not self.should_exit:
            host, port = self._listener.getsockname()[:2]
            place = f"[{host}]" if ":" in host else host
            print(f"Ready at http://{place}:{port}", file=sys.stderr, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuses what comes and waits for what runs; shortly before the time is up, its clients get an error."""
        import asyncio

        if self._service is None:
            return await super().shutdown(sockets=sockets)
        self._service.draining = True
        seconds = self.config.timeout_graceful_shutdown or 0
        last_call = asyncio.get_running_loop().call_later(max(seconds - 1.0, seconds / 2), self._service.abort)
        await super().shutdown(sockets=sockets)
        last_call.cancel()


def allow_many_connections() -> None:
    """Raises the process' own limit on open files to what the system lets it have."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def configure(service: Service) -> uvicorn.Config:
    """How uvicorn runs the application over a service."""
    from litgpt.deploy.app import make_app

    return uvicorn.Config(
        make_app(service),
        timeout_graceful_shutdown=service.settings.shutdown_timeout,
        **OPTIONS,
    )


def serve(service: Service, listener: socket.socket) -> None:
    """Runs the application over a service until SIGTERM or Ctrl-C, then finishes the requests that are running."""
    allow_many_connections()
    gc.freeze()  # what is loaded stays: collecting garbage doesn't go over it again
    run(Server(configure(service), service, listener), listener)


def run(server: Server, listener: socket.socket) -> None:
    """Runs a server until SIGTERM or Ctrl-C."""
    # uvicorn raises the signal that ended it once more afterwards; asked to end, and having ended, this is no failure.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""A small Hugging Face Hub on 127.0.0.1, for the hub's real client to talk to."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
API = re.compile(r"/api/(?:models|datasets)/([\w.-]+/[\w.-]+)(?:/(revision|tree)/[\w.-]+)?$")
RESOLVE = re.compile(r"(?:/datasets)?/([\w.-]+/[\w.-]+)/resolve/[\w.-]+/(.+)$")
INVALID_TOKEN = {"X-Error-Message": "Invalid credentials in Authorization header"}


@dataclass
class Repository:
    """What the hub has under one name."""

    files: dict[str, bytes]
    gated: bool = False


@dataclass
class Request:
    """One request that arrived."""

    method: str
    path: str
    range: str | None


@dataclass
class Hub:
    """The server's content, and what it was asked."""

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    """Those that are valid; they give access to gated repositories."""
    broken: dict[str, int] = field(default_factory=dict)
    """File name → bytes after which the connection breaks, once."""
    stalled: dict[str, int] = field(default_factory=dict)
    """File name → bytes after which nothing more comes, once; `stalling` is set then."""
    stalling: threading.Event = field(default_factory=threading.Event)
    requests: list[Request] = field(default_factory=list)

    def add(self, repo_id: str, folder: Path | None = None, gated: bool = False, **files: bytes) -> None:
        """A repository with the files of a folder and further ones."""
        found = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} if folder else {}
        self.repositories[repo_id] = Repository({**found, **files}, gated)

    def asked(self, method: str, name: str) -> list[Request]:
        """The requests for a file."""
        return [request for request in self.requests if request.method == method and request.path.endswith(f"/{name}")]


@contextmanager
def serve() -> Iterator[Hub]:
    """Runs a hub on a free port."""
    hub = Hub()

    class BoundHandler(Handler):
        pass

    BoundHandler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), BoundHandler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub answers, as far as its client looks."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(Request(self.command, path, self.headers.get("Range")))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            return self._answer(401, **INVALID_TOKEN)
        api, resolve = API.match(path), RESOLVE.match(path)
        repo_id = (api or resolve or [None, ""])[1]
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            return self._answer(404 if token else 401, **{"X-Error-Code": "RepoNotFound"})
        if api:
            return self._json(self._tree(repository) if api[2] == "tree" else self._info(repo_id, repository))
        assert resolve is not None
        if repository.gated and not token:
            return self._answer(401, **{"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        if resolve[2] not in repository.files:
            return self._answer(404, **{"X-Error-Code": "EntryNotFound"})
        self._file(resolve[2], repository.files[resolve[2]])

    def _info(self, repo_id: str, repository: Repository) -> object:
        siblings = [{"rfilename": name, "size": len(content)} for name, content in repository.files.items()]
        gated = "auto" if repository.gated else False
        return {"id": repo_id, "sha": COMMIT, "private": False, "gated": gated, "tags": [], "siblings": siblings}

    def _tree(self, repository: Repository) -> object:
        return [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in repository.files.items()
        ]

    def _file(self, name: str, content: bytes) -> None:
        begin = int((re.match(r"bytes=(\d+)-", self.headers.get("Range") or "") or [0, 0])[1])
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        cut = self.hub.broken.pop(name, None) if self.command == "GET" else None
        if self.command == "GET" and name in self.hub.stalled:
            return self._stall(content[: self.hub.stalled.pop(name)], len(content), headers)
        self._answer(206 if begin else 200, content[begin:], cut, **headers)

    def _stall(self, part: bytes, length: int, headers: dict[str, str]) -> None:
        self._begin(200, length, headers)
        self.wfile.write(part)
        self.hub.stalling.set()
        self.rfile.read(1)  # returns when the client is gone
        self.close_connection = True

    def _json(self, content: object) -> None:
        self._answer(200, json.dumps(content).encode(), **{"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes = b"", cut: int | None = None, **headers: str) -> None:
        self._begin(status, len(body), headers)
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True

    def _begin(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()

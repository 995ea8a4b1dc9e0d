"""By which names requests may call the server: a page elsewhere can't lend its own name to this machine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from litgpt.deploy.access import Gate, Keys, Limits, host_name, names_of_server

LOCAL = names_of_server("127.0.0.1", (), has_keys=False)


def status(hosts: list[str], allowed: frozenset[str] | None = LOCAL, path: str = "/v1/models") -> int:
    """What a request with these Host headers is answered with; 200: it comes through the gate."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    headers = [(b"host", host.encode("latin-1")) for host in hosts]
    scope = {"type": "http", "path": path, "headers": headers}
    asyncio.run(Gate(app, Limits(), Keys(), "/predict", allowed)(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:8000", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:80", "localhost.:8000"]
)
def test_a_server_for_this_machine_answers_to_its_names(host):
    assert status([host]) == 200


@pytest.mark.parametrize("path", ["/v1/models", "/health", "/", "/predict", "/metrics"])
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1", "0.0.0.0"],
)
def test_and_to_no_other_name_on_any_path(host, path):
    assert status([host], path=path) == 403


@pytest.mark.parametrize("hosts", [[], ["localhost", "localhost"], ["localhost", "evil.example"]])
@pytest.mark.parametrize("allowed", [LOCAL, None])
def test_a_request_has_one_host(hosts, allowed):
    assert status(hosts, allowed) == 400


@pytest.mark.parametrize(
    ("host", "given", "has_keys", "called", "answers"),
    [
        ("127.0.0.1", (), True, "evil.example", True),  # which has no key
        ("0.0.0.0", (), False, "gpu.example", True),  # meant for others
        ("0.0.0.0", ("gpu.example",), False, "gpu.example:8000", True),
        ("0.0.0.0", ("gpu.example",), True, "evil.example", False),
        ("127.0.0.1", ("gpu.example",), False, "GPU.example", True),
        ("127.0.0.1", ("*",), False, "evil.example", True),
        ("127.0.0.2", (), False, "127.0.0.2:8000", True),
        ("::1", (), False, "[::1]:8000", True),
        ("::1", (), False, "evil.example", False),
        ("localhost", (), False, "evil.example", False),
    ],
)
def test_what_is_allowed_follows_from_where_it_listens_and_whether_it_asks_for_keys(
    host, given, has_keys, called, answers
):
    assert (status([called], names_of_server(host, given, has_keys)) == 200) is answers


@pytest.mark.parametrize(
    ("value", "name"), [("A.b:80", "a.b"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("a.", "a"), ("", "")]
)
def test_a_name_is_read_without_its_port(value, name):
    assert host_name(value) == name

"""Everything that a client sends has a bound, which is checked before work is done with it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from litgpt.deploy import connections
from litgpt.deploy.access import MAX_HEAD, Limits
from litgpt.deploy.app import make_app
from litgpt.engine.inference_model import InferenceModel
from tests.deploy.served import make_service, running
from tests.generate.folder import make_folder

OF_THE_PROMPT = {"prompt", "input", "content", "text", "arguments", "reasoning_content", "refusal", "description"}
OF_THE_PROMPT |= {"system", "thinking", "instructions", "output"}
"""Texts whose length is checked against the model's context."""
MESSAGE = {"role": "user", "content": "Hi"}
WHOLE = {
    "/predict": {"prompt": "Hi"},
    "/v1/chat/completions": {"model": "tiny", "messages": [MESSAGE], "max_tokens": 2},
    "/v1/completions": {"model": "tiny", "prompt": "Hi", "max_tokens": 2},
    "/v1/messages": {"model": "tiny", "messages": [MESSAGE], "max_tokens": 2},
    "/v1/messages/count_tokens": {"model": "tiny", "messages": [MESSAGE]},
    "/v1/responses": {"model": "tiny", "input": [MESSAGE], "max_output_tokens": 2},
    "/v1/responses/input_tokens": {"model": "tiny", "input": [MESSAGE]},
    "/v1/embeddings": {"model": "tiny", "input": "Hi"},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [1]},
}
ROUTES = tuple(WHOLE)
NESTED: Any = 1
for _ in range(300):
    NESTED = [NESTED]


def extremes(n: int) -> list[Any]:
    """Values of any kind, far too large for what they are."""
    text = "é\x1b" * (n // 2)
    values: list[Any] = [10**30, -(10**30), 10**4000, 1e308, text, [0] * n, [[]] * n, ["a"] * n, [text], NESTED]
    values += [{str(i): 1 for i in range(n)}, [MESSAGE] * n, [{"type": "text", "text": "a"}] * n, {"a": NESTED}]
    return [*values, [MESSAGE | {"content": [{"type": "text", "text": ""}] * n}], [MESSAGE | {"name": text}]]


@pytest.fixture(scope="module")
def inference_model(tmp_path_factory: pytest.TempPathFactory) -> InferenceModel:
    folder: Path = make_folder(tmp_path_factory.mktemp("bounds") / "tiny")
    return InferenceModel.load(folder, "cpu", "32-true")


@pytest.fixture(scope="module")
def client(inference_model) -> Iterator[TestClient]:
    with TestClient(make_app(make_service(inference_model)), raise_server_exceptions=False) as client:
        yield client


def unbounded(schema: dict[str, Any], name: str, place: str) -> Iterator[str]:
    """The places in a JSON schema where a list, an object or a text has no bound."""
    kind = schema.get("type")
    if kind == "array" and "maxItems" not in schema:
        yield place
    if kind == "object" and "properties" not in schema and "maxProperties" not in schema:
        yield place
    closed = "enum" in schema or "const" in schema or "pattern" in schema
    if kind == "string" and not closed and "maxLength" not in schema and name not in OF_THE_PROMPT:
        yield place
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from unbounded(schema[key], name, f"{place}.{key}")
    for part in schema.get("anyOf", schema.get("oneOf", ())):
        yield from unbounded(part, name, place)
    for key, part in schema.get("properties", {}).items():
        yield from unbounded(part, key, f"{place}.{key}")


def test_every_list_and_text_of_a_body_has_a_bound(client):
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    own = {name: schema for name, schema in schemas.items() if not name.endswith(("Answer", "Detail"))}
    assert len(own) > 10
    assert [place for name, schema in own.items() for place in unbounded(schema, name, name)] == []


def attack(client: TestClient, path: str, body: dict[str, Any], seconds: float) -> None:
    content = json.dumps(body)
    started = time.process_time()
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    took = time.process_time() - started
    where = (path, content[:100], len(content), answer.status_code)
    assert answer.status_code < 500 and took < seconds, (*where, took, answer.text[:300])
    if answer.status_code >= 400:
        message = answer.json()["error"]["message"]
        assert len(message) < 600 and message.isprintable(), (where, message)


@pytest.mark.slow
@pytest.mark.parametrize("path", ROUTES)
def test_no_value_is_too_large_for_any_field(client, path):
    description = client.get("/openapi.json").json()
    reference = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    fields = description["components"]["schemas"][reference.rpartition("/")[2]]["properties"]
    for field in [*fields, "strange\x1b"]:
        for value in extremes(500)[2::4]:
            attack(client, path, WHOLE[path] | {field: value}, 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("path", ROUTES)
def test_no_body_takes_long_to_refuse(client, path):
    field = next(name for name in ("messages", "prompt", "input", "tokens") if name in str(WHOLE[path]))
    for value in extremes(200_000):
        for name in (field, "stop", "x"):
            attack(client, path, WHOLE[path] | {name: value}, 2.0)
    attack(client, path, {str(i): 0 for i in range(500_000)}, 2.0)


def test_a_long_stop_string_is_refused_and_a_long_conversation(client):
    def refusal(path: str, **fields: Any) -> str:
        answer = client.post(path, json=WHOLE[path] | fields)
        assert answer.status_code in (400, 422)
        return str(answer.json()["error"]["message"])

    for path in ("/predict", "/v1/chat/completions", "/v1/completions"):
        assert "at most 1000 characters" in refusal(path, stop="a" * 300_000)
    assert "at most 4096" in refusal("/v1/chat/completions", messages=[MESSAGE] * 5000)
    for name in ("reasoning_content",):
        message = {"role": "assistant", "content": "", name: "a" * 100_000}
        assert "shorten the prompt" in refusal("/v1/chat/completions", messages=[message, MESSAGE])
        assert "shorten the prompt" in refusal("/tokenize", prompt=None, messages=[message, MESSAGE])


def test_bodies_together_have_a_bound(inference_model, monkeypatch):
    monkeypatch.setattr("litgpt.deploy.access.MAX_BODIES", 10)
    app = make_app(make_service(inference_model, limits=Limits(body=80)))
    gates = []
    with TestClient(app) as client:
        assert client.post("/predict", json={"prompt": "Hi"}).status_code == 200
        stack = app.middleware_stack
        while stack is not None:
            gates += [stack] if type(stack).__name__ == "Gate" else []
            stack = getattr(stack, "app", None)
        assert gates[0]._bodies == 0
        gates[0]._bodies = 70
        assert client.post("/predict", json={"prompt": "Hi"}).status_code == 503


# -- connections


@pytest.fixture
def server(inference_model, monkeypatch) -> Iterator[tuple[str, int]]:
    for name in ("HEAD_SECONDS", "REST_SECONDS", "STALL_SECONDS", "LINGER_SECONDS"):
        monkeypatch.setattr(connections, name, 0.4)
    with running(make_service(inference_model, limits=Limits(upload=0.4))) as url:
        host, port = url.removeprefix("http://").split(":")
        yield host, int(port)
        assert httpx.post(f"{url}/predict", json={"prompt": "Hi"}).status_code == 200


HEAD = b"POST /predict HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"


def drip(server: tuple[str, int], start: bytes, seconds: float = 4.0) -> tuple[float, bytes]:
    """Sends a start, then a byte now and then: how long the connection lives, and what it says."""
    with socket.create_connection(server, timeout=5) as connection:
        connection.sendall(start)
        connection.settimeout(0.05)
        began, said = time.monotonic(), b""
        while time.monotonic() - began < seconds:
            try:
                piece = connection.recv(65536)
                if not piece:
                    break
                said += piece
            except TimeoutError:
                pass
            except ConnectionError:
                break
            try:
                connection.sendall(b"x")
            except OSError:
                break
        return time.monotonic() - began, said


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"", b""),
        (b"\r\n", b"400"),
        (HEAD, b""),
        (HEAD + b"content-length: 900\r\n\r\n{", b"408"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"408"),
        (b"POST /no HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 900\r\n\r\n", b"404"),
        (b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n", b"200"),
        (b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" * 3, b"200"),
    ],
    ids=["nothing", "line", "head", "body", "chunks", "refused", "next", "pipelined"],
)
def test_a_byte_now_and_then_holds_no_connection(server, start, status):
    lived, said = drip(server, start)
    assert lived < 3 and said[9:12] == status


def test_two_hundred_half_open_connections_end(server):
    sockets = [socket.create_connection(server, timeout=5) for _ in range(200)]
    try:
        for at, connection in enumerate(sockets):
            connection.sendall(HEAD[: at % len(HEAD)])
        for connection in sockets:
            connection.settimeout(3)
            assert connection.recv(1000) == b""
    finally:
        for connection in sockets:
            connection.close()


@pytest.mark.parametrize("size", [MAX_HEAD + 1000, 20_000_000])
def test_a_head_without_end_is_refused(server, size):
    with socket.create_connection(server, timeout=5) as connection:
        said = b""
        try:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: " + b"a" * size)
            connection.sendall(b"\r\n\r\n")
            said = connection.recv(1000)
        except ConnectionError:  # the refusal came while the rest was on its way
            assert size > 1_000_000
        assert said[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 431", b"")


def test_an_answer_that_nobody_reads_ends(server):
    with socket.create_connection(server, timeout=5) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"
        deadline = time.monotonic() + 10
        with pytest.raises(OSError):
            while time.monotonic() < deadline:
                connection.sendall(request * 20)
                time.sleep(0.05)


def test_beyond_the_most_connections_an_idle_one_gives_its_place_up(server, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 30)
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 20)
    sockets = [socket.create_connection(server, timeout=5) for _ in range(60)]
    try:
        answer = httpx.post(f"http://{server[0]}:{server[1]}/predict", json={"prompt": "Hi"}, timeout=5)
        assert answer.status_code == 200
        ended = 0
        for connection in sockets:
            connection.setblocking(False)
            try:
                ended += connection.recv(10) == b""
            except BlockingIOError:
                continue
            except ConnectionError:
                ended += 1
        assert ended >= 40
    finally:
        for connection in sockets:
            connection.close()

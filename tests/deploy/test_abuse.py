"""What clients do to a server on bad days: after each of these it still answers, with no slot lost."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from litgpt.prompts.rendering import MAX_IDLE
from tests.deploy.processes import served
from tests.generate.folder import make_folder

psutil = pytest.importorskip("psutil")

HI = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "temperature": 0}
QUICK = partial(
    settings, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
SLACK = 40e6
"""Bytes that a process may grow by, whatever it goes through: pools of threads and connections stay."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    folder: Path = make_folder(tmp_path_factory.mktemp("abuse") / "tiny")
    with served(folder, "--max_queue", "300") as (url, process):
        threading.Thread(target=process.stderr.read, daemon=True).start()  # or the pipe fills
        yield url, process


@pytest.fixture
def url(server) -> Iterator[str]:
    """The address; afterwards the server answers, has nothing left to do, and is about as large as before."""
    address, process = server
    expected = said(address)
    memory = psutil.Process(process.pid).memory_info().rss
    yield address
    deadline = time.monotonic() + 10
    while metrics(address)["litgpt_answers_running"] and time.monotonic() < deadline:
        time.sleep(0.05)
    found = metrics(address)
    assert found["litgpt_answers_running"] == found["litgpt_answers_waiting"] == 0
    assert said(address) == expected
    assert httpx.get(f"{address}/health").status_code == 200
    assert psutil.Process(process.pid).memory_info().rss - memory < SLACK
    faults = {name: n for name, n in found.items() if 'status="5' in name and 'status="503"' not in name}
    assert not faults


def said(url: str) -> str:
    return httpx.post(f"{url}/v1/chat/completions", json=HI, timeout=30).json()["choices"][0]["message"]["content"]


def metrics(url: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in httpx.get(f"{url}/metrics").text.splitlines() if line[0] != "#"]
    return {name: float(value) for name, _, value in lines}


@pytest.mark.slow
def test_two_hundred_clients_killed_mid_stream(url):
    body = HI | {"stream": True, "max_tokens": 100, "ignore_eos": True}

    def killed(number: int) -> None:
        with (
            httpx.Client(timeout=60) as client,
            client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer,
        ):
            if number % 2:
                next(answer.iter_bytes())

    with ThreadPoolExecutor(40) as pool:
        list(pool.map(killed, range(200)))
    assert said(url)


@pytest.mark.slow
def test_five_hundred_requests_leave_nothing_behind(server, url):
    process = psutil.Process(server[1].pid)
    assert len(process.children()) <= MAX_IDLE and process.memory_info().rss < 450e6  # some run chat templates

    def ask(client: httpx.Client, numbers: range) -> None:
        for number in numbers:
            body = {"model": "tiny", "prompt": f"Llama {number}", "max_tokens": 3}
            assert client.post(f"{url}/v1/completions", json=body).status_code == 200

    with httpx.Client(timeout=30) as client:
        ask(client, range(100))
        before = process.memory_info().rss
        ask(client, range(100, 600))
    assert process.memory_info().rss - before < 5e6


@pytest.mark.slow
def test_forty_thousand_tokens_are_refused_in_little_memory(server, url):
    process = psutil.Process(server[1].pid)
    before = process.memory_info().rss
    for prompt in ("hay " * 40_000, [5] * 40_000):
        answer = httpx.post(f"{url}/v1/completions", json={"model": "tiny", "prompt": prompt}, timeout=30)
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
    assert process.memory_info().rss - before < 20e6


@pytest.mark.slow
def test_large_bodies(url):
    head = "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    host, port = url.removeprefix("http://").split(":")
    for framing in ("content-length: 100000000\r\n\r\n", "transfer-encoding: chunked\r\n\r\n"):
        for _ in range(3):
            with socket.create_connection((host, int(port)), timeout=20) as connection:
                connection.sendall((head + framing).encode())
                piece = b"x" * 100_000
                piece = piece if "length" in framing else b"186a0\r\n" + piece + b"\r\n"
                answer = b""
                connection.settimeout(0.001)
                for _ in range(1000):
                    with suppress(OSError):
                        connection.sendall(piece)
                    try:
                        answer += connection.recv(65536)
                    except OSError:
                        continue
                    if answer:
                        break
                assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.slow
def test_a_thousand_idle_connections(url):
    host, port = url.removeprefix("http://").split(":")
    idle = []
    try:
        for number in range(1000):
            connection = socket.create_connection((host, int(port)), timeout=20)
            idle.append(connection)
            if number % 3 == 0:
                connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n")
        assert said(url)
    finally:
        for connection in idle:
            connection.close()


MALFORMED = 2000


def told_at(path: str) -> set[str]:
    """What an error has at a path."""
    return {"type", "message"} if path.startswith("/v1/messages") else {"message", "type", "param", "code"}


@pytest.mark.slow
def test_two_thousand_malformed_bodies(url):
    """Bodies made from the server's own description of itself, whole ones and broken ones."""
    description = httpx.get(f"{url}/openapi.json", timeout=30).json()
    routes = [path for path, methods in description["paths"].items() if "post" in methods]
    assert len(routes) == 10
    names = sorted(
        {name for schema in description["components"]["schemas"].values() for name in schema.get("properties", {})}
    )
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    values = st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    )
    almost = {
        "model": st.sampled_from(["tiny", "other", "\ud800"]),
        "prompt": st.text(max_size=40) | st.lists(st.integers(-5, 400), max_size=6) | values,
        "input": st.text(max_size=40) | st.lists(st.text(max_size=9), max_size=4) | values,
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "system", "tool", "x"]), "content": st.text(max_size=20) | values}
            ),
            max_size=3,
        ),
        "max_tokens": st.integers(-1, 9),
        "system": st.text(max_size=20) | values,
        "tokens": st.lists(st.integers(-2, 400), max_size=8),
    }
    likely = st.fixed_dictionaries({}, optional=almost)
    bodies = st.builds(dict.__or__, st.dictionaries(st.sampled_from(names), values, max_size=4), likely)
    texts = st.builds(lambda body: json.dumps(body).encode(), bodies) | st.binary(max_size=60)
    client, count = httpx.Client(timeout=30), 0

    @QUICK(max_examples=MALFORMED)
    @given(st.sampled_from(routes), texts)
    def attack(path: str, body: bytes) -> None:
        nonlocal count
        count += 1
        answer = client.post(url + path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code < 500, (path, body, answer.text)
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) == told_at(path)

    attack()
    client.close()
    assert count >= MALFORMED


@pytest.mark.slow
def test_schemathesis_finds_no_server_error_and_one_shape_of_problems(url):
    schemathesis = pytest.importorskip("schemathesis")
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    count = 0

    for result in schema.get_all_operations():
        operation = result.ok()

        @QUICK(max_examples=80)
        @given(case=operation.as_strategy())
        def each(case) -> None:
            nonlocal count
            count += 1
            answer = case.call(timeout=30)
            assert answer.status_code < 500
            if answer.status_code >= 400:
                assert set(answer.json()["error"]) == told_at(case.operation.path)

        each()
    assert count >= 500


@pytest.mark.slow
def test_an_open_stream_ends_with_an_error_when_the_time_to_stop_is_up(tmp_path):
    folder = make_folder(tmp_path / "tiny", block_size=100_000)
    with served(folder, "--shutdown_timeout", "2") as (url, process):
        body = HI | {"stream": True, "max_tokens": 90_000, "ignore_eos": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
        process.stderr.read()
        assert process.wait(20) == 0
        assert not psutil.pid_exists(process.pid) or psutil.Process(process.pid).status() == "zombie"

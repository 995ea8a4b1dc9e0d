"""Streams on their way to clients, without a model."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from litgpt.deploy.backends.task import Counts, Delta, ResponseStream
from litgpt.deploy.protocol import responses
from litgpt.deploy.protocol.errors import dumps
from litgpt.engine.inference_model import InferenceModel
from tests.deploy.served import make_service, running
from tests.generate.folder import make_folder

CLIENTS, PIECES = 8, 2000
CLIENT = """
import json, socket, sys, threading
host, port, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
body = json.dumps({"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}).encode()
head = "POST /v1/chat/completions HTTP/1.1\\r\\nhost: x\\r\\nconnection: close\\r\\n"
head += "content-type: application/json\\r\\n"
counts = []
def ask():
    with socket.create_connection((host, port)) as connection:
        connection.sendall(f"{head}content-length: {len(body)}\\r\\n\\r\\n".encode() + body)
        received = b""
        while part := connection.recv(1 << 20):
            received += part
    counts.append(received.count(b'"content":" word"'))
threads = [threading.Thread(target=ask) for _ in range(n)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(sum(counts))
"""


class Words(ResponseStream):
    """As many words as there are to be, each as soon as it is asked for."""

    begun = True

    def __init__(self) -> None:
        self.n = 0

    async def change(self) -> None:
        await asyncio.sleep(0)

    def take(self) -> list[Delta]:
        self.n += 1
        return [Delta(0, " word", finish_reason="length" if self.n == PIECES else None, counts=Counts(3, 0, self.n))]

    def cancel(self) -> None:
        return


@pytest.mark.slow
def test_every_piece_is_encoded_once_and_reaches_its_client(tmp_path, monkeypatch):
    service = make_service(InferenceModel.load(make_folder(tmp_path / "tiny"), "cpu", "32-true"))
    n_encoded = 0

    def counting(content):
        nonlocal n_encoded
        n_encoded += 1
        return dumps(content)

    async def words(tasks):
        return Words()

    monkeypatch.setattr(responses, "dumps", counting)
    service.backend.open = words
    with running(service) as url:
        host, port = url.removeprefix("http://").split(":")
        command = [sys.executable, "-c", CLIENT, host, port, str(CLIENTS)]
        received = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert int(received) == CLIENTS * PIECES
    assert n_encoded == CLIENTS * (PIECES + 2)  # the role before, the finish reason after

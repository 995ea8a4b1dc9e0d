"""`litgpt serve` as a process: it starts, answers, and ends when asked to."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from litgpt.deploy.serve import run_server
from litgpt.deploy.uvicorn_server import bind
from litgpt.errors import LitGPTError
from tests.generate.folder import make_folder

SERVE = """
import sys
from litgpt.deploy.serve import run_server
run_server(sys.argv[1], port=0, stream=True, precision="32-true", access_token="hf_hidden", api_key="k3y")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("serve") / "tiny")


def said(lines: str) -> str:
    return "".join(json.loads(line)["output"] for line in lines.splitlines())


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_it_serves_until_asked_to_end_and_finishes_what_runs(folder, number):
    command = [sys.executable, "-c", SERVE, str(folder)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        log = ""
        while "Ready at " not in log:
            line = server.stderr.readline()
            assert line, f"the server ended: {log}"
            log += line
        host, _, port = log.rpartition("Ready at http://")[2].strip().partition(":")
        assert host == "127.0.0.1"
        client = http.client.HTTPConnection(host, int(port), timeout=60)
        body = json.dumps({"prompt": "Hi", "max_new_tokens": 100, "temperature": 0})
        headers = {"content-type": "application/json", "authorization": "Bearer k3y"}
        answers = []
        for ending in (False, True):
            client.request("POST", "/predict", body, headers)
            answer = client.getresponse()
            begun = answer.read(1)
            if ending:
                server.send_signal(number)
            answers.append((begun + answer.read()).decode())
        client.close()
        rest_out, rest_err = server.communicate(timeout=60)
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
        server.stderr.close()
    assert server.returncode == 0
    assert said(answers[0]) == said(answers[1]) != ""
    assert "Traceback" not in rest_err
    assert not any(secret in log + rest_out + rest_err for secret in ("hf_hidden", "k3y"))


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LitGPTError, match=f"Can't listen on 127.0.0.1 port {port} .*in use"):
            bind("127.0.0.1", port)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (dict(devices=2), "Several devices or replicas need --server litserve"),
        (dict(replicas=2), "Several devices or replicas need --server litserve"),
        (dict(devices=0), "each is 1 or more"),
        (dict(generate_strategy="sequential"), "is for `litgpt generate`"),
        (dict(max_n=0), "The limit on choices is 0"),
        (dict(request_timeout=-1.0), "The limit on seconds is -1.0"),
        (dict(shutdown_timeout=0), "shutdown_timeout is 0"),
        (dict(api_key=""), "--api_key is empty"),
        (dict(adapters="legal"), "--adapters legal is not NAME=FOLDER"),
        (dict(adapters=["a=x", "a=y"]), "has the name a twice"),
        (dict(adapters=["tiny=x"], port=0), "what the model itself is called"),
        (dict(adapters="a=.", port=0), "is no folder of a LoRA run"),
        (dict(request_log="/no/such/folder/log"), "can't be written"),
        (dict(server="litserve", port=80), "1024"),
        (dict(server="litserve", devices=2, accelerator="cpu"), "on cpu use --replicas 2"),
        (dict(server="litserve", host="10.0.0.1"), "0.0.0.0"),
        (dict(max_new_tokens=0), "max_new_tokens is 0"),
        (dict(temperature=-1.0), "temperature is -1.0"),
        (dict(cors="https://a.example/"), "--cors https://a.example/ is no origin"),
        (dict(cors=["*", "a.example"]), "--cors a.example is no origin"),
        (dict(api_path="predict"), "begins with /"),
        (dict(api_path="/health"), "is no path to serve"),
        (dict(api_path="/v1/models"), "is no path to serve"),
        (dict(host="no.such.host.invalid"), "Can't listen on no.such.host.invalid"),
        (dict(port=70000), "port 70000"),
        (dict(port=0, accelerator="quantum"), "Unknown device 'quantum'"),
        (dict(port=0, quantize="bnb.nf4", precision="bf16-mixed"), "bnb.nf4 computes in one dtype"),
        (dict(port=0, slots=0), "slots is 0"),
        (dict(port=0, max_length=0), "max_length is 0"),
        (dict(checkpoint_dir=Path("nowhere"), port=0), "nowhere"),
    ],
)
def test_a_mistake_is_one_sentence(folder, flags, words):
    with pytest.raises(LitGPTError, match=words):
        run_server(**{"checkpoint_dir": folder, **flags})

"""The tutorial on deployment: its commands run, its unit and its proxy configuration are valid and work."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.lora_runs import make_run
from tests.generate.folder import make_folder
from tests.pages import commands, fences
from tests.paths import ROOT

PAGE = ROOT / "tutorials" / "deploy.md"

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def post(port: int, path: str, body: dict[str, object]) -> str:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def started(line: str, port: int, folder: Path) -> subprocess.Popen[bytes]:
    """A server of the tutorial, once it answers."""
    _, *arguments = shlex.split(line)
    arguments = [argument for argument in arguments if argument not in ("--port", "8000")]
    process = subprocess.Popen(
        [sys.executable, "-m", "litgpt", *arguments, "--port", str(port)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while get(port, "/health")[0] != 200:
        assert process.poll() is None, f"{line} ended with {process.returncode}"
        assert time.monotonic() < deadline, f"{line} does not answer"
        time.sleep(0.2)
    return process


def stopped(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("deploy")
    (folder / "litgpt").symlink_to(ROOT / "litgpt")
    (folder / "keys.txt").write_text("one-key\n")
    return folder


@pytest.fixture(scope="module")
def server(folder) -> Iterator[int]:
    """The port of the tutorial's first server."""
    port = free_port()
    process = started(commands(PAGE, "bash")[0], port, folder)
    yield port
    assert stopped(process) == 0


def test_the_requests_are_answered(server):
    requests = [
        line.removeprefix("$ ")
        for block in fences(PAGE, "console")
        for line in block.splitlines()
        if line.startswith("$ curl")
    ]
    assert len(requests) == 7
    answers = {}
    for line in requests:
        command = shlex.split(line.replace(":8000", f":{server}"))
        answers[line] = subprocess.run(
            [*command, "--fail-with-body"], capture_output=True, text=True, check=True
        ).stdout
    models, completion, chat, response, message, prediction, metrics = answers.values()
    assert json.loads(models)["data"][0]["id"] == "austen-2m"
    assert json.loads(completion)["choices"][0]["text"]
    assert chat.count("data: ") > 5 and chat.rstrip().endswith("data: [DONE]")
    assert "event: response.output_text.delta" in response and '"type":"response.incomplete"' in response
    assert json.loads(message)["content"][0]["text"]
    assert json.loads(prediction)["output"]
    assert "# TYPE" in metrics


@pytest.mark.parametrize("package", ["openai", "anthropic"])
def test_the_official_clients_are_answered(server, package):
    pytest.importorskip(package)
    (program,) = (block for block in fences(PAGE, "python") if f"from {package} " in block)
    done = subprocess.run(
        [sys.executable, "-c", program.replace(":8000", f":{server}")], capture_output=True, text=True, check=True
    )
    assert len(done.stdout) > 20


def test_the_page_is_there(server):
    status, page = get(server, "/")
    assert status == 200 and page.startswith("<!doctype html>")


def test_the_limits_are_taken(folder):
    port = free_port()
    process = started(next(line for line in commands(PAGE, "bash") if "--max_queue" in line), port, folder)
    assert get(port, "/v1/models")[0] == 200
    assert stopped(process) == 0


def test_keys_are_asked_for(folder):
    port = free_port()
    line = next(line for line in commands(PAGE, "bash") if "--api_key_file" in line)
    process = started(line.replace("--host 0.0.0.0 ", ""), port, folder)
    assert get(port, "/v1/models")[0] == 401
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/models", headers={"Authorization": "Bearer one-key"})
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
    assert stopped(process) == 0


def test_each_adapter_answers(folder):
    line = next(line for line in commands(PAGE, "bash") if "--adapters" in line)
    base = make_folder(folder / shlex.split(line)[2])
    for seed, name in enumerate(("support", "poems")):
        make_run(folder / f"out/{name}/final", base, seed, r=4, alpha=8)
    port = free_port()
    process = started(line, port, folder)
    names = [entry["id"] for entry in json.loads(get(port, "/v1/models")[1])["data"]]
    assert names == ["SmolLM2-135M-Instruct", "support", "poems"]
    asked = ({"model": name, "prompt": "Hi", "temperature": 0, "max_tokens": 20} for name in names)
    answers = [json.loads(post(port, "/v1/completions", body)) for body in asked]
    assert len({answer["choices"][0]["text"] for answer in answers}) == 3
    assert stopped(process) == 0


def test_litserve_answers_as_well(folder):
    port = free_port()
    process = started(next(line for line in commands(PAGE, "bash") if "litserve" in line), port, folder)
    assert json.loads(post(port, "/predict", {"prompt": "Emma was", "max_new_tokens": 5}))["output"]
    assert stopped(process) == 0


def test_the_unit_is_valid(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    (unit,) = fences(PAGE, "ini")
    executable = shutil.which("true")
    assert executable is not None
    file = tmp_path / "litgpt.service"
    file.write_text(unit.replace("/opt/litgpt/.venv/bin/litgpt", executable))  # it has to be there
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True)
    assert done.returncode == 0 and "litgpt.service" not in done.stderr, done.stderr


def test_the_unit_starts_what_litgpt_understands():
    from litgpt.cli.parser import parse
    from litgpt.deploy.serve import run_server

    (unit,) = fences(PAGE, "ini")
    (command,) = re.findall(r"^ExecStart=\S+/litgpt (.*)$", unit, flags=re.M)
    name, *arguments = shlex.split(command)
    parse(name, run_server, arguments)


def test_the_proxy_passes_streams_on(server, tmp_path):
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("needs nginx")
    (site,) = fences(PAGE, "nginx")
    port = free_port()
    site = site.replace("127.0.0.1:8000", f"127.0.0.1:{server}").replace("listen 80;", f"listen 127.0.0.1:{port};")
    temporary = "".join(
        f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(
        f"pid {tmp_path}/pid;\nerror_log {tmp_path}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{site}}}\n"
    )
    command = [nginx, "-p", str(tmp_path), "-c", str(configuration)]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    process = subprocess.Popen([*command, "-g", "daemon off;"])
    try:
        deadline = time.monotonic() + 20
        while get(port, "/health")[0] != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        body = {"stream": True, "max_tokens": 30, "prompt": "Emma was", "model": "austen-2m"}
        header = "Content-Type: application/json"
        done = subprocess.run(
            ["curl", "-sN", f"http://127.0.0.1:{port}/v1/completions", "-H", header, "-d", json.dumps(body)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.count("data: ") > 10
        assert get(port, "/metrics")[0] == 403
    finally:
        process.terminate()
        process.wait(20)

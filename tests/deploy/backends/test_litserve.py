"""`--server litserve`: the same answers through LitServe's processes."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest
import tokenizers
from litserve.utils import LitAPIStatus

from litgpt.deploy.backends.embeddings import embed
from litgpt.deploy.backends.litserve import EngineAPI, EngineCall, Loop, Outcome, QueueBackend, plain_served_models
from litgpt.deploy.backends.task import GenerationTask
from litgpt.deploy.served_models import load_served_models
from litgpt.deploy.settings import Loading, Settings
from litgpt.engine.inference_model import InferenceModel
from tests.deploy.lora_runs import make_run
from tests.deploy.served import GREEDY, alone
from tests.generate.folder import make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("litserve") / "tiny", block_size=256)


class Transport:
    """What a worker sends, in a list."""

    def __init__(self) -> None:
        self.sent: list[tuple] = []

    def send(self, item, consumer_id):
        self.sent.append(item)


def test_litserves_own_loop_drives_the_engine(folder):
    """Two requests of several answers each, one with a mistake and one task, by the loop as LitServe runs it."""
    api = EngineAPI(str(folder), "tiny", {}, Loading("cpu", "32-true", slots=2), at_once=4)
    api.pre_setup()
    api.setup("cpu")
    loop, transport, requests = api.loop, Transport(), queue.Queue()
    assert isinstance(loop, Loop)
    loop._restart_workers = False
    loop.pre_setup(api)
    inference_model = InferenceModel.load(folder, "cpu", "32-true")
    prompts = ["Hi", "Llamas eat", "Once"]
    tasks = [GenerationTask("tiny", inference_model.encode(prompt), GREEDY, 8) for prompt in prompts]
    requests.put((0, "two", 0.0, tasks[:2]))
    requests.put((0, "one", 0.0, tasks[2:]))
    requests.put((0, "wrong", 0.0, [GenerationTask("tiny", [99_999], GREEDY, 8)]))
    requests.put((0, "task", 0.0, EngineCall(embed, "tiny", (inference_model.encode("Hi"),))))

    async def run() -> None:
        scheduling = asyncio.create_task(loop.schedule_task(api, None, requests, transport))
        ended = 0
        while ended < 4:
            await loop.run(api, "cpu", 0, requests, transport, {}, None)
            await asyncio.sleep(0.01)
            ended = sum(status == LitAPIStatus.FINISH_STREAMING for _, (_, status, *_) in transport.sent)
        scheduling.cancel()

    asyncio.run(asyncio.wait_for(run(), 60))
    texts = {"two": ["", ""], "one": [""]}
    for uid, (content, status, *_) in transport.sent:
        if uid in texts and status == LitAPIStatus.OK:
            for delta in content:
                texts[uid][delta.choice] += delta.text
    assert texts["two"] + texts["one"] == [alone(inference_model, prompt, 8) for prompt in prompts]
    told = {uid: content for uid, (content, status, *_) in transport.sent if uid in ("wrong", "task") and content}
    assert "outside 0 ..." in str(told["wrong"])
    assert isinstance(told["task"], Outcome) and len(told["task"].value) == 32
    assert not api.has_active_requests()


@pytest.mark.parametrize("parses", [False, True])
def test_requests_are_read_as_by_the_default_server(folder, tmp_path, parses):
    """By the HTTP process, which has no weights: with the flag for special tokens, and the run's own tokenizer."""
    run = make_run(tmp_path / "run", folder, seed=1, r=2)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, run)
    tokenizer = tokenizers.Tokenizer.from_file(str(run / "tokenizer.json"))
    tokenizer.add_tokens(["llamas"])
    tokenizer.save(str(run / "tokenizer.json"))
    settings = Settings(run, Loading("cpu", "32-true", parse_special_tokens=parses), name="tiny")
    here = plain_served_models(str(run), settings)["tiny"].inference_model
    there = load_served_models(run, "tiny", {}, settings.loading, "cpu")["tiny"].inference_model
    assert here.tokenizer.largest_id == there.tokenizer.largest_id > InferenceModel.load(folder).tokenizer.largest_id
    assert here.model.transformer.wte.weight.shape == there.model.transformer.wte.weight.shape
    for prompt in ("Two llamas", "Hi<|im_end|>"):
        assert here.encode(prompt) == there.encode(prompt)
    end = here.tokenizer.token_to_id("<|im_end|>")
    assert here.encode("Hi<|im_end|>").count(end) == here.encode("Hi").count(end) + parses


def test_an_answer_that_is_cancelled_is_waited_for_no_longer():
    async def run() -> None:
        backend = QueueBackend(2, 100, "tiny")
        queues, app = {"/predict": queue.Queue()}, SimpleNamespace(response_queue_id=0)
        backend.connect(SimpleNamespace(response_buffer={}, litapi_request_queues=queues, app=app), "/predict")
        answers = await backend.open([GenerationTask("tiny", [1], GREEDY, 8)])
        assert backend.gauges()["answers_running"] == 1
        waiting = asyncio.create_task(answers.change())
        await asyncio.sleep(0)
        answers.cancel()
        await asyncio.wait_for(waiting, 5)
        assert backend.gauges()["answers_running"] == 0 and not backend.server.response_buffer

    asyncio.run(run())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def left_of(group: int) -> list[str]:
    """The command lines of the processes of a group."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        with suppress(OSError):
            if os.getpgid(process.pid) == group:
                found.append(" ".join(process.info["cmdline"] or []))
    return found


LONG = {"model": "tiny", "prompt": "Hi", "max_tokens": 200, "ignore_eos": True}


@contextmanager
def litserved(folder: Path, log: Path, *flags: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server once it answers: its address and its main process. No process of it may be left afterwards."""
    port = free_port()
    common = ["--server", "litserve", "--port", str(port), "--accelerator", "cpu", "--precision", "32-true"]
    command = [sys.executable, "-m", "litgpt", "serve", str(folder), *common, *flags]
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        answers(url, server, log)
        yield url, server
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and left_of(server.pid):
            time.sleep(0.2)
        assert not left_of(server.pid)
    finally:
        if left_of(server.pid):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Waits until the server does."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=30).status_code == 200:
                return
        assert server.poll() is None, log.read_text()
        time.sleep(0.5)


@pytest.mark.slow
def test_a_server_of_two_replicas(folder, tmp_path):
    openai = pytest.importorskip("openai")
    flags = ["--replicas", "2", "--api_key", "k3y", "--temperature", "0", "--max_new_tokens", "8"]
    headers = {"authorization": "Bearer k3y"}
    with litserved(folder, tmp_path / "log", *flags) as (url, server):
        inference_model = InferenceModel.load(folder, "cpu", "32-true")
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="k3y", max_retries=0)
        ask = dict(model="tiny", messages=[{"role": "user", "content": "Hi"}], max_tokens=12)
        answer = client.chat.completions.create(**ask, n=2)
        expected = alone(inference_model, "Hi", 12)
        assert [choice.message.content for choice in answer.choices] == [expected] * 2
        assert answer.usage.completion_tokens == 24 and answer.choices[0].finish_reason == "length"
        chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
        assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
        assert len({chunk.id for chunk in chunks}) == 1 and chunks[-1].usage.completion_tokens == 12
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()
        with pytest.raises(openai.BadRequestError, match="temperature is -1"):
            client.chat.completions.create(**ask, temperature=-1)
        assert len(client.embeddings.create(model="tiny", input="Hi").data[0].embedding) == 32
        client.close()
        predicted = httpx.post(f"{url}/predict", json={"prompt": "Hi"}, headers=headers, timeout=30).json()
        assert predicted == {"output": alone(inference_model, "Hi")}
        assert json.loads(httpx.get(f"{url}/info").text)["server"]["workers_per_device"] == 2
        with pytest.raises(httpx.ReadTimeout):  # a client that goes away
            httpx.post(f"{url}/v1/completions", json=LONG, headers=headers, timeout=0.2)
        deadline = time.monotonic() + 20
        while "litgpt_answers_running 0" not in httpx.get(f"{url}/metrics", headers=headers).text:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        with httpx.stream("POST", f"{url}/v1/completions", json=LONG | {"stream": True}, headers=headers) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert server.wait(60) == 0
    assert "k3y" not in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_a_replica_that_dies_ends_the_server_as_a_failure(folder, tmp_path):
    with litserved(folder, tmp_path / "log") as (_, server):
        spawned = [
            process for process in psutil.Process(server.pid).children() if "spawn_main" in str(process.cmdline())
        ]
        assert len(spawned) == 1
        spawned[0].kill()
        assert server.wait(60) == 1
    assert "one of its processes did" in (tmp_path / "log").read_text().splitlines()[-1]

"""Runs that the studio starts from recipes, previews and stops: real processes of the real command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from litgpt.cli.plan import COMMANDS
from litgpt.cli.recipe_files import recipe_names
from litgpt.cli.studio import recipe
from litgpt.cli.studio.app import make_app
from litgpt.cli.studio.processes import Processes, Started, began
from litgpt.cli.studio.recipe import ask
from litgpt.cli.studio.runs import RunFolder, RunFolders
from litgpt.deploy.access import Keys
from litgpt.errors import LitGPTError
from tests.cli.studio.test_runs import client_of, write_run
from tests.paths import ROOT

RECIPE = f"""
checkpoint_dir: {ROOT}/litgpt/assets/austen-2m
out_dir: OUT
precision: 32-true
data:
  class_path: JSON
  init_args:
    json_path: {ROOT}/litgpt/assets/instructions
    mask_prompt: true
train: {{max_steps: 100000, global_batch_size: 1, micro_batch_size: 1, log_interval: 1, max_seq_length: 256}}
eval: {{interval: 100000}}
"""


def note(folder: Path, **fields: object) -> RunFolder:
    """A run's folder as a studio leaves it after it has started a process."""
    own = folder / "studio"
    own.mkdir(parents=True)
    (own / "config.yaml").write_text("seed: 1\n")
    (own / "process.json").write_text(json.dumps(fields))
    return RunFolder(folder.name, folder)


def sleeping() -> subprocess.Popen[bytes]:
    """A process in a group of its own, which Ctrl-C ends even where the tests themselves ignore it."""
    sleep = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL); print('.', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", sleep], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.read(1)
    return process


@pytest.fixture
def sleeper():
    with sleeping() as process:
        yield process
        process.kill()


def test_a_process_is_known_by_its_number_and_its_beginning(sleeper):
    mark = began(sleeper.pid)
    assert mark and began(sleeper.pid) == mark and began(os.getpid()) != ""
    assert Started(sleeper.pid, mark, "pretrain").running
    assert not Started(sleeper.pid, "another time", "pretrain").running
    assert not Started(sleeper.pid, "", "pretrain").running and not Started(0, mark, "pretrain").running
    sleeper.kill()
    while began(sleeper.pid):  # it is a zombie now, which is nobody that runs
        time.sleep(0.01)
    assert not Started(sleeper.pid, mark, "pretrain").running


def test_another_studio_stops_what_one_has_started_and_nobody_elses(tmp_path, sleeper):
    runs = RunFolders(tmp_path)
    run = note(tmp_path / "mine", pid=sleeper.pid, began=began(sleeper.pid), command="pretrain")
    other = note(tmp_path / "old", pid=sleeper.pid, began="before the machine started", command="pretrain")
    log = write_run(tmp_path / "foreign", [1.0])
    client = client_of(tmp_path)
    told = {one["name"]: one for one in client.get("/api/runs").json()["runs"]}
    assert [(told[name]["started"], told[name]["active"]) for name in ("foreign", "mine", "old")] == [
        (False, True),
        (True, True),
        (True, False),
    ]
    assert log.path.exists()
    for name, sentence in {"foreign": "didn't start foreign", "old": "has ended", "../mine": "no run"}.items():
        refused = client.post("/api/stop", json={"name": name})
        assert refused.status_code == 400 and sentence in refused.json()["error"]["message"]
    assert sleeper.poll() is None
    assert client.post("/api/stop", json={"name": "mine"}).status_code == 200
    assert sleeper.wait(10) == -signal.SIGINT
    processes = Processes(runs)
    assert processes.state_of(run) == {"started": True, "active": False, "code": None, "stopped": True}
    assert not processes.state_of(other)["active"]


@pytest.mark.parametrize(
    "content", ["{}", "[]", "no", '{"pid": "1", "began": "x", "command": "y"}', '{"pid": 1, "x": 2}']
)
def test_a_note_that_is_none_stops_nothing(tmp_path, content):
    run = note(tmp_path / "run")
    (tmp_path / "run" / "studio" / "process.json").write_text(content)
    with pytest.raises(LitGPTError):
        Processes(RunFolders(tmp_path)).stop(run)
    assert "problem" in client_of(tmp_path).get("/api/runs").json()["runs"][0]


def test_a_page_elsewhere_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Processes, "start", lambda *_: pytest.fail("started"))
    client, content = client_of(tmp_path), b'{"command": "pretrain", "text": ""}'
    for headers in (
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {},
        {"Content-Type": "application/json", "Origin": "https://evil.example"},
        {"Content-Type": "application/json", "Origin": "null"},
        {"Content-Type": "application/json", "Origin": "http://127.0.0.1:9999"},
    ):
        refused = client.post("/api/start", content=content, headers=headers)
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "other_origin"
    monkeypatch.setattr(Processes, "start", lambda *_: "run")
    own = {"Content-Type": "application/json", "Origin": "http://127.0.0.1:8100"}
    assert client.post("/api/start", content=content, headers=own).json() == {"name": "run"}


def test_what_is_asked_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe.subprocess, "run", lambda *_, **__: pytest.fail("a process"))
    for command, text, sentence in (
        ("serve", "", "No training command is called 'serve'"),
        ("--help", "", "No training command"),
        ("pretrain", "x" * 100_001, "more than 100000 characters"),
    ):
        with pytest.raises(LitGPTError, match=sentence):
            ask("check", command, text)


def test_every_recipe_is_offered(tmp_path):
    client = client_of(tmp_path)
    told = client.get("/api/recipes").json()
    assert [one["name"] for one in told["recipes"]] == recipe_names() and told["commands"] == list(COMMANDS)
    one = client.get("/api/recipe", params={"name": "finetune/smollm2-135m/lora"}).json()
    assert one["command"] == "finetune_lora" and one["text"].startswith("# LoRA of a small chat model")
    assert client.get("/api/recipe", params={"name": "../../pyproject"}).status_code == 400


def test_a_run_goes_only_where_the_studio_sees_it(tmp_path, monkeypatch):
    told = {"resume": False}
    monkeypatch.setattr("litgpt.cli.studio.processes.ask", lambda *_: told)
    processes = Processes(RunFolders(tmp_path / "out"))
    write_run(tmp_path / "out" / "used", [1.0])
    (tmp_path / "out" / "away").symlink_to(tmp_path)
    for place, sentence in {
        "elsewhere": "give a folder inside",
        "out": "give a folder inside",
        "out/../else": "give a folder inside",
        "out/away/x": "give a folder inside",
        "out/a/b/c/d/e/f": "give a folder inside",
        "out/used": "holds a run already",
    }.items():
        told["out_dir"] = str((tmp_path / place).resolve())
        with pytest.raises(LitGPTError, match=sentence):
            processes.start("pretrain", "")


@pytest.mark.slow
def test_a_recipe_is_checked_previewed_started_and_stopped(tmp_path, monkeypatch):
    """As its user would: a mistake in a sentence, what is learned, a run that logs, and saves when it is stopped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    runs = RunFolders(tmp_path / "out")
    text = RECIPE.replace("OUT", "out/mine")
    client = TestClient(make_app(runs, Keys(), None), base_url="http://127.0.0.1")
    body = {"command": "finetune_lora", "text": text.replace("max_steps", "max_step")}
    refused = client.post("/api/check", json=body)
    message = refused.json()["error"]["message"]
    assert refused.status_code == 400 and "the recipe: train has no argument 'max_step'. Closest: max_steps" in message
    assert not (tmp_path / "out").exists()
    body["text"] = text
    shown = client.post("/api/preview", json=body).json()
    pieces = shown["samples"][0]["pieces"]
    assert [learned for _, learned in pieces] == [False, True] and pieces[1][0].endswith("<|endoftext|>")
    assert "of them targets" in shown["summary"]
    assert client.post("/api/start", json=body).json() == {"name": "mine"}
    assert "A run goes on in" in client.post("/api/start", json=body).json()["error"]["message"]
    told = wait(client, lambda run: (run.get("step") or 0) >= 3)
    assert told["active"] and told["started"] and told["loss"] > 0
    client = TestClient(make_app(RunFolders(tmp_path / "out"), Keys(), None), base_url="http://127.0.0.1")  # anew
    assert client.post("/api/stop", json={"name": "mine"}).status_code == 200
    told = wait(client, lambda run: not run["active"])
    assert told["stopped"] and list((tmp_path / "out" / "mine").glob("step-*/lit_model.pth.lora"))
    log = client.get("/api/run", params={"name": "mine"}).json()["log"]
    assert "Traceback" not in log and "resume" in log


@pytest.mark.slow
def test_the_command_listens_and_ends(tmp_path):
    line = [sys.executable, "-m", "litgpt", "studio", "--runs", str(tmp_path), "--port", "0", "--api_key", "secret"]
    process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stderr is not None
    address = next(said for said in process.stderr if "Ready at " in said).rpartition(" ")[2].strip()
    assert httpx.get(address).text.startswith("<!doctype html>") and httpx.get(f"{address}/api/runs").status_code == 401
    told = httpx.get(f"{address}/api/runs", headers={"Authorization": "Bearer secret"}).json()
    assert told == {"folder": str(tmp_path.resolve()), "runs": []}
    process.terminate()
    assert process.wait(20) == 0
    process.stderr.close()


def wait(client: TestClient, until) -> dict:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        (run,) = client.get("/api/runs").json()["runs"]
        if until(run):
            return run
        time.sleep(0.2)
    pytest.fail(f"{run} {client.get('/api/run', params={'name': run['name']}).json()['log']}")

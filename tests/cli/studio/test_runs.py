"""What the studio reads of a run, and who may ask for it."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from litgpt.cli.studio import runs as studio_runs
from litgpt.cli.studio.app import make_app
from litgpt.cli.studio.command import studio
from litgpt.cli.studio.runs import RunFolders, thinned
from litgpt.deploy.access import Keys, names_of_server
from litgpt.errors import LitGPTError, UnknownNameError
from litgpt.training.metrics.loggers import CSVLog


def write_run(folder: Path, losses: list[float]) -> CSVLog:
    """A run as training logs it."""
    log = CSVLog(folder / "logs" / "csv")
    for step, loss in enumerate(losses, start=1):
        log.log_metrics({"loss": loss, "tokens_per_second": 100.0 * step, "peak_memory_gb": 1.5}, step=step)
    log.log_metrics({"val_loss": losses[-1] + 1}, step=len(losses))
    log.log_sample(len(losses), "<b>said</b>")
    return log


@pytest.fixture
def root(tmp_path) -> Path:
    write_run(tmp_path / "out" / "finetune" / "one", [3.0, 2.0, math.nan])
    write_run(tmp_path / "out" / "two", [4.0, 1.5])
    (tmp_path / "out" / "empty").mkdir()
    write_run(tmp_path / "elsewhere", [9.0])
    (tmp_path / "out" / "link").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "out"


def client_of(root: Path, *keys: str) -> TestClient:
    app = make_app(RunFolders(root), Keys(keys), names_of_server("127.0.0.1", (), bool(keys)))
    return TestClient(app, base_url="http://127.0.0.1:8100", raise_server_exceptions=False)


def test_runs_are_found_with_their_last_numbers(root):
    told = client_of(root).get("/api/runs").json()["runs"]
    assert [run["name"] for run in told] == ["finetune/one", "two"]
    assert [(run["step"], run["loss"], run["val_loss"], run["active"]) for run in told] == [
        (3, None, None, True),
        (2, 1.5, 2.5, True),
    ]


def test_a_run_has_its_curves_and_samples(root):
    told = client_of(root).get("/api/run", params={"name": "finetune/one"}).json()
    assert told["curves"]["loss"] == [[1, 3.0], [2, 2.0], [3, None]]
    assert told["curves"]["val_loss"] == [[3, None]]
    assert told["samples"] == [[3, "<b>said</b>"]]


def test_a_new_row_is_seen_and_a_report_ends_a_run(root):
    client, log = client_of(root), CSVLog(root / "two" / "logs" / "csv", 2)
    before = client.get("/api/runs").json()["runs"][1]
    log.log_metrics({"loss": 0.5}, step=3)
    after = client.get("/api/runs").json()["runs"][1]
    assert after["stamp"] != before["stamp"] and after["loss"] == 0.5 and after["active"]
    (root / "two" / "report.html").write_text("done")
    assert not client.get("/api/runs").json()["runs"][1]["active"]
    os.unlink(root / "two" / "report.html")
    for file in (root / "two").rglob("*.csv"):
        os.utime(file, (1, 1))
    assert not client.get("/api/runs").json()["runs"][1]["active"]  # silent for long: killed, say


@pytest.mark.parametrize(
    "name", ["../elsewhere", "link", "/etc", "two/../two", "", "two/", "two\x00", "zwei", "." * 5000]
)
def test_only_names_that_were_found_are_runs(root, name):
    folders = RunFolders(root)
    folders.scan()
    with pytest.raises(UnknownNameError, match="There is no run"):
        folders[name]
    answer = client_of(root).get("/api/run", params={"name": name})
    assert answer.status_code == 400 and "There is no run" in answer.json()["error"]["message"]


def test_a_file_that_is_too_large_or_none_is_told_and_the_others_are_shown(root, monkeypatch):
    file = root / "two" / "logs" / "csv" / "version_0" / "metrics.csv"
    file.write_text("step,loss\n1,one\n")
    bad, good = (client_of(root).get("/api/runs").json()["runs"])[::-1]
    assert "is no metrics file" in bad["problem"] and good["step"] == 3
    monkeypatch.setattr(studio_runs, "MAX_BYTES", 10)
    assert "MB" in client_of(root).get("/api/runs").json()["runs"][0]["problem"]


def test_a_curve_keeps_its_ends_and_little_between():
    curve = [(float(step), 1.0) for step in range(100_000)]
    assert len(thinned(curve)) == studio_runs.POINTS
    assert thinned(curve)[0] == curve[0] and thinned(curve)[-1] == curve[-1]
    assert thinned(curve[:7]) == curve[:7]


def test_searching_ends(tmp_path, monkeypatch):
    for number in range(20):
        write_run(tmp_path / f"run-{number}", [1.0])
    monkeypatch.setattr(studio_runs, "MAX_RUNS", 5)
    assert len(RunFolders(tmp_path).scan()) == 5
    deep = tmp_path.joinpath(*"abcdefghij")
    write_run(deep, [1.0])
    monkeypatch.setattr(studio_runs, "MAX_RUNS", 100)
    assert len(RunFolders(tmp_path).scan()) == 20
    assert RunFolders(tmp_path / "none").scan() == []


def test_keys_and_names_are_asked_for_as_by_serve(root):
    client = client_of(root, "secret")
    assert (
        client.get("/").status_code == 200
        and "script-src 'sha256-" in client.get("/").headers["content-security-policy"]
    )
    api = list(client.app.openapi()["paths"])
    assert api and all(path.startswith("/api/") for path in api)
    for path in api:
        assert {client.request(method, path, json={}).status_code for method in ("GET", "POST")} == {401}
    assert client.get("/api/runs", headers={"Authorization": "Bearer secret"}).status_code == 200
    rebound = client_of(root).get("/api/runs", headers={"Host": "evil.example"})
    assert rebound.status_code == 403 and json.loads(rebound.content)["error"]["code"] == "invalid_host"


def test_others_reach_it_with_a_key_only(tmp_path):
    with pytest.raises(LitGPTError, match="give a key by --api_key"):
        studio(tmp_path, host="0.0.0.0")
    (tmp_path / "file").write_text("")
    with pytest.raises(LitGPTError, match="is a file"):
        studio(tmp_path / "file")

"""What a run logs, and what its loggers and its report get."""

from __future__ import annotations

import errno
import platform
import subprocess
from contextlib import nullcontext

import pytest
import torch

from litgpt.args import EvalArgs
from litgpt.errors import LitGPTError
from litgpt.training.loop import fit
from litgpt.training.metrics import metrics as run_metrics
from litgpt.training.metrics.machine import commit
from tests.training.runs import Killed, make_run, make_samples

pytestmark = pytest.mark.usefixtures("no_picture")


def test_speed_is_tokens_by_seconds_of_training(tmp_path):
    result = fit(make_run(tmp_path))
    assert result.tokens_per_second == pytest.approx(result.tokens / result.seconds)


def test_what_the_model_said_is_kept_over_a_resume(tmp_path, monkeypatch):
    reports = []
    monkeypatch.setattr(run_metrics, "write_report", lambda report, path: reports.append(report))
    data = dict(val_dataset=make_samples([9]), eval=EvalArgs(interval=1), sample=lambda step: f"said after {step}")
    fit(make_run(tmp_path, train={"max_steps": 4, "save_interval": 2}, **data))
    fit(make_run(tmp_path / "there", train={"max_steps": 3}, resume=tmp_path / "step-000002", **data))
    assert reports[1].samples == [(step, f"said after {step}") for step in (1, 2, 3)]
    assert [row["step"] for row in reports[1].rows if "loss" in row] == [1, 2, 3]


def test_loggers_are_told_how_it_ended(tmp_path):
    class Listening:
        ended = ""

        def log_metrics(self, metrics, step=None): ...

        def finalize(self, status):
            self.ended = status

    good, bad = Listening(), Listening()
    fit(make_run(tmp_path, loggers=[good]))
    with pytest.raises(Killed):
        fit(
            make_run(
                tmp_path,
                loggers=[bad],
                val_dataset=make_samples([9]),
                eval=EvalArgs(interval=1),
                sample=lambda step: (_ for _ in ()).throw(Killed),
            )
        )
    assert (good.ended, bad.ended) == ("success", "failed")


def test_a_full_disk_at_the_very_end_costs_the_report_alone(tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_metrics, "write_report", full)
    result = fit(make_run(tmp_path))
    assert (result.final / "lit_model.pth").is_file()
    printed = capsys.readouterr().out
    assert "The report is not written: " in printed and f"What was trained is safe in {result.final}" in printed


def test_a_full_disk_on_the_way_is_one_sentence(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_metrics.CSVLog, "log_metrics", full)
    with pytest.raises(LitGPTError, match="The disk is full: "):
        fit(make_run(tmp_path))


@pytest.mark.parametrize("fails", [False, True])
def test_the_report_counts_what_completes_a_folder_and_says_what_it_was_made_on(tmp_path, monkeypatch, fails):
    reports = []
    monkeypatch.setattr(run_metrics, "write_report", lambda report, path: reports.append(report))

    def complete(folder):
        (folder / "merged").write_bytes(bytes(3_000_000))
        if fails:
            raise LitGPTError("no room for the rest")

    run = make_run(tmp_path, complete=complete)
    with pytest.raises(LitGPTError, match="no room") if fails else nullcontext():
        fit(run)
    (report,) = reports
    assert float(dict(report.kept)["final"].split()[0]) > 3
    rows = dict(report.summary)
    assert rows["Device"] == "CPU" and torch.__version__ in rows["Versions"] and platform.node() in rows["Machine"]


def test_the_commit_of_a_checkout(tmp_path):
    assert commit(tmp_path) == ""
    (tmp_path / "file").write_text("one")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for line in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *line], check=True)
    found = commit(tmp_path)
    assert len(found) == 40
    (tmp_path / "file").write_text("two")
    assert commit(tmp_path) == f"{found}, with changes"

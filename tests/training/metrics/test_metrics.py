"""What a run logs, and what its loggers and its report get."""

from __future__ import annotations

import pytest

from litgpt.args import EvalArgs
from litgpt.training.loop import fit
from litgpt.training.metrics import metrics as run_metrics
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

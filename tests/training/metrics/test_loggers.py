"""Metrics in a CSV file, and loggers by name."""

from __future__ import annotations

import importlib.util

import pytest

from litgpt.args import LogArgs
from litgpt.errors import LitGPTError
from litgpt.training.metrics import loggers
from litgpt.training.metrics.loggers import CSVLog, named_loggers, read_metrics, read_samples


def test_rows_are_on_disk_at_once_and_new_columns_join(tmp_path):
    log = CSVLog(tmp_path)
    log.log_metrics({"loss": 2.0}, step=1)
    assert read_metrics(log.path) == [{"loss": 2.0, "step": 1.0}]
    log.log_metrics({"val_loss": 3.0}, step=1)
    log.log_metrics({"loss": 1.5}, step=2)
    assert log.path == tmp_path / "version_0" / "metrics.csv"
    assert log.path.read_text().splitlines() == ["loss,step,val_loss", "2.0,1,", ",1,3.0", "1.5,2,"]


def test_each_run_has_a_version_of_its_own(tmp_path):
    for version in range(2):
        log = CSVLog(tmp_path)
        log.log_metrics({"loss": float(version)}, step=1)
        assert log.path.parent.name == f"version_{version}"


def test_a_resumed_run_goes_on_in_the_newest_and_drops_what_came_after(tmp_path):
    log = CSVLog(tmp_path)
    for step in range(1, 6):
        log.log_metrics({"loss": float(step)}, step=step)
    again = CSVLog(tmp_path, resume_step=3)
    again.log_metrics({"loss": 40.0}, step=4)
    assert [row["loss"] for row in read_metrics(log.path)] == [1.0, 2.0, 3.0, 40.0]


def test_a_validation_that_the_resumed_run_makes_anew_is_dropped(tmp_path):
    """A run that a signal stops before its validation has saved that step without it."""
    log = CSVLog(tmp_path)
    for step in (2, 4):
        log.log_metrics({"loss": 1.0}, step=step)
        log.log_metrics({"val_loss": 1.0}, step=step)
        log.log_sample(step, "said")
    again = CSVLog(tmp_path, resume_step=4, validated=2)
    assert [(row["step"], "val_loss" in row) for row in again.rows] == [(2, False), (2, True), (4, False)]
    assert [step for step, _ in again.samples] == [2]


def test_no_file_has_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.csv") == []


def test_csv_needs_no_logger_of_its_own(tmp_path):
    assert named_loggers("csv", tmp_path, LogArgs()) == []


def test_an_unknown_logger_is_one_sentence(tmp_path):
    with pytest.raises(LitGPTError, match=r"Unknown logger 'tensorbord'\. Closest: tensorboard"):
        named_loggers("tensorbord", tmp_path, LogArgs())


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "litlogger"])
def test_a_logger_whose_package_is_absent_is_refused_or_left_out_aloud(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr("litgpt.training.metrics.loggers.find_spec", lambda package: None)
    with pytest.raises(LitGPTError, match=f"The logger {name} needs the package {name}, which is not installed"):
        named_loggers(name, tmp_path, LogArgs())
    assert named_loggers(name, tmp_path, LogArgs(), required=False) == []
    assert "CSV only" in capsys.readouterr().out


def test_a_logger_that_cannot_log_in_is_one_sentence(tmp_path, monkeypatch):
    def leave(out_dir, log):
        raise SystemExit(0)

    monkeypatch.setitem(loggers.LOGGERS, "litlogger", (("json",), leave))
    with pytest.raises(LitGPTError, match="The logger litlogger can't start"):
        named_loggers("litlogger", tmp_path, LogArgs())


def test_half_a_line_of_a_killed_run_is_no_row(tmp_path):
    log = CSVLog(tmp_path)
    log.log_metrics({"loss": 1.0}, step=11)
    with log.path.open("a") as file:
        file.write("2.0,1")  # of 12
    assert read_metrics(log.path) == [{"loss": 1.0, "step": 11.0}]


def test_samples_go_on_too_and_half_a_line_is_none(tmp_path):
    log = CSVLog(tmp_path)
    for step in (1, 2, 3):
        log.log_sample(step, f"said\n{step}")
    path = log.path.with_name("samples.jsonl")
    path.write_text(path.read_text() + '{"step": 4, "te')
    again = CSVLog(tmp_path, resume_step=2)
    again.log_sample(3, "again")
    assert read_samples(path) == [(1, "said\n1"), (2, "said\n2"), (3, "again")]


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed")
def test_tensorboard_writes_events(tmp_path):
    (logger,) = named_loggers("tensorboard", tmp_path, LogArgs())
    logger.log_metrics({"loss": 2.0}, step=1)
    logger.finalize("success")
    assert list((tmp_path / "logs" / "tensorboard").rglob("events.out.tfevents*"))

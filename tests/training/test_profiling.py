"""Traces of steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from litgpt.training.loop import fit
from tests.training.runs import column, make_run


@pytest.mark.parametrize("steps", [5, 3])
def test_steps_are_traced_from_the_third_on_also_where_the_run_ends_before_the_last(steps: int, tmp_path: Path) -> None:
    fit(make_run(tmp_path, train=dict(max_steps=steps, epochs=None, profile=2)))
    events = json.loads((tmp_path / "profile.json").read_text())["traceEvents"]
    names = {event["name"] for event in events if event["name"].startswith("ProfilerStep#")}
    assert "ProfilerStep#2" in names and "ProfilerStep#1" not in names
    assert steps == 3 or names == {"ProfilerStep#2", "ProfilerStep#3"}
    assert "aten::mm" in (tmp_path / "profile.txt").read_text()
    fit(make_run(tmp_path / "plain", train=dict(max_steps=steps, epochs=None)))
    assert column(tmp_path, "loss") == column(tmp_path / "plain", "loss")
    assert not (tmp_path / "plain" / "profile.json").exists()


def test_a_run_that_is_too_short_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(make_run(tmp_path, train=dict(max_steps=1, epochs=None, profile=2)))
    assert "No profile was written" in capsys.readouterr().out
    assert not list(tmp_path.glob("profile*"))

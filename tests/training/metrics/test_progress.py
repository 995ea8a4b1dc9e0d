"""What is shown while training."""

from __future__ import annotations

import io
import sys

import pytest

from litgpt.training.metrics.progress import BAR, Screen, duration
from litgpt.training.schedule import Counters, RunLimits


@pytest.mark.parametrize(
    ("seconds", "text"), [(5, "0:05"), (185.4, "3:05"), (3723, "1:02:03"), (2 * 86400 + 3723, "2 d 1:02:03")]
)
def test_durations_read_like_a_clock(seconds, text):
    assert duration(seconds) == text


METRICS = {
    "epoch": 0.5,
    "loss": 1.23456,
    "learning_rate": 3e-4,
    "tokens_per_second": 12345.6,
    "target_tokens_per_second": 8000.2,
    "padded_tokens_per_second": 13000.0,
    "peak_memory_gb": 1.234,
    "remaining_time": 65.0,
}


def test_a_line_has_step_loss_speed_and_time_left():
    said: list[str] = []
    limits = RunLimits(max_steps=10, max_samples=None, max_tokens=None, max_time=None)
    screen = Screen(said.append, limits)
    screen.step(Counters(step=5), METRICS)
    speeds = "12,346 tokens/s (8,000 target, 13,000 padded) | 1.23 GB"
    assert said == [f"step 5/10 | epoch 0.50 | loss 1.2346 | lr 3.00e-04 | {speeds} | 1:05 left"]


def test_a_terminal_gets_a_bar_with_all_there_is_cut_to_its_width(monkeypatch):
    written = io.StringIO()
    monkeypatch.setattr(sys, "stdout", written)
    monkeypatch.setenv("COLUMNS", "60")
    limits = RunLimits(max_steps=10, max_samples=None, max_tokens=None, max_time=None)
    screen = Screen(print, limits, in_place=True, val_loss=1.5)
    screen.step(Counters(step=5), METRICS)
    screen.print("something else")
    bar = screen.bar(Counters(step=5), METRICS)
    speeds = "12,346 tokens/s (8,000 target, 13,000 padded)"
    assert bar.endswith(f" 50% step 5/10 | loss 1.2346 | val 1.5000 | 1:05 left | {speeds} | 1.23 GB | lr 3.0e-04")
    assert written.getvalue() == f"\r\x1b[K{bar[:59]}\nsomething else\n"


@pytest.mark.parametrize(("encoding", "full"), [("ascii", "#"), ("utf-8", "━")])
def test_the_bar_is_as_long_as_the_run_is_far(monkeypatch, encoding, full):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    limits = RunLimits(max_steps=10, max_samples=None, max_tokens=None, max_time=None)
    bars = [Screen(print, limits).bar(Counters(step=step), METRICS) for step in (0, 5, 10)]
    assert [bar.count(full) for bar in bars] == [0, BAR // 2, BAR]

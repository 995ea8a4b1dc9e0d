"""What is shown while training."""

from __future__ import annotations

import io
import re
import sys

import pytest

from litgpt.training.metrics.progress import Screen, duration
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


LIMITS = RunLimits(max_steps=10, max_samples=None, max_tokens=None, max_time=None)
SPEEDS = "12,346 tokens/s (8,000 target, 13,000 padded) | 1.23 GB"


def test_a_line_has_step_loss_speed_and_time_left():
    said: list[str] = []
    Screen(said.append, LIMITS, n_steps=10).step(Counters(step=5), METRICS)
    assert said == [f"step 5/10 | epoch 0.50 | loss 1.2346 | lr 3.00e-04 | {SPEEDS} | 1:05 left"]


def test_no_progress_of_a_validation_stands_in_a_file():
    said: list[str] = []
    Screen(said.append, LIMITS).validating(3, 7)
    assert not said


class Terminal(io.TextIOWrapper):
    """A terminal of `$COLUMNS` columns, which keeps what is written."""

    def isatty(self) -> bool:
        return True

    @property
    def shown(self) -> str:
        """What was written, without colours."""
        self.flush()
        raw = self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]
        return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", raw)


def terminal_of(monkeypatch: pytest.MonkeyPatch, encoding: str, columns: int) -> Terminal:
    """Standard output as a terminal from here on (not in a fixture: each phase of a test has another output)."""
    terminal = Terminal(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    return terminal


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_terminal_gets_a_bar_with_all_there_is_cut_nowhere(encoding, columns, monkeypatch):
    terminal = terminal_of(monkeypatch, encoding, columns)
    screen = Screen(lambda text: print(text), LIMITS, in_place=True, n_steps=10, val_loss=1.5)
    screen.step(Counters(step=5), METRICS)
    screen.print("something else")
    screen.close()
    shown = terminal.shown
    words = re.sub("[━╺╸]", " ", shown).split()
    expected = f"50% step 5/10 | loss 1.2346 | val 1.5000 | 1:05 left | {SPEEDS} | lr 3.0e-04"
    assert set(expected.split()) <= set(words)
    assert "something else" in shown
    assert all(len(line) <= columns for line in re.split(r"[\r\n]", shown.replace("something else", "\n")))


def test_a_validation_is_seen_to_go_on(monkeypatch):
    terminal = terminal_of(monkeypatch, "utf-8", 100)
    screen = Screen(lambda text: print(text), LIMITS, in_place=True)
    screen.validating(0, 2000)
    screen.validating(1234, 2000)
    screen.close()
    assert "validating 0/2,000" in terminal.shown and "validating 1,234/2,000" in terminal.shown
    assert sys.stdout is terminal

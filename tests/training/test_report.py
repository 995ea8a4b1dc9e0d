"""The picture of the loss."""

from __future__ import annotations

import pytest

from litgpt.training.report import draw_loss, smoothed

ROWS = [
    {"step": 1.0, "loss": 4.0, "learning_rate": 1e-4},
    {"step": 2.0, "loss": 3.5, "learning_rate": 1e-3},
    {"step": 2.0, "val_loss": 3.6},
]


@pytest.mark.parametrize("rows", [ROWS, ROWS[:2], ROWS[2:], []], ids=["both", "training", "validation", "nothing"])
def test_a_picture_is_drawn_of_whatever_there_is(tmp_path, rows):
    path = draw_loss(rows, tmp_path / "new" / "loss.png", title="a run")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_smoothing_keeps_a_constant_and_starts_at_the_first_value():
    assert smoothed([2.0] * 5) == pytest.approx([2.0] * 5)
    assert smoothed([3.0, 1.0]) == [3.0, 1.0]  # a few are shown as they are
    many = smoothed([3.0] + [1.0] * 99)
    assert many[0] == 3.0 and 1.0 < many[1] < 3.0 and many[-1] == pytest.approx(1.0, abs=0.01)

"""Where `--resume` points to."""

from __future__ import annotations

from pathlib import Path

import pytest

from litgpt.errors import LitGPTError
from litgpt.training.state import STATE_FILE, resume_point


@pytest.fixture
def out_dir(tmp_path) -> Path:
    for step in (2, 10):
        (tmp_path / f"step-{step:06}").mkdir()
        (tmp_path / f"step-{step:06}" / STATE_FILE).touch()
    (tmp_path / "step-000099").mkdir()  # without a state: not to be resumed from
    (tmp_path / "final").mkdir()
    return tmp_path


@pytest.mark.parametrize("word", [True, "true", "auto"])
def test_the_newest_step_with_a_state(out_dir, word):
    assert resume_point(word, out_dir) == out_dir / "step-000010"


@pytest.mark.parametrize("word", [False, "false"])
def test_not_at_all(out_dir, word):
    assert resume_point(word, out_dir) is None


def test_auto_starts_where_there_is_nothing(tmp_path):
    assert resume_point("auto", tmp_path) is None


@pytest.mark.parametrize("place", ["step-000002", f"step-000002/{STATE_FILE}", "."])
def test_a_folder_a_file_in_it_or_the_folder_above(out_dir, place):
    expected = "step-000010" if place == "." else "step-000002"
    assert resume_point(out_dir / place, Path("elsewhere")) == out_dir / expected


@pytest.mark.parametrize(
    ("what", "sentence"),
    [(True, "nothing to resume from"), ("final", "--initial_checkpoint_dir"), ("nowhere", "does not exist")],
)
def test_nothing_there_is_one_sentence(tmp_path, what, sentence):
    (tmp_path / "final").mkdir()
    with pytest.raises(LitGPTError, match=sentence):
        resume_point(what if what is True else tmp_path / str(what), tmp_path)

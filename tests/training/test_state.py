"""Where `--resume` points to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from litgpt.errors import LitGPTError
from litgpt.training.metrics.validation import Validations
from litgpt.training.schedule import Counters
from litgpt.training.state import NESTED, STATE_FILE, check_optimizer_state, numbers, resume_point


@pytest.fixture
def out_dir(tmp_path) -> Path:
    for step in (2, 10):
        (tmp_path / f"step-{step:06}").mkdir()
        (tmp_path / f"step-{step:06}" / STATE_FILE).touch()
    (tmp_path / "step-000099").mkdir()  # with nothing in it: not to be resumed from
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


def litgpt_step(folder: Path, **more: object) -> Path:
    """What LitGPT 0.5.13's finetune_full (and pretrain) leave: all in one file."""
    folder.mkdir(parents=True)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iter_num": 8, "step_count": 2, **more}
    torch.save(state, folder / "lit_model.pth")
    return folder


@pytest.mark.parametrize("resume", [True, "auto", ".", "step-000007", "step-000007/lit_model.pth"])
@pytest.mark.parametrize("more", [{"scheduler": {"last_epoch": 2}}, {"train_dataloader": nn.Module()}])
@pytest.mark.parametrize("beside_ours", [False, True])
def test_what_litgpt_left_is_named_and_not_overlooked(tmp_path, out_dir, resume, more, beside_ours):
    place = out_dir if beside_ours else tmp_path / "litgpts"
    litgpt_step(place / "step-000007", **more)
    with pytest.raises(LitGPTError, match="step-000007 is LitGPT's own.*; to start anew from its weights"):
        resume_point(resume if resume in (True, "auto") else place / str(resume), place)
    assert resume_point(out_dir / "step-000002", place) == out_dir / "step-000002"


@pytest.mark.parametrize("file", ["lit_model.pth", "lit_model.pth.lora", "hyperparameters.yaml", ".lit_model.pth.part"])
@pytest.mark.parametrize("step", ["step-000001", "step-00000500"])
def test_what_is_incomplete_is_not_overlooked(out_dir, file, step):
    (out_dir / step).mkdir()
    (out_dir / step / file).write_bytes(b"cut off")
    for resume in (True, "auto", out_dir):
        with pytest.raises(LitGPTError, match=f"{step} has no {STATE_FILE}"):
            resume_point(resume, out_dir)


# ------------------------------------------------------------------------------------------- what a file may claim


OPTIMIZERS = [
    "AdamW",
    "Adam",
    "NAdam",
    "RAdam",
    "Adamax",
    "Adagrad",
    "RMSprop",
    "Adadelta",
    "SGD",
    "Adafactor",
    "Rprop",
]


def trained(name: str) -> torch.optim.Optimizer:
    """An optimizer that has taken a step over a matrix, a bias and a norm."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6))
    optimizer: torch.optim.Optimizer = getattr(torch.optim, name)(
        model.parameters(), lr=0.01, **({"momentum": 0.9} if name == "SGD" else {})
    )
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_an_optimizer_saved_is_taken_back(name):
    optimizer = trained(name)
    check_optimizer_state(optimizer, optimizer.state_dict())


def test_parts_that_bitsandbytes_nests_are_held_too():
    optim = pytest.importorskip("bitsandbytes.optim")
    model = nn.Linear(64, 128)
    optimizer = optim.AdamW8bit(model.parameters(), lr=0.01)
    model(torch.randn(2, 64)).sum().backward()
    optimizer.step()
    check_optimizer_state(optimizer, optimizer.state_dict())
    saved = optimizer.state_dict()
    saved["state"][0][NESTED]["state1"] = torch.zeros(4)
    with pytest.raises(ValueError, match="state1"):
        check_optimizer_state(optimizer, saved)


OTHER_TENSORS = [
    torch.zeros(0),
    torch.zeros(1),
    torch.zeros(3, 3),
    torch.zeros(4, 6),
    torch.zeros(6, 4, 1),
    torch.zeros(6, 4).to_sparse(),
    torch.zeros(6, 4, dtype=torch.complex64),
    "text",
    [0.0] * 24,
    {},
]


@pytest.mark.parametrize("other", OTHER_TENSORS, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_part_of_another_shape_or_kind_is_taken(name, other):
    """Fused steps would read and write beyond a tensor that is too small."""
    optimizer = trained(name)
    for part, value in optimizer.state_dict()["state"][0].items():
        if isinstance(other, torch.Tensor) and isinstance(value, torch.Tensor) and other.shape == value.shape:
            continue
        saved = optimizer.state_dict()
        saved["state"] = {number: dict(state) for number, state in saved["state"].items()}
        saved["state"][0][part] = other
        if part == "step" and isinstance(other, torch.Tensor) and other.numel() == 1:
            continue
        with pytest.raises(ValueError, match=part):
            check_optimizer_state(optimizer, saved)


def test_a_part_that_is_missing_or_a_parameter_too_many_is_told():
    optimizer = trained("AdamW")
    saved = optimizer.state_dict()
    del saved["state"][2]["exp_avg"]
    with pytest.raises(ValueError, match="others of its kind"):
        check_optimizer_state(optimizer, saved)
    with pytest.raises(ValueError, match="beyond the 4"):
        check_optimizer_state(optimizer, {"state": {7: {}}})


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.floats(), max_size=3)
)


@given(
    st.sampled_from([Counters, Validations]), st.dictionaries(st.sampled_from(["step", "losses", "loss", "x"]), VALUES)
)
@settings(max_examples=200, deadline=None)
def test_counters_are_numbers_of_their_kind_or_refused(kind, values):
    try:
        made = numbers(kind, values)
    except (ValueError, LookupError):
        return
    assert isinstance(made.step, int)
    assert all(isinstance(loss, int | float) for loss in getattr(made, "losses", []))

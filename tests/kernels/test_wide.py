"""float32 weights that are stored another way give the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from litgpt import LLM
from litgpt.generate.engine import Engine
from litgpt.generate.sampling import Sampling
from litgpt.kernels import wide
from litgpt.kernels.wide import FEW, MANY, is_transposed, rearrange

from ..generate.folder import make_folder

PLENTY = 2**30


@pytest.fixture(autouse=True)
def fits(monkeypatch) -> None:
    """Every processor computes this way, if not faster."""
    monkeypatch.setattr(wide, "FITS", True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, FEW + 1])
@pytest.mark.parametrize("shape", [(0, 24), (1, 24), (1, 1, 24), (3, 24), (2, 5, 24), (MANY + 1, 24)])
@pytest.mark.parametrize("rows", [20, 40, 333])
def test_the_same_numbers(bias, tokens, shape, rows, monkeypatch):
    monkeypatch.setattr(wide, "ROWS", 100)
    torch.manual_seed(0)
    plain = nn.Linear(24, rows, bias=bias)
    other = copy.deepcopy(plain)
    rearrange(other, tokens, PLENTY)
    assert is_transposed(other.weight) is (rows >= 24 and tokens == 1)
    x = torch.randn(shape)
    with torch.no_grad():
        y = other(x)
        torch.testing.assert_close(y, plain(x))
    assert y.is_contiguous()
    other(x).sum().backward()
    plain(x).sum().backward()
    torch.testing.assert_close(other.weight.grad, plain.weight.grad)


def test_few_tokens_after_many_and_many_after_few():
    layer = nn.Linear(4, 40)
    before = layer.weight.detach().clone()
    for tokens in (1, 8, 8, 1, 1):
        where = layer.weight.data_ptr()
        changes = is_transposed(layer.weight) is not (tokens == 1)
        rearrange(layer, tokens, PLENTY)
        assert is_transposed(layer.weight) is (tokens == 1) and torch.equal(layer.weight, before)
        assert (layer.weight.data_ptr() != where) is changes


def test_only_plain_layers_of_float32_with_more_outputs_are_transposed():
    class Other(nn.Linear):
        pass

    model = nn.ModuleList([nn.Linear(4, 8), Other(4, 8), nn.Linear(4, 8).double(), nn.Linear(8, 4), nn.Embedding(8, 4)])
    rearrange(model, 1, PLENTY)
    assert [is_transposed(module.weight) for module in model] == [True, False, False, False, False]


@pytest.mark.parametrize("spare", [0, 2 * 128 - 1, 2 * 128])
def test_all_stay_where_copies_would_take_more_than_can_be_spared(spare):
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(4, 8))
    model[2].weight = model[0].weight  # one, which counts once
    rearrange(model, 1, spare)
    assert [is_transposed(layer.weight) for layer in model] == [spare == 2 * 128] * 3
    assert model[2].weight is model[0].weight


def test_other_processors_are_left_alone(monkeypatch):
    monkeypatch.setattr(wide, "FITS", False)
    layer = nn.Linear(4, 40)
    rearrange(layer, 1, PLENTY)
    assert layer.weight.is_contiguous() and "forward" not in vars(layer)


def test_a_model_that_has_spoken_is_saved_as_it_was(tmp_path):
    folder = make_folder(tmp_path / "tiny")
    llm = LLM.load(folder, distribute=None)
    llm.distribute(accelerator="cpu", precision="32-true")
    said = llm.generate("What food?", max_new_tokens=8, temperature=0.0)
    assert is_transposed(llm.model.lm_head.weight) and is_transposed(llm.model.transformer.h[0].attn.qkv.weight)
    llm.save(tmp_path / "saved")
    again = LLM.load(tmp_path / "saved", distribute=None)
    fresh = LLM.load(folder, distribute=None)
    for (name, saved), old in zip(again.model.state_dict().items(), fresh.model.state_dict().values(), strict=True):
        assert torch.equal(saved, old), name
    again.distribute(accelerator="cpu", precision="32-true")
    assert again.generate("What food?", max_new_tokens=8, temperature=0.0) == said


def test_engines_of_few_and_many_take_turns(tmp_path):
    model = LLM.load(make_folder(tmp_path / "tiny"), distribute=None).model.float()
    answers = []
    for slots in (1, 8, 1):
        engine = Engine(model, slots=slots)
        requests = [engine.submit([3, 4, 5], Sampling(temperature=0), max_new_tokens=6) for _ in range(slots)]
        answers += [request.result() for request in requests]
    assert all(answer == answers[0] for answer in answers)

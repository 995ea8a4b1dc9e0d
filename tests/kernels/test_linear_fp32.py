"""float32 weights that are stored another way give the same numbers."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from litgpt import LLM
from litgpt.engine.engine import Engine
from litgpt.engine.inference_model import InferenceModel
from litgpt.engine.sampling import Sampling
from litgpt.kernels import linear
from litgpt.kernels.linear import FP32_MAX_HEAD_ROWS, FP32_MAX_TRANSPOSED_ROWS, is_transposed, use_fast_linear
from tests.generate.folder import make_folder

PLENTY = 2**30


@pytest.fixture(autouse=True)
def fits(monkeypatch) -> None:
    """Every processor computes this way and no other, if not faster."""
    monkeypatch.setattr(linear, "FASTER_WITH_ONEDNN", False)
    monkeypatch.setattr(linear, "FASTER_TRANSPOSED", True)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, FP32_MAX_TRANSPOSED_ROWS + 1])
@pytest.mark.parametrize("shape", [(0, 24), (1, 24), (1, 1, 24), (3, 24), (2, 5, 24), (FP32_MAX_HEAD_ROWS + 1, 24)])
@pytest.mark.parametrize("rows", [20, 40, 333])
def test_the_same_numbers(bias, tokens, shape, rows, monkeypatch):
    monkeypatch.setattr(linear, "FP32_HEAD_BLOCK", 100)
    torch.manual_seed(0)
    plain = nn.Linear(24, rows, bias=bias)
    other = copy.deepcopy(plain).requires_grad_(False)
    use_fast_linear(other, PLENTY, tokens)
    assert is_transposed(other.weight) is (rows >= 24 and tokens == 1)
    x = torch.randn(shape)
    with torch.no_grad():
        y = other(x)
        torch.testing.assert_close(y, plain(x))
    assert y.is_contiguous()
    x.requires_grad_()
    (ours,), (theirs,) = (torch.autograd.grad(layer(x).sum(), x) for layer in (other, plain))
    torch.testing.assert_close(ours, theirs)


def test_few_tokens_after_many_and_many_after_few():
    layer = nn.Linear(4, 40).requires_grad_(False)
    before = layer.weight.detach().clone()
    for tokens in (1, 8, 8, 1, 1):
        where = layer.weight.data_ptr()
        changes = is_transposed(layer.weight) is not (tokens == 1)
        use_fast_linear(layer, PLENTY, tokens)
        assert is_transposed(layer.weight) is (tokens == 1) and torch.equal(layer.weight, before)
        assert (layer.weight.data_ptr() != where) is changes


def test_only_plain_layers_of_float32_with_more_outputs_are_transposed():
    class Other(nn.Linear):
        pass

    model = nn.ModuleList([nn.Linear(4, 8), Other(4, 8), nn.Linear(4, 8).double(), nn.Linear(8, 4), nn.Embedding(8, 4)])
    use_fast_linear(model.requires_grad_(False), PLENTY, 1)
    assert [is_transposed(module.weight) for module in model] == [True, False, False, False, False]


@pytest.mark.parametrize("headroom", [0, 2 * 128 - 1, 2 * 128])
def test_all_stay_where_copies_would_take_more_than_can_be_spared(headroom):
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(4, 8))
    model[2].weight = model[0].weight  # one, which counts once
    use_fast_linear(model.requires_grad_(False), headroom, 1)
    assert [is_transposed(layer.weight) for layer in model] == [headroom == 2 * 128] * 3
    assert model[2].weight is model[0].weight


@pytest.mark.parametrize(("fits", "trained"), [(False, False), (True, True)])
def test_other_processors_and_models_that_are_trained_are_left_alone(fits, trained, monkeypatch):
    monkeypatch.setattr(linear, "FASTER_TRANSPOSED", fits)
    layer = nn.Linear(4, 40).requires_grad_(trained)
    use_fast_linear(layer, PLENTY, 1)
    assert layer.weight.is_contiguous() and "forward" not in vars(layer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("wide") / "tiny")


def test_commands_compute_this_way_and_models_that_may_be_trained_do_not(folder):
    inference_model = InferenceModel.load(folder, precision="32-true")
    inference_model.engine()
    assert is_transposed(inference_model.model.lm_head.weight)
    llm = LLM.load(folder, distribute=None)
    llm.generate("What food?", max_new_tokens=2)
    assert all(parameter.is_contiguous() for parameter in llm.model.parameters())


def test_a_model_that_has_spoken_is_saved_as_it_was(folder, tmp_path):
    llm = LLM.load(folder, distribute=None)
    llm.model.requires_grad_(False)
    said = llm.generate("What food?", max_new_tokens=8, temperature=0.0)
    assert is_transposed(llm.model.lm_head.weight) and is_transposed(llm.model.transformer.h[0].attn.qkv.weight)
    llm.save(tmp_path / "saved")
    saved, loaded = (LLM.load(where, distribute=None) for where in (tmp_path / "saved", folder))
    for (name, tensor), before in zip(
        saved.model.state_dict().items(), loaded.model.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, before) and tensor.is_contiguous(), name
    assert saved.generate("What food?", max_new_tokens=8, temperature=0.0) == said


def test_engines_of_few_and_many_take_turns(folder):
    model = LLM.load(folder, distribute=None).model.requires_grad_(False)
    answers = []
    for slots in (1, 8, 1):
        engine = Engine(model, slots=slots)
        requests = [engine.submit([3, 4, 5], Sampling(temperature=0), max_new_tokens=6) for _ in range(slots)]
        answers += [request.result() for request in requests]
    assert all(answer == answers[0] for answer in answers)

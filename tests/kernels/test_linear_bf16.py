"""bfloat16 linear layers computed as weight times tokens give what torch's own give."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from litgpt.config import Config
from litgpt.kernels import linear
from litgpt.kernels.linear import BF16_MAX_ROWS, CACHE_LINE, use_fast_linear
from litgpt.model.mlp import LLaMAMLP

PLENTY = 2**30


@pytest.fixture(params=[True, False], ids=["bfloat16 instructions", "none"], autouse=True)
def bfloat16(request, monkeypatch) -> bool:
    """Whether the processor is taken to have them; both ways work on every one."""
    monkeypatch.setattr(linear, "has_bfloat16", lambda: request.param)
    return request.param


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(24,), (0, 24), (1, 24), (1, 1, 24), (3, 24), (2, 5, 24), (2, BF16_MAX_ROWS, 24)])
def test_the_same_numbers(bias, shape):
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias).bfloat16()
    quick = copy.deepcopy(plain)
    use_fast_linear(quick, PLENTY)
    x = torch.randn(shape, dtype=torch.bfloat16)
    with torch.no_grad():
        y = quick(x)
        torch.testing.assert_close(y, plain(x), rtol=2**-7, atol=2**-7)
    assert y.is_contiguous() and y.shape == (*shape[:-1], 40)


def test_gradients_and_other_precisions_are_torchs_own():
    layer = nn.Linear(8, 8).bfloat16()
    use_fast_linear(layer, PLENTY)
    layer(torch.randn(2, 8, dtype=torch.bfloat16)).sum().backward()
    assert layer.weight.grad is not None
    layer.float()
    x = torch.randn(3, 8)
    with torch.no_grad():
        assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


def test_only_plain_layers_of_bfloat16_are_changed_and_once():
    class Other(nn.Linear):
        pass

    model = nn.ModuleList([nn.Linear(4, 4), Other(4, 4).bfloat16(), nn.Linear(4, 4).bfloat16()])
    use_fast_linear(model, PLENTY)
    assert ["forward" in vars(module) for module in model] == [False, False, True]
    first = model[2].forward
    use_fast_linear(model, PLENTY)
    assert model[2].forward is first


def test_copies_compute_with_their_own_weights():
    layer = nn.Linear(4, 4, bias=False).bfloat16()
    use_fast_linear(layer, PLENTY)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        with torch.no_grad():
            other.weight.zero_()
            assert not other(torch.ones(4, dtype=torch.bfloat16)).any()
            assert layer(torch.ones(4, dtype=torch.bfloat16)).any()


def test_weights_across_cache_lines_are_moved_and_shared_ones_stay_shared():
    buffer = torch.randn(2 + 16 * 16, dtype=torch.bfloat16)
    head, embedding = nn.Linear(16, 16, bias=False), nn.Embedding(16, 16)
    head.weight = embedding.weight = nn.Parameter(buffer[2:].view(16, 16))
    before = head.weight.detach().clone()
    use_fast_linear(head, PLENTY)
    assert head.weight.data_ptr() % CACHE_LINE == 0
    assert head.weight is embedding.weight and torch.equal(head.weight, before)


@pytest.mark.parametrize("headroom", [0, 2 * 16 * 16 * 2 - 1, 2 * 16 * 16 * 2])
def test_weights_across_cache_lines_stay_where_copies_of_all_would_take_more_than_can_be_spared(headroom):
    buffer = torch.randn(2 + 2 * 16 * 16, dtype=torch.bfloat16)
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    model[0].weight = model[2].weight = nn.Parameter(buffer[2:258].view(16, 16))  # one, which counts once
    model[1].weight = nn.Parameter(buffer[258:].view(16, 16))
    use_fast_linear(model, headroom)
    moved = [layer.weight.data_ptr() % CACHE_LINE == 0 for layer in model]
    assert moved == [headroom == 2 * 16 * 16 * 2] * 3


@pytest.mark.parametrize("tokens", [1, 5, BF16_MAX_ROWS + 1])
def test_an_mlp_whose_gates_are_left_transposed_gives_the_same(tokens, bfloat16):
    torch.manual_seed(0)
    plain = LLaMAMLP(Config(n_embd=24, n_head=2, intermediate_size=40)).bfloat16()
    quick = copy.deepcopy(plain)
    use_fast_linear(quick, PLENTY)
    x = torch.randn(2, tokens, 24, dtype=torch.bfloat16)
    with torch.no_grad():
        assert (quick.fc_1(x).stride(-1) != 1) is bfloat16 and quick.proj(plain.fc_1(x)).is_contiguous()
        torch.testing.assert_close(quick(x), plain(x), rtol=2**-6, atol=2**-7)


def test_torchs_compiler_warns_of_nothing(monkeypatch):
    monkeypatch.undo()  # what it would warn of is how the processor's instructions are found out
    layer = nn.Linear(24, 41).bfloat16()
    use_fast_linear(layer, PLENTY)
    x = torch.randn(7, 24, dtype=torch.bfloat16)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer, backend="eager")(x), layer(x))


def test_a_weight_of_many_rows_is_cast_in_parts(monkeypatch):
    monkeypatch.setattr(linear, "UPCAST_WEIGHTS", 100)
    layer = nn.Linear(24, 41).bfloat16()
    quick = copy.deepcopy(layer)
    use_fast_linear(quick, PLENTY)
    x = torch.randn(7, 24, dtype=torch.bfloat16)
    with torch.no_grad():
        torch.testing.assert_close(quick(x), layer(x), rtol=2**-7, atol=2**-7)

"""bfloat16 linear layers computed the other way round give what torch's own give."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from litgpt.kernels.narrow import ALIGNED, quicken


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (1, 1, 24), (3, 24), (2, 5, 24)])
def test_the_same_numbers(bias, shape):
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias).bfloat16()
    quick = copy.deepcopy(plain)
    quicken(quick)
    x = torch.randn(shape, dtype=torch.bfloat16)
    with torch.no_grad():
        y = quick(x)
        torch.testing.assert_close(y, plain(x), rtol=2**-7, atol=2**-7)
    assert y.is_contiguous() and y.shape == (*shape[:-1], 40)


def test_gradients_and_other_precisions_are_torchs_own():
    layer = nn.Linear(8, 8).bfloat16()
    quicken(layer)
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
    quicken(model)
    assert ["forward" in vars(module) for module in model] == [False, False, True]
    first = model[2].forward
    quicken(model)
    assert model[2].forward is first


def test_copies_compute_with_their_own_weights():
    layer = nn.Linear(4, 4, bias=False).bfloat16()
    quicken(layer)
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
    quicken(head)
    assert head.weight.data_ptr() % ALIGNED == 0
    assert head.weight is embedding.weight and torch.equal(head.weight, before)

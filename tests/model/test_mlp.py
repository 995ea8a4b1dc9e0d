"""The gated activation that keeps less for the backward pass."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from litgpt.model.mlp import swiglu


def inputs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    gate, carrier = (3 * torch.randn(5, 7, dtype=torch.float64)).to(dtype), torch.randn(5, 7).to(dtype)
    return gate.requires_grad_(), carrier.requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_plain_product(dtype):
    found, expected = [], []
    for results, function in ((found, swiglu), (expected, lambda gate, carrier: F.silu(gate) * carrier)):
        gate, carrier = inputs(dtype)
        y = function(gate, carrier)
        y.backward(torch.arange(35, dtype=dtype).view(5, 7))
        results += [y.detach(), gate.grad, carrier.grad]
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain)


def test_two_tensors_are_kept_for_the_backward_pass():
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        swiglu(*inputs())
    assert len(kept) == 2

"""What `test_triton` runs in a process of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, library

from litgpt.kernels import triton
from litgpt.kernels.triton.cross_entropy import cross_entropy_
from litgpt.kernels.triton.gated import KINDS, gated
from litgpt.kernels.triton.norm import rms_norm
from litgpt.kernels.triton.rope import rope
from litgpt.model.mlp import FUNCTIONS
from litgpt.model.rope import apply_rope
from litgpt.training.loss import IGNORED, Terms, linear_cross_entropy

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    return {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 3e-2, "rtol": 3e-2}


def compare(found: Tensor, wanted: Tensor, inputs: list[Tensor], wide: list[Tensor]) -> None:
    """Values and gradients, of the same random sum."""
    dtype = found.dtype
    torch.testing.assert_close(found.double(), wanted, **tolerance(dtype))
    if not found.numel():
        return
    weights = torch.randn(wanted.shape, dtype=torch.float64)
    own = torch.autograd.grad((found.double() * weights).sum(), inputs)
    theirs = torch.autograd.grad((wanted * weights).sum(), wide)
    for mine, other in zip(own, theirs, strict=True):
        scale = 1 + other.abs().max()
        torch.testing.assert_close(mine.double() / scale, other / scale, **tolerance(dtype))


def made(*shape: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = torch.randn(shape).to(dtype)
    return x.requires_grad_(), x.detach().double().requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 64), (5, 33), (0, 8), (300, 48), (1, 5000)])
def test_rms_norm(shape: tuple[int, ...], offset: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    (x, wide_x), (w, wide_w) = made(*shape, dtype=dtype), made(shape[-1], dtype=torch.float32)
    wanted = F.rms_norm(wide_x, (shape[-1],), eps=1e-5) * (wide_w + offset)
    compare(rms_norm(x, w, 1e-5, offset), wanted, [x, w], [wide_x, wide_w])


def test_rms_norm_of_strided_rows_beside_a_frozen_weight() -> None:
    x = torch.randn(6, 5, 20)[:, 1:4, 3:15].requires_grad_()
    w = torch.randn(12)
    rms_norm(x, w, 1e-5, False).sum().backward()
    torch.testing.assert_close(rms_norm(x, w, 1e-5, False), F.rms_norm(x, (12,), w, 1e-5))
    assert w.grad is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 7), (2, 2, 600), (0, 4)])
def test_gated(shape: tuple[int, ...], kind: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    (gate, wide_gate), (up, wide_up) = made(*shape, dtype=dtype), made(*shape, dtype=dtype)
    compare(gated(gate, up, kind), FUNCTIONS[kind](wide_gate) * wide_up, [gate, up], [wide_gate, wide_up])
    halves = torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)
    one, other = halves.chunk(2, dim=-1)  # strided
    wanted = FUNCTIONS[kind](one.double()) * other.double()
    torch.testing.assert_close(gated(one, other, kind).double(), wanted, **tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleave", [False, True])
@pytest.mark.parametrize(("R", "by_row"), [(16, False), (10, True), (6, False)])
def test_rope(R: int, by_row: bool, interleave: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, wide = made(2, 7, 5 * 16, dtype=dtype)
    heads, wide_heads = (part.view(2, 7, 5, 16).transpose(1, 2)[:, 1:4] for part in (x, wide))  # of a fused projection
    angles = torch.randn(2, 1, 7, R) if by_row else torch.randn(7, R)
    cos, sin = angles.cos(), angles.sin()
    wanted = apply_rope(wide_heads, cos.double(), sin.double(), interleave)
    compare(rope(heads, cos, sin, interleave), wanted, [x], [wide])


TERMS = {
    "plain": Terms(),
    "all": Terms(cap=3.0, z_loss=1e-2, label_smoothing=0.1),
    "dft": Terms(dft=True, cap=5.0),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_linear_cross_entropy(
    frozen: bool, bias: bool, terms: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    (hidden, wide_hidden), (weight, wide_weight) = made(33, 24, dtype=dtype), made(301, 24, dtype=dtype)
    offset, wide_offset = made(301, dtype=dtype) if bias else (None, None)
    targets = torch.randint(301, (33,))
    targets[::4] = IGNORED
    inputs = [hidden] if frozen else [hidden, weight, *([offset] if bias else [])]
    wide = [wide_hidden] if frozen else [wide_hidden, wide_weight, *([wide_offset] if bias else [])]
    for tensor in (weight, offset):
        if tensor is not None:
            tensor.requires_grad_(not frozen)
    wanted = linear_cross_entropy(wide_hidden, wide_weight, targets, wide_offset, TERMS[terms])
    monkeypatch.setattr(triton, "chosen", lambda *tensors: tensors[0].dtype != torch.float64)
    found = linear_cross_entropy(hidden, weight, targets, offset, TERMS[terms])
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=0)
    own, theirs = torch.autograd.grad(found, inputs), torch.autograd.grad(wanted, wide)
    for mine, other in zip(own, theirs, strict=True):
        scale = 1 + other.abs().max()
        torch.testing.assert_close(mine.double() / scale, other / scale, **tolerance(dtype))


def test_rows_longer_than_a_tile() -> None:
    logits = torch.randn(2, 20000, dtype=torch.float32)
    targets = torch.tensor([19999, 3])
    products = logits.clone()
    losses = cross_entropy_(products, targets, None, None, None, 0.0, 0.0, False, True)
    torch.testing.assert_close(losses, F.cross_entropy(logits, targets, reduction="none"))
    torch.testing.assert_close(products, logits.softmax(-1) - F.one_hot(targets, 20000))


def operators() -> dict[str, Any]:
    x, w = torch.randn(6, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    cos, sin = torch.randn(6, 8), torch.randn(6, 8)
    heads = torch.randn(1, 2, 6, 8, requires_grad=True)
    return {
        "rms_norm": (torch.ops.litgpt.rms_norm.default, (x, w, 1e-5, False)),
        "gated": (torch.ops.litgpt.gated.default, (x, torch.randn(6, 8, requires_grad=True), 0)),
        "rope": (torch.ops.litgpt.rope.default, (heads, cos, sin, False, False)),
        "cross_entropy_": (
            torch.ops.litgpt.cross_entropy_.default,
            (torch.randn(4, 9), torch.arange(4), None, None, None, 0.0, 0.0, False, True),
        ),
    }


@pytest.mark.parametrize("name", operators())
def test_registered_as_torch_asks(name: str) -> None:
    """Schema, fakes, autograd, and what compilers make of it."""
    operator, arguments = operators()[name]
    library.opcheck(operator, arguments)

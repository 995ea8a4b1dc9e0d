"""SwiGLU and GeGLU in one kernel forward and one backward; only the two inputs are kept between them."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, library

TILE = 1024
KINDS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}
"""Activations of the gate."""


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _gate(x, KIND: tl.constexpr):
    """The activation of the gate and its slope."""
    if KIND == 0:
        share = _sigmoid(x)
        value, slope = x * share, share * (1.0 + x * (1.0 - share))
    elif KIND == 1:
        share = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        value, slope = x * share, share + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
    else:
        share = _sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))  # (1 + tanh(z)) / 2 = sigmoid(2 z)
        inner = 1.5957691216057308 * (1.0 + 0.134145 * x * x)
        value, slope = x * share, share + x * share * (1.0 - share) * inner
    return value, slope


@triton.jit
def _forward(G, U, Y, n, TILE: tl.constexpr, KIND: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    gate = tl.load(G + at, mask=at < n, other=0.0).to(tl.float32)
    up = tl.load(U + at, mask=at < n, other=0.0).to(tl.float32)
    value, _ = _gate(gate, KIND)
    y = value.to(Y.dtype.element_ty).to(tl.float32) * up  # rounded between, as torch does
    tl.store(Y + at, y.to(Y.dtype.element_ty), mask=at < n)


@triton.jit
def _backward(D, G, U, DG, DU, n, TILE: tl.constexpr, KIND: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    outer = tl.load(D + at, mask=at < n, other=0.0).to(tl.float32)
    gate = tl.load(G + at, mask=at < n, other=0.0).to(tl.float32)
    up = tl.load(U + at, mask=at < n, other=0.0).to(tl.float32)
    value, slope = _gate(gate, KIND)
    tl.store(DG + at, (outer * up * slope).to(DG.dtype.element_ty), mask=at < n)
    tl.store(DU + at, (outer * value).to(DU.dtype.element_ty), mask=at < n)


@library.custom_op("litgpt::gated", mutates_args=())
def _gated(gate: Tensor, up: Tensor, kind: int) -> Tensor:
    gate, up = gate.contiguous(), up.contiguous()
    y, n = torch.empty_like(gate), gate.numel()
    if n:
        _forward[(triton.cdiv(n, TILE),)](gate, up, y, n, TILE, kind)
    return y


@_gated.register_fake
def _(gate: Tensor, up: Tensor, kind: int) -> Tensor:
    return torch.empty_like(gate, memory_format=torch.contiguous_format)


@library.custom_op("litgpt::gated_backward", mutates_args=())
def _gated_backward(outer: Tensor, gate: Tensor, up: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    outer, gate, up = outer.contiguous(), gate.contiguous(), up.contiguous()
    of_gate, of_up, n = torch.empty_like(gate), torch.empty_like(up), gate.numel()
    if n:
        _backward[(triton.cdiv(n, TILE),)](outer, gate, up, of_gate, of_up, n, TILE, kind)
    return of_gate, of_up


@_gated_backward.register_fake
def _(outer: Tensor, gate: Tensor, up: Tensor, kind: int) -> tuple[Tensor, Tensor]:
    layout = torch.contiguous_format
    return torch.empty_like(gate, memory_format=layout), torch.empty_like(up, memory_format=layout)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gate, up, ctx.kind = inputs
    ctx.save_for_backward(gate, up)


def _backward_of_op(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.litgpt.gated_backward(outer, *ctx.saved_tensors, ctx.kind), None


_gated.register_autograd(_backward_of_op, setup_context=_setup)


def gated(gate: Tensor, up: Tensor, kind: str) -> Tensor:
    """`activation(gate) · up`, of one shape and dtype."""
    y: Tensor = torch.ops.litgpt.gated(gate, up, KINDS[kind])
    return y

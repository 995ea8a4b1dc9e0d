"""RMSNorm in one kernel forward and one backward, whatever the dtypes of its input and its weight.

R: rows, C: columns (what is normed), P: programs of the backward pass.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, library

TILE = 4096
"""Numbers that a program has before it at a time."""
PROGRAMS = 256
"""Of the backward pass, each of which sums up the weight's gradient over its rows."""


@triton.jit
def _forward(X, W, Y, F, stride, n_rows, eps, C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, OFFSET: tl.constexpr):  # fmt: skip # noqa: E501
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    cols = tl.arange(0, COLS)
    inside = (rows[:, None] < n_rows) & (cols[None, :] < C)
    x = tl.load(X + rows[:, None].to(tl.int64) * stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    w = tl.load(W + cols, mask=cols < C, other=0.0).to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(x * x, axis=1) / C + eps)
    normed = x * factor[:, None]
    if OFFSET:
        y = normed * (1.0 + w)[None, :]
    else:  # Llama rounds before it multiplies
        y = normed.to(Y.dtype.element_ty).to(tl.float32) * w[None, :]
    tl.store(Y + rows[:, None].to(tl.int64) * C + cols[None, :], y.to(Y.dtype.element_ty), mask=inside)
    tl.store(F + rows, factor, mask=rows < n_rows)


@triton.jit
def _backward(G, X, W, F, DX, DW, stride, n_rows, per_program, C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, OFFSET: tl.constexpr, WANTS_W: tl.constexpr):  # fmt: skip # noqa: E501
    program = tl.program_id(0)
    cols = tl.arange(0, COLS)
    w = tl.load(W + cols, mask=cols < C, other=0.0).to(tl.float32)
    if OFFSET:
        w = 1.0 + w
    total = tl.zeros((COLS,), dtype=tl.float32)
    for first in range(0, per_program, ROWS):
        rows = program * per_program + first + tl.arange(0, ROWS)
        here = rows < tl.minimum(n_rows, (program + 1) * per_program)
        inside = here[:, None] & (cols[None, :] < C)
        at = rows[:, None].to(tl.int64)
        x = tl.load(X + at * stride + cols[None, :], mask=inside, other=0.0).to(tl.float32)
        g = tl.load(G + at * C + cols[None, :], mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(F + rows, mask=here, other=0.0)
        normed = x * factor[:, None]
        scaled = tl.where(inside, g * w[None, :], 0.0)
        common = tl.sum(scaled * normed, axis=1) / C
        dx = factor[:, None] * (scaled - normed * common[:, None])
        tl.store(DX + at * C + cols[None, :], dx.to(DX.dtype.element_ty), mask=inside)
        if WANTS_W:
            total += tl.sum(g * normed, axis=0)
    if WANTS_W:
        tl.store(DW + program * C + cols, total, mask=cols < C)


def _tile(C: int) -> tuple[int, int]:
    """Rows and columns of a program's tile."""
    columns = triton.next_power_of_2(C)
    return max(1, TILE // columns), columns


@library.custom_op("litgpt::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor, eps: float, unit_offset: bool) -> tuple[Tensor, Tensor]:
    """`(R, C)` → the same normed, and what each row was multiplied with, `(R,)`."""
    (R, C), x = x.shape, x if x.stride(-1) == 1 else x.contiguous()
    y, factors = torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(R, dtype=torch.float32)
    rows, columns = _tile(C)
    if R:
        _forward[(triton.cdiv(R, rows),)](x, weight, y, factors, x.stride(0), R, eps, C, rows, columns, unit_offset)
    return y, factors


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float, unit_offset: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(x.size(0), dtype=torch.float32)


@library.custom_op("litgpt::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, factors: Tensor, unit_offset: bool, wants_weight: bool
) -> tuple[Tensor, Tensor]:
    """The gradients by `x` `(R, C)` and by the weight `(P, C)`, to be summed up."""
    (R, C), x = x.shape, x if x.stride(-1) == 1 else x.contiguous()
    rows, columns = _tile(C)
    programs = min(PROGRAMS, triton.cdiv(R, rows))
    of_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    of_weight = x.new_empty(programs if wants_weight else 0, C, dtype=torch.float32)
    if R:
        per_program = triton.cdiv(triton.cdiv(R, programs), rows) * rows
        _backward[(programs,)](
            *(gradient.contiguous(), x, weight, factors, of_x, of_weight, x.stride(0), R, per_program),
            *(C, rows, columns, unit_offset, wants_weight),
        )
    return of_x, of_weight


@_rms_norm_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, weight: Tensor, factors: Tensor, unit_offset: bool, wants_weight: bool
) -> tuple[Tensor, Tensor]:
    programs = min(PROGRAMS, triton.cdiv(x.size(0), _tile(x.size(1))[0])) if wants_weight else 0
    of_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    return of_x, x.new_empty(programs, x.size(1), dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, ctx.unit_offset = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.set_materialize_grads(False)


def _backward_of_op(ctx: Any, gradient: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return None, None, None, None
    x, weight, factors = ctx.saved_tensors
    wanted = ctx.needs_input_grad[1]
    of_x, parts = torch.ops.litgpt.rms_norm_backward(gradient, x, weight, factors, ctx.unit_offset, wanted)
    return of_x, parts.sum(0).to(weight.dtype) if wanted else None, None, None


_rms_norm.register_autograd(_backward_of_op, setup_context=_setup)


def rms_norm(x: Tensor, weight: Tensor, eps: float, unit_offset: bool) -> Tensor:
    """`(…, C)` over its root mean square, times `weight` (`1 + weight` with `unit_offset`), in the dtype of `x`."""
    y: Tensor = torch.ops.litgpt.rms_norm(x.reshape(-1, x.size(-1)), weight, eps, unit_offset)[0]
    return y.view(x.shape)

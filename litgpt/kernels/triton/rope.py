"""Rotary embeddings in one kernel, which reads queries or keys where they lie in the fused projection's output.

B: batch, N: heads, T: tokens, H: head size, R: dimensions that rotate.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, library

TILE = 4096
"""Numbers that a program has before it at a time."""


@triton.jit
def _rotate(X, COS, SIN, Y, n_rows, N, T, x_b, x_n, x_t, c_b, c_t, H: tl.constexpr, R: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, NEIGHBOURS: tl.constexpr, BACK: tl.constexpr):  # fmt: skip # noqa: E501
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)  # (b, t, n), the order that y lies in
    n, t, b = rows % N, rows // N % T, rows // N // T
    d = tl.arange(0, COLS)
    inside = (rows[:, None] < n_rows) & (d[None, :] < H)
    turning = inside & (d[None, :] < R)
    partner = d ^ 1 if NEIGHBOURS else tl.where(d < R // 2, d + R // 2, d - R // 2)
    from_x = X + (b * x_b + n * x_n + t * x_t)[:, None]
    from_table = (b * c_b + t * c_t)[:, None]
    x = tl.load(from_x + d[None, :], mask=inside, other=0.0).to(tl.float32)
    other = tl.load(from_x + partner[None, :], mask=turning, other=0.0).to(tl.float32)
    cos = tl.load(COS + from_table + d[None, :], mask=turning, other=0.0).to(tl.float32)
    at = partner if BACK else d  # what a number gave to its partner comes back with the partner's sine
    sin = tl.load(SIN + from_table + at[None, :], mask=turning, other=0.0).to(tl.float32)
    y = tl.where(d[None, :] < R, x * cos + other * sin, x)
    tl.store(Y + rows[:, None] * H + d[None, :], y.to(Y.dtype.element_ty), mask=inside)


@library.custom_op("litgpt::rope", mutates_args=())
def _rope(x: Tensor, cos: Tensor, sin: Tensor, interleave: bool, back: bool) -> Tensor:
    B, N, T, H = x.shape
    x = x if x.stride(-1) == 1 else x.contiguous()
    y = x.new_empty(B, T, N, H)
    columns = triton.next_power_of_2(H)
    rows = max(1, TILE // columns)
    cos, sin = cos.contiguous(), sin.contiguous()
    R = cos.size(-1)
    if y.numel():
        _rotate[(triton.cdiv(B * T * N, rows),)](
            *(x, cos, sin, y, B * T * N, N, T, x.stride(0), x.stride(1), x.stride(2)),
            *(T * R if cos.dim() == 4 and cos.size(0) > 1 else 0, R, H, R, rows, columns, interleave, back),
        )
    return y.transpose(1, 2)


@_rope.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, interleave: bool, back: bool) -> Tensor:
    B, N, T, H = x.shape
    return x.new_empty(B, T, N, H).transpose(1, 2)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, ctx.interleave, ctx.back = inputs
    ctx.save_for_backward(cos, sin)


def _backward_of_op(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.litgpt.rope(outer, *ctx.saved_tensors, ctx.interleave, not ctx.back), None, None, None, None


_rope.register_autograd(_backward_of_op, setup_context=_setup)


def rope(x: Tensor, cos: Tensor, sin: Tensor, interleave: bool = False) -> Tensor:
    """As `litgpt.model.rope.apply_rope`; the result lies in memory as `(B, T, N, H)`."""
    y: Tensor = torch.ops.litgpt.rope(x, cos, sin, interleave, False)
    return y

"""Attention inside each of many packed documents in one kernel, on CUDA: torch's FlashAttention for varying lengths,
with windows, sinks, and values of another size than the keys.

One call for all documents, where the way that works everywhere (`model.attention.Attention`) makes one for each.

T: tokens of all documents, N: heads, G: key-value heads, H: head size, D: documents.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_HEAD = 256
"""The head size up to which FlashAttention has a kernel; sizes are multiples of 8."""
NEEDED = {"scale", "window_size"}
"""Arguments of torch's function that attention here needs; before torch 2.11 it hasn't got them."""


@cache
def kernel() -> Callable[..., Any] | None:
    """torch's function, if it is there and takes what is needed."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if set(inspect.signature(varlen_attn).parameters) >= NEEDED else None


def applies(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether causal attention over packed documents can be had this way, for `(1, heads, T, H)` each; the values' size
    may be a smaller one."""
    if not q.is_cuda or torch.version.hip is not None or kernel() is None:
        return False
    alike = q.dtype == k.dtype == v.dtype and q.size(-1) == k.size(-1) >= v.size(-1)
    return alike and has_kernel(q.dtype, q.size(-1), torch.cuda.get_device_capability(q.device))


def has_kernel(dtype: torch.dtype, head_size: int, capability: tuple[int, int]) -> bool:
    """Whether FlashAttention is there for these numbers, on a GPU of this compute capability."""
    half_precision = dtype in (torch.bfloat16, torch.float16)
    return half_precision and head_size % 8 == 0 and head_size <= LARGEST_HEAD and capability >= (8, 0)


@lru_cache(maxsize=4)  # every layer of a pass asks for the same
def boundaries(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each document begins, and where the last one ends, `(D + 1,)`, int32."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


@cache
def takes(function: Callable[..., Any] | None, argument: str) -> bool:
    """Whether a function has an argument of this name."""
    return function is not None and argument in inspect.signature(function).parameters


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: tuple[int, ...],
    scale: float,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Queries `(1, N, T, H)` over keys `(1, G, T, H)` and values `(1, G, T, D)` of their own document, themselves and
    those before → `(1, N, T, D)`.

    Args:
        q: Queries.
        k: Keys.
        v: Values; D is at most H.
        lengths: Of the documents.
        scale: Of the scores.
        window: A query sees itself and the `window` - 1 tokens before it; None: all before it.
        sinks: A score of each head that takes its share of the attention and gives nothing, `(N,)`.
    """
    size = v.size(-1)
    if size < q.size(-1):
        v = F.pad(v, (0, q.size(-1) - size))
    if q.size(1) != k.size(1) and not takes(kernel(), "enable_gqa"):
        repeats = q.size(1) // k.size(1)
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    ends, longest = boundaries(lengths, q.device), max(lengths)
    q, k, v = (part[0].transpose(0, 1) for part in (q, k, v))  # (T, heads, H)
    seen = (-1 if window is None else window - 1, 0)
    if sinks is None:
        y = _call(q, k, v, ends, longest, scale, seen)
    else:
        y = _WithSinks.apply(q, k, v, sinks, ends, longest, scale, seen)
    return y.transpose(0, 1)[None, ..., :size]


def _call(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, longest: int, scale: float, window: Any, **more: Any) -> Any:
    if q.size(1) != k.size(1):
        more["enable_gqa"] = True
    function = kernel()
    assert function is not None
    return function(q, k, v, ends, ends, longest, longest, scale=scale, window_size=window, **more)


class _WithSinks(torch.autograd.Function):
    """Attention whose softmax has one more score a head (https://arxiv.org/abs/2309.17453).

    The kernel knows none. Its result is made smaller by the sink's share, which the log-sum-exp tells; and its own
    backward pass, given that result and the log-sum-exp with the sink in it, makes the right gradients: it computes the
    probabilities from the one, and what they have in common from the other.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, ends: Tensor, longest: int, scale: float, window: Any
    ) -> Tensor:
        from torch.nn.attention.varlen import AuxRequest

        y, lse = _call(q, k, v, ends, longest, scale, window, return_aux=AuxRequest(lse=True))  # (T, N, H), (N, T)
        whole = torch.logaddexp(lse, sinks[:, None].to(lse.dtype))
        y = (y * (lse - whole).exp().t()[..., None]).to(y.dtype)
        ctx.save_for_backward(q, k, v, sinks, ends, y, whole)
        ctx.settings = longest, scale, window
        return y

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, ends, y, whole = ctx.saved_tensors
        longest, scale, window = ctx.settings
        gradient = outer[0].contiguous()
        state = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of dropout, of which there is none
        bounds = (ends, ends, longest, longest)
        left, right = window
        parts = torch.ops.aten._flash_attention_backward(
            *(gradient, q, k, v, y, whole, *bounds, 0.0, False, state, torch.empty(0, device=q.device)),
            scale=scale,
            window_size_left=left,
            window_size_right=right,
        )
        common = (gradient.to(whole.dtype) * y.to(whole.dtype)).sum(-1).t()  # (N, T)
        of_sinks = -((sinks[:, None].to(whole.dtype) - whole).exp() * common).sum(-1).to(sinks.dtype)
        return *parts, of_sinks, None, None, None, None

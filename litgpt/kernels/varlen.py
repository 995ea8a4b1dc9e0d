"""Attention inside each of many packed documents in one kernel, on CUDA: torch's FlashAttention for varying lengths.

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
    """Whether plain causal attention over packed documents can be had this way, for `(1, heads, T, H)` each."""
    if not q.is_cuda or torch.version.hip is not None or kernel() is None:
        return False
    alike = q.dtype == k.dtype == v.dtype and q.size(-1) == k.size(-1) == v.size(-1)
    return alike and has_kernel(q.dtype, q.size(-1), torch.cuda.get_device_capability(q.device))


def has_kernel(dtype: torch.dtype, head_size: int, capability: tuple[int, int]) -> bool:
    """Whether FlashAttention is there for these numbers, on a GPU of this compute capability."""
    half_precision = dtype in (torch.bfloat16, torch.float16)
    return half_precision and head_size % 8 == 0 and head_size <= LARGEST_HEAD and capability >= (8, 0)


@lru_cache(maxsize=4)  # every layer of a pass asks for the same
def boundaries(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each document begins, and where the last one ends, `(D + 1,)`, int32."""
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


def attend(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
    """Queries `(1, N, T, H)` over keys and values `(1, G, T, H)` of their own document, themselves and those before
    → `(1, N, T, H)`."""
    function = kernel()
    assert function is not None
    more: dict[str, Any] = {}
    if q.size(1) != k.size(1):
        if "enable_gqa" in inspect.signature(function).parameters:
            more["enable_gqa"] = True
        else:
            repeats = q.size(1) // k.size(1)
            k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    ends, longest = boundaries(lengths, q.device), max(lengths)
    rows = [part[0].transpose(0, 1) for part in (q, k, v)]  # (T, heads, H)
    y: Tensor = function(*rows, ends, ends, longest, longest, scale=scale, window_size=(-1, 0), **more)
    return y.transpose(0, 1)[None]

"""Dropout on the CPU at a sixth of torch's cost, which is several times that of the linear layer it stands beside.

torch draws one number an element from a Mersenne twister. Here an element takes 16 bits from a fast generator, which is
seeded by torch's own (so `torch.manual_seed` still decides), and dropping is a bitwise and.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from litgpt.kernels.values import has_values

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Bytes of a number → the integers of that size."""


def drop(x: Tensor, share: float) -> tuple[Tensor, float]:
    """`x` with a random share of its elements zero and the others as they were, and the factor that makes up for it.

    The factor is left to the caller, who can often apply it to something smaller. The CPU rounds the share to 1/65536.
    """
    if share <= 0:
        return x, 1.0
    if x.device.type != "cpu" or x.element_size() not in BITS:
        return F.dropout(x, share), 1.0
    dropped = min(round(share * 65536), 65535)
    size = x.numel()
    mask = keep_mask(size, dropped) if has_values(x) else torch.empty(size, dtype=torch.int16, device=x.device)
    out = _Masked.apply(x, mask.view(x.shape))
    assert isinstance(out, Tensor)
    return out, 65536 / (65536 - dropped)


def keep_mask(size: int, dropped: int) -> Tensor:
    """Random `(size,)` int16: all bits set, or none with probability `dropped` / 65536."""
    seed = int(torch.randint(2**62, ()))
    words = np.random.Generator(np.random.SFC64(seed)).integers(2**64, size=-(-size // 4), dtype=np.uint64)
    random = torch.from_numpy(words.view(np.int16)[:size])  # uniform in -32768 … 32767
    last = dropped - 32768 - 1  # the largest that is dropped
    return random.clamp_(last, last + 1).sub_(last).neg_() if dropped else torch.full_like(random, -1)


class _Masked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return _masked(x, mask)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return _masked(gradient.contiguous(), mask), None


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    bits = BITS[x.element_size()]
    return (x.view(bits) & mask.to(bits)).view(x.dtype)

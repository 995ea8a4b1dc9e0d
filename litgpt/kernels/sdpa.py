"""torch's attention, asked in the way that takes its fast kernels.

B: batch, N: query heads, G: key-value heads, T: queries, S: keys, H: head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor


@contextmanager
def varying_shapes() -> Iterator[None]:
    """While inside, torch doesn't choose cuDNN, which makes a plan for each new shape, in 0.06 to 1 second. Where all
    shapes are alike it is the fastest on new GPUs."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """Queries `(B, N, T, H)` over keys and values `(B, G, S, H)` → `(B, N, T, H)`.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        mask: True where a query sees a key, or what is added to the scores, `(B or 1, N or 1, T, S)`.
        causal: There is no mask, and a query sees itself and those before.
        scale: Of the scores.
    """
    grouped = q.size(1) != k.size(1)
    if grouped and not takes_groups(q, mask):
        if q.size(2) == 1:
            return _fold(q, k, v, mask, scale)
        repeats, grouped = q.size(1) // k.size(1), False
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=grouped)


def takes_groups(q: Tensor, mask: Tensor | None) -> bool:
    """Whether a fast kernel lets several query heads share a key-value head; else torch repeats these and makes all
    scores, in float32."""
    if q.device.type == "cpu":
        return True
    half = q.dtype in (torch.bfloat16, torch.float16)
    return mask is None and half and (not q.is_cuda or torch.cuda.get_device_capability(q.device) >= (8, 0))


def _fold(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """One query a row: those heads that share keys are as good as several queries of one head. Nothing is repeated."""
    B, N, _, H = q.shape
    G = k.size(1)
    if mask is not None and mask.size(1) != 1:
        mask = mask.reshape(mask.size(0), G, N // G, mask.size(-1))
    y = F.scaled_dot_product_attention(q.reshape(B, G, N // G, H), k, v, attn_mask=mask, scale=scale)
    return y.reshape(B, N, 1, -1)

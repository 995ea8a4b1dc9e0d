"""Norms, over the residual stream or over queries and keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litgpt.config import Config


class RMSNorm(nn.Module):
    """Scales by the root mean square, in float32 at least (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

    def __init__(self, size: int, eps: float, unit_offset: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size) if unit_offset else torch.ones(size))
        self.eps = eps
        self.unit_offset = unit_offset

    def forward(self, x: Tensor) -> Tensor:
        """`(…, size)` → `(…, size)`."""
        wide = x.float() if x.dtype.itemsize < 4 else x
        normed = F.rms_norm(wide, (x.size(-1),), eps=self.eps)
        if self.unit_offset:  # Gemma multiplies before rounding, Llama after
            return (normed * (1 + self.weight.to(normed.dtype))).to(x.dtype)
        return normed.to(x.dtype) * self.weight


def make_norm(config: Config, size: int | None = None) -> nn.Module:
    """The norm over `size` (`n_embd`) values that this config asks for."""
    size = config.n_embd if size is None else size
    if config.norm_class_name == "RMSNorm":
        return RMSNorm(size, config.norm_eps, unit_offset=bool(config.norm_unit_offset))
    affine = bool(config.norm_affine)
    return nn.LayerNorm(size, eps=config.norm_eps, elementwise_affine=affine, bias=affine and config.norm_bias)

"""Norms, over the residual stream or over queries and keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.kernels import triton


class RMSNorm(nn.Module):
    """Scales by the root mean square, in float32 at least (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

    def __init__(
        self, size: int, dim: int = -1, eps: float = 1e-6, add_unit_offset: bool = False, affine: bool = True
    ) -> None:
        super().__init__()
        if dim != -1:
            raise LitGPTError(f"An RMSNorm is over the last dimension here, not over {dim}.")
        self.weight: nn.Parameter | None = None
        if affine:
            self.weight = nn.Parameter(torch.zeros(size) if add_unit_offset else torch.ones(size))
        self.eps = eps
        self.unit_offset = add_unit_offset

    def forward(self, x: Tensor) -> Tensor:
        """`(…, size)` → `(…, size)`."""
        if self.weight is None:
            return rms_norm(x, self.eps)
        if triton.chosen(x, self.weight):
            from litgpt.kernels.triton.norm import rms_norm as at_once

            return at_once(x, self.weight, self.eps, self.unit_offset)
        if not self.unit_offset:  # Llama rounds before it multiplies, Gemma after
            return (rms_norm(x, self.eps) * self.weight).to(x.dtype)  # also beside wider weights, under autocast
        normed = rms_norm(upcast(x), self.eps)
        return (normed * (1 + self.weight.to(normed.dtype))).to(x.dtype)


def rms_norm(x: Tensor, eps: float) -> Tensor:
    """`x` over the root mean square of its last dimension."""
    if x.device.type != "cpu" or torch.is_grad_enabled() or x.dtype.itemsize >= 4:
        return F.rms_norm(upcast(x), (x.size(-1),), eps=eps).to(x.dtype)
    y = x.float()  # a copy, to compute in
    norm = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    return y.mul_(norm.square_().div_(x.size(-1)).add_(eps).rsqrt_()).to(x.dtype)


def upcast(x: Tensor) -> Tensor:
    """`x` in float32 at least."""
    return x.float() if x.dtype.itemsize < 4 else x


def looked_up(x: Tensor) -> Tensor:
    """An embedding `x`, under autocast in float32 at least: what layers add to it is not rounded to 16 bits, though the
    table may be kept in them."""
    return upcast(x) if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type) else x


class OffsetLayerNorm(nn.LayerNorm):
    """A LayerNorm that scales by `1 + weight`."""

    def reset_parameters(self) -> None:
        """To where it changes nothing."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(…, size)` → `(…, size)`."""
        return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class HeadNorm(nn.Module):
    """LayerNorm over each head, by weights of its own."""

    def __init__(self, heads: int, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(heads, size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`(B, heads, T, size)` → the same."""
        normed = F.layer_norm(upcast(x), (x.size(-1),), eps=self.eps)
        return (normed * self.weight[:, None]).to(x.dtype)


def make_norm(config: Config, size: int | None = None, place: str = "") -> nn.Module:
    """The norm over `size` (`n_embd`) values that this config asks for; `place`: one that may be an exception
    (`config.norm_exceptions`)."""
    eps = (config.norm_exceptions or {}).get(place, {}).get("eps", config.norm_eps)
    return norm_class(config, place)(config.n_embd if size is None else size, eps=eps)


def norm_class(config: Config, place: str = "") -> Callable[..., nn.Module]:
    """What makes the norms that this config asks for, of a size and an epsilon."""
    said = (config.norm_exceptions or {}).get(place, {})
    affine = bool(said.get("affine", config.norm_affine))
    offset = bool(said.get("unit_offset", config.norm_unit_offset))
    if config.norm_class_name == "RMSNorm":
        return partial(RMSNorm, add_unit_offset=offset, affine=affine)
    kind = OffsetLayerNorm if offset else nn.LayerNorm
    return partial(kind, elementwise_affine=affine, bias=affine and config.norm_bias)

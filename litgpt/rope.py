"""Rotary position embeddings (Su et al. 2021, https://arxiv.org/abs/2104.09864), stretched for long contexts.

T: positions, H: head size, R: dimensions that rotate (`config.rope_n_elem`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from litgpt.config import Config
from litgpt.errors import LitGPTError


def inverse_frequencies(config: Config, base: float | None = None, device: torch.device | None = None) -> Tensor:
    """Radians per position of each pair of dimensions, `(R/2,)`, float32; a `base` of its own is not stretched.

    Raises:
        LitGPTError: `rope_adjustments` of a kind that is not known here.
    """
    n = config.rope_n_elem
    theta = 1.0 / ((base or config.rope_base) ** (torch.arange(0, n, 2, device=device, dtype=torch.int64).float() / n))
    adjust = config.rope_adjustments
    if adjust is None or base not in (None, config.rope_base):
        return theta
    if set(adjust) == {"factor"}:
        return theta / adjust["factor"]
    if set(adjust) == {"factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"}:
        return _llama3(theta, adjust)
    raise LitGPTError(
        f"rope_adjustments with the keys {', '.join(sorted(adjust))} are not known here; see `Config.rope_adjustments`."
    )


def _llama3(theta: Tensor, adjust: dict[str, Any]) -> Tensor:
    """Long wavelengths are divided by `factor`, short ones kept, those between blended (Llama 3.1, https://arxiv.org/abs/2407.21783)."""
    factor, low, high = adjust["factor"], adjust["low_freq_factor"], adjust["high_freq_factor"]
    original = adjust["original_max_seq_len"]
    wavelength = 2 * math.pi / theta
    smooth = ((original / wavelength - low) / (high - low)).clamp(0, 1)
    blended = (1 - smooth) * theta / factor + smooth * theta
    scaled = torch.where(wavelength > original / low, theta / factor, theta)
    between = (wavelength <= original / low) & (wavelength >= original / high)
    return torch.where(between, blended, scaled)


class RopeTable:
    """`cos` and `sin` of every position up to the furthest one asked for, made on the device of use and kept there."""

    def __init__(self, config: Config, base: float | None = None) -> None:
        self.config = config
        self.base = base
        self.cos = self.sin = torch.empty(0, 0)  # (T, R/2) each

    def upto(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """`cos` and `sin` of positions 0 … at least `length` - 1, `(≥ length, R/2)` each, float32."""
        if self.cos.size(0) < length or self.cos.device != device:
            rows = max(64, 1 << (length - 1).bit_length())
            positions = torch.arange(rows, device=device, dtype=torch.float32) / self.config.rope_condense_ratio
            angles = torch.outer(positions, inverse_frequencies(self.config, self.base, device))
            self.cos, self.sin = angles.cos(), angles.sin()
        return self.cos, self.sin


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns the first R dimensions of each head; dimension `d` is paired with `d + R/2`.

    Args:
        x: `(B, N, T, H)`.
        cos: `(T, R/2)`, or `(B, 1, T, R/2)` where rows of the batch are at different positions.
        sin: Like `cos`.
    """
    half = cos.size(-1)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    parts = [a * cos - b * sin, b * cos + a * sin]
    if rest.size(-1):
        parts.append(rest.to(parts[0].dtype))
    return torch.cat(parts, dim=-1).to(x.dtype)

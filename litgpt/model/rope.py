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
from litgpt.model.norm import upcast

LLAMA_3_KEYS = {"factor", "low_freq_factor", "high_freq_factor", "original_max_seq_len"}
YARN_KEYS = {"factor", "beta_fast", "beta_slow", "original_max_seq_len"}
LONGROPE_KEYS = {"factor", "short_factor", "long_factor", "original_max_seq_len"}
"""Ding et al. 2024, https://arxiv.org/abs/2402.13753."""
DYNAMIC_KEYS = {"factor", "dynamic_beyond"}
YARN_OPTIONAL_KEYS = {"mscale", "mscale_all_dim", "attention_factor", "truncate"}


def inverse_frequencies(
    config: Config, base: float | None = None, device: torch.device | None = None, extent: int = 0
) -> Tensor:
    """Radians per position of each pair of dimensions, `(R/2,)`, float32; a `base` of its own is not stretched.

    `extent` is how long the sequence will be: LongRoPE has other factors beyond the original context.

    Raises:
        LitGPTError: `rope_adjustments` of a kind that is not known here.
    """
    n, adjust = rotating(config, base), config.rope_adjustments
    if base is None and adjust is not None and set(adjust) == DYNAMIC_KEYS:
        stretch = adjust["factor"] * max(extent / adjust["dynamic_beyond"], 1) - (adjust["factor"] - 1)
        base = config.rope_base * stretch ** (n / (n - 2))
    powers = (base or config.rope_base) ** (torch.arange(0, n, 2, device=device, dtype=torch.int64).float() / n)
    theta = 1.0 / powers
    if adjust is None or base is not None:
        return theta
    if set(adjust) == {"factor", "share"}:  # the first pairs only, at the speeds they have among all
        return theta * (torch.arange(n // 2, device=device) < int(adjust["share"] * n // 2)) / adjust["factor"]
    if set(adjust) == {"factor"}:
        return theta / adjust["factor"]
    if set(adjust) == LLAMA_3_KEYS:
        return _llama3(theta, adjust)
    if set(adjust) - YARN_OPTIONAL_KEYS == YARN_KEYS:
        return _yarn(theta, adjust, config)
    if set(adjust) - {"attention_factor"} == LONGROPE_KEYS:
        factors = adjust["long_factor" if extent > adjust["original_max_seq_len"] else "short_factor"]
        return 1.0 / (torch.tensor(factors, device=device, dtype=torch.float32) * powers)
    raise LitGPTError(f"rope_adjustments with the keys {', '.join(sorted(adjust))} are not known here.")


def rotating(config: Config, base: float | None) -> int:
    """Dimensions of a head that rotate; those of layers without a window have no `base` of their own."""
    if base is not None and config.rope_local_percentage is not None:
        assert config.head_size is not None
        return int(config.rope_local_percentage * config.head_size)
    heads = config.global_heads if base is None else None
    return config.rope_n_elem if heads is None else int(config.rotary_percentage * heads["head_size"])


def attention_factor(config: Config) -> float:
    """What `cos` and `sin` are multiplied with, so that attention stays as sharp in a stretched context."""
    adjust = config.rope_adjustments or {}
    if adjust.get("attention_factor") is not None:
        return float(adjust["attention_factor"])
    if "long_factor" in adjust:
        shift = math.log(max(adjust["factor"], 1.0)) / math.log(adjust["original_max_seq_len"])
        return math.sqrt(1 + shift)
    if "beta_fast" not in adjust:
        return 1.0

    def scale(mscale: float) -> float:
        return 1.0 if adjust["factor"] <= 1 else 0.1 * mscale * math.log(adjust["factor"]) + 1.0

    if adjust.get("mscale") and adjust.get("mscale_all_dim"):
        return scale(adjust["mscale"]) / scale(adjust["mscale_all_dim"])
    return scale(1.0)


def attention_scale(config: Config) -> float:
    """What DeepSeek's attention scores are multiplied with besides, in a stretched context."""
    adjust = config.rope_adjustments or {}
    if not adjust.get("mscale_all_dim") or adjust["factor"] <= 1:
        return 1.0
    return (0.1 * adjust["mscale_all_dim"] * math.log(adjust["factor"]) + 1.0) ** 2


def _yarn(theta: Tensor, adjust: dict[str, Any], config: Config) -> Tensor:
    """Pairs that rotate often in the original context are kept, those that rotate rarely are divided by `factor`,
    the rest blended (Peng et al. 2023, https://arxiv.org/abs/2309.00071)."""
    n, original = config.rope_n_elem, adjust["original_max_seq_len"]

    def pair_rotating(times: float) -> float:
        """The (fractional) pair that rotates this many times in the original context."""
        return n * math.log(original / (times * 2 * math.pi)) / (2 * math.log(config.rope_base))

    low, high = pair_rotating(adjust["beta_fast"]), pair_rotating(adjust["beta_slow"])
    if adjust.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, n - 1)
    ramp = ((torch.arange(n // 2, device=theta.device).float() - low) / max(high - low, 0.001)).clamp(0, 1)
    return theta / adjust["factor"] * ramp + theta * (1 - ramp)


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
        self.original = (config.rope_adjustments or {}).get("original_max_seq_len", 0)
        self.cos = self.sin = torch.empty(0, 0)  # (T, R) each
        self.dynamic = "dynamic_beyond" in (config.rope_adjustments or {})
        self.beyond: bool | int = False

    def cos_sin(self, length: int, device: torch.device, extent: int) -> tuple[Tensor, Tensor]:
        """What `apply_rope` takes of positions 0 … at least `length` - 1, `(≥ length, R)` each, float32.

        Args:
            length: Positions needed now.
            device: Where they are needed.
            extent: Positions that the sequence will have in the end.
        """
        beyond = extent if self.dynamic else extent > self.original
        if self.cos.size(0) < length or self.cos.device != device or self.beyond != beyond:
            rows = max(64, 1 << (length - 1).bit_length())
            positions = torch.arange(rows, device=device, dtype=torch.float32) / self.config.rope_condense_ratio
            angles = torch.outer(positions, inverse_frequencies(self.config, self.base, device, extent))
            factor = attention_factor(self.config) if self.base is None else 1.0
            angles = -angles if self.config.rope_reversed else angles
            cos, sin, self.beyond = angles.cos() * factor, angles.sin() * factor, beyond
            if self.config.rope_interleave:
                self.cos, self.sin = cos.repeat_interleave(2, dim=-1), torch.stack((-sin, sin), dim=-1).flatten(-2)
            else:
                self.cos, self.sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        return self.cos, self.sin


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, interleave: bool = False) -> Tensor:
    """Rotates the first R dimensions of each head; dimension `d` is paired with `d + R/2`, or 2d with 2d + 1.

    Args:
        x: `(B, N, T, H)`.
        cos: `(T, R)`, or `(B, 1, T, R)` where rows of the batch are at different positions.
        sin: Like `cos`, negative for the first of each pair.
        interleave: Pairs are neighbours.
    """
    R = cos.size(-1)
    x_upcast = upcast(x[..., :R])
    other = x_upcast.unflatten(-1, (R // 2, 2)).flip(-1).flatten(-2) if interleave else x_upcast.roll(R // 2, -1)
    rotated = torch.addcmul(x_upcast * cos, other, sin).to(x.dtype)
    return rotated if x.size(-1) == R else torch.cat((rotated, x[..., R:]), dim=-1)

"""Positions that don't rotate: fixed sinusoids, and scores that fall with distance.

T: queries, S: keys, C: `n_embd`, N: `n_head`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from litgpt.config import Config


def sinusoids(config: Config, positions: Tensor) -> Tensor:
    """What `sinusoidal_span` adds to the embeddings of tokens at `positions` `(…)`: `(…, C)`, float32 (Vaswani et al.
    2017, https://arxiv.org/abs/1706.03762), all sines first."""
    assert config.sinusoidal_span is not None
    steps = torch.arange(config.n_embd // 2, device=positions.device).float()
    frequencies = torch.exp(steps * -(math.log(10000) / config.sinusoidal_span))
    angles = (positions + config.positions_offset).float()[..., None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def alibi_slopes(n_head: int, max_bias: float, device: torch.device) -> Tensor:
    """How much less each head sees of a token one further away (Press et al. 2021, https://arxiv.org/abs/2108.12409):
    `(N,)`, a geometric series; heads beyond a power of two lie between the others."""
    power = 1 << (n_head - 1).bit_length()
    series = 2.0 ** (-torch.arange(1, power + 1, device=device).float() * max_bias / power)
    return series if power == n_head else torch.cat((series[1::2], series[::2]))[:n_head]


def alibi_bias(config: Config, positions: Tensor, keys: Tensor, seen: Tensor) -> Tensor:
    """What is added to the scores of queries at `positions`, `(T,)` or `(B, T)`.

    Args:
        config: Of a model with `alibi`.
        positions: Of the queries.
        keys: Positions of the keys, `(S,)` or `(1 or B, 1, 1, S)`.
        seen: True where a query sees a key, `(1 or B, 1, T, S)`.

    Returns:
        `(1 or B, N, T, S)`, float32, -inf where a query doesn't see a key.
    """
    assert config.alibi is not None
    slopes = alibi_slopes(config.n_head, config.alibi["max_bias"], positions.device).view(-1, 1, 1)
    keys = keys.reshape(-1, 1, 1, keys.size(-1))
    if config.alibi.get("in_bfloat16"):
        assert config.head_size is not None
        bias = (slopes.bfloat16() * keys).float() / math.sqrt(config.head_size)
    else:
        bias = slopes * (keys - positions.reshape(-1, 1, positions.size(-1), 1)).float()
    return bias.masked_fill(~seen, -math.inf)

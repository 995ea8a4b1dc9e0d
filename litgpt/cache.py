"""Keys and values of tokens already seen, so that each new token is computed once.

S: slots (sequences held at the same time), G: key-value heads, L: positions a slot has room for, H: head size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from litgpt.config import Config


class KVCache:
    """Room for `slots` sequences of `length` tokens, in every layer; allocated once, never moved."""

    def __init__(
        self,
        config: Config,
        slots: int,
        length: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        groups, key_size, value_size = held_per_token(config)
        shape = (slots, groups, length)
        # One tensor a layer: compilers copy a single stacked one whole at each write.
        self.keys = [_zeros((*shape, key_size), device, dtype) for _ in range(config.n_layer)]
        if config.latent_attention is None:
            self.values = [_zeros((*shape, value_size), device, dtype) for _ in range(config.n_layer)]
        else:
            self.values = [keys[..., :value_size] for keys in self.keys]  # the latent is both
        self.held = self.keys if config.latent_attention is not None else [*self.keys, *self.values]
        """Every tensor there is, once, `(slots, G, length, ...)`."""
        self.slots = slots
        self.length = length

    @staticmethod
    def nbytes(config: Config, slots: int, length: int, dtype: torch.dtype) -> int:
        """Bytes a cache of this size takes."""
        groups, key_size, value_size = held_per_token(config)
        size = key_size + (value_size if config.latent_attention is None else 0)
        return config.n_layer * slots * groups * length * size * dtype.itemsize


def _zeros(shape: tuple[int, ...], device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
    """Zeros; on a CPU such as cost no memory until they are written to, which torch's own do."""
    dtype = dtype or torch.get_default_dtype()
    if torch.device(device or "cpu").type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


def held_per_token(config: Config) -> tuple[int, int, int]:
    """Heads, key size and value size of what a layer keeps of a token; latent attention keeps one latent, as both."""
    if config.latent_attention is not None:
        rank = config.latent_attention["kv_lora_rank"]
        return 1, rank + config.latent_attention["qk_rope_head_dim"], rank
    assert config.n_query_groups is not None and config.head_size is not None
    return config.n_query_groups, config.head_size, config.head_size


@dataclass(frozen=True)
class Span:
    """The part of a cache that one forward pass of `(B, T)` tokens extends."""

    cache: KVCache
    rows: slice
    """The B slots; row `b` of the batch goes to slot `rows.start + b`."""
    starts: Sequence[int]
    """Where the T tokens of each row begin; every earlier position of the slot is filled."""

    def end(self, n_tokens: int) -> int:
        """One past the furthest position after `n_tokens` more tokens a row."""
        return max(self.starts) + n_tokens

    def positions(self, n_tokens: int, device: torch.device) -> Tensor:
        """The positions of the new tokens, `(B, n_tokens)`."""
        return torch.tensor(self.starts, device=device)[:, None] + torch.arange(n_tokens, device=device)

    @cached_property
    def _row_indices(self) -> Tensor:
        return torch.arange(len(self.starts), device=self.cache.keys[0].device)

    @cached_property
    def _start_indices(self) -> Tensor:
        return torch.tensor(self.starts, device=self.cache.keys[0].device)

    def extend(self, layer: int, k: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Stores new keys and values `(B, G, T, H)`; returns the filled part of these slots, `(B, G, end, H)` each."""
        keys, values = self.cache.keys[layer][self.rows], self.cache.values[layer][self.rows]
        self._write(keys, k)
        if v is not None:
            self._write(values, v)
        end = self.end(k.size(2))
        return keys[:, :, :end], values[:, :, :end]

    def _write(self, held: Tensor, new: Tensor) -> None:
        n_tokens = new.size(2)
        if len(set(self.starts)) == 1:
            held[:, :, self.starts[0] : self.starts[0] + n_tokens] = new
        elif n_tokens == 1:
            held[self._row_indices, :, self._start_indices] = new[:, :, 0]
        else:
            for row, start in enumerate(self.starts):
                held[row, :, start : start + n_tokens] = new[row]

"""Keys and values of tokens already seen, so that each new token is computed once.

S: slots (sequences held at the same time), G: key-value heads, L: positions a slot has room for, H: head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

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
        assert config.n_query_groups is not None and config.head_size is not None
        shape = (slots, config.n_query_groups, length, config.head_size)
        # One tensor a layer: compilers copy a single stacked one whole at each write.
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.slots = slots
        self.length = length

    @staticmethod
    def nbytes(config: Config, slots: int, length: int, dtype: torch.dtype) -> int:
        """Bytes a cache of this size takes."""
        assert config.n_query_groups is not None and config.head_size is not None
        return 2 * config.n_layer * slots * config.n_query_groups * length * config.head_size * dtype.itemsize


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

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new keys and values `(B, G, T, H)`; returns the filled part of these slots, `(B, G, end, H)` each."""
        keys, values = self.cache.keys[layer][self.rows], self.cache.values[layer][self.rows]
        n_tokens = k.size(2)
        if len(set(self.starts)) == 1:
            at = slice(self.starts[0], self.starts[0] + n_tokens)
            keys[:, :, at], values[:, :, at] = k, v
        elif n_tokens == 1:
            keys[self._row_indices, :, self._start_indices] = k[:, :, 0]
            values[self._row_indices, :, self._start_indices] = v[:, :, 0]
        else:
            for row, start in enumerate(self.starts):
                keys[row, :, start : start + n_tokens] = k[row]
                values[row, :, start : start + n_tokens] = v[row]
        end = self.end(n_tokens)
        return keys[:, :, :end], values[:, :, :end]

"""Keys and values of tokens already seen, so that each new token is computed once; in layers of linear attention, their
state after those tokens.

S: slots (sequences cached at the same time), G: key-value heads, L: positions that a layer keeps of a slot,
H: head size.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from litgpt.config import Config
from litgpt.errors import LitGPTError

LAZY_NBYTES = 2**20
"""Bytes from which on a tensor of a cache is allocated lazily, page by page, as it fills."""


class KVCache:
    """Room for `slots` sequences of `length` tokens, in every layer; allocated once, never moved.

    Args:
        config: Of the model.
        slots: Sequences cached at the same time.
        length: Tokens of each.
        device: Where, for all layers or one by one.
        dtype: None: torch's default.
        ranks: Processes that share the model's key-value heads; each holds those of its own.
        max_chunk: The most tokens a sequence is extended by at once. Layers with a sliding window then keep that many
            and a window's, a new token in the place of the oldest. None: every layer keeps all.
    """

    def __init__(
        self,
        config: Config,
        slots: int,
        length: int,
        device: torch.device | str | Sequence[torch.device] | None = None,
        dtype: torch.dtype | None = None,
        ranks: int = 1,
        max_chunk: int | None = None,
    ) -> None:
        devices = device if isinstance(device, Sequence) and not isinstance(device, str) else [device] * config.n_layer
        sizes = [cached_positions(config, layer, length, max_chunk) for layer in range(config.n_layer)]
        shapes = [kv_shape(config, ranks, layer) for layer in range(config.n_layer)]
        layers = list(zip(shapes, sizes, devices, strict=True))
        # One tensor a layer: compilers copy a single stacked one whole at each write.
        self.keys = [_zeros((slots, groups, L, size), on, dtype) for (groups, size, _), L, on in layers]
        if config.latent_attention is None:
            self.values = [_zeros((slots, groups, L, size), on, dtype) for (groups, _, size), L, on in layers]
        else:
            self.values = [keys[..., : shapes[0][2]] for keys in self.keys]  # the latent is both
        self.kv_tensors = self.keys if config.latent_attention is not None else [*self.keys, *self.values]
        """Every tensor of keys and values there is, once, `(slots, G, length, ...)`."""
        self.states = {
            layer: [_zeros((slots, *shape), on, kind) for shape, kind in state_shapes(config, dtype)]
            for layer, on in enumerate(devices)
            if config.has_state(layer)
        }
        """By layer of linear attention: the convolution's last inputs and the recurrent state, `(slots, ...)`."""
        self.state_positions = [0] * slots
        """The position that each slot's states are at; -1: they can't be used."""
        self.ring_sizes = {
            window: L
            for layer, L in enumerate(sizes)
            if (window := config.window(layer)) is not None and L and length > L
        }
        """By window: the positions that its layers have room for, where that is less than `length`."""
        self.filled_ends = [0] * slots
        """One past the furthest position written in each slot since it was begun."""
        self.max_chunk = max_chunk
        self.slots = slots
        self.length = length

    def resumable(self, slot: int, position: int) -> bool:
        """Whether the sequence in a slot can go on from a position that it reached before."""
        if position and not self.rewindable and position != self.state_positions[slot]:
            return False
        oldest = max(0, position - max(self.ring_sizes, default=0) + 1)
        return position == 0 or all(oldest >= self.filled_ends[slot] - size for size in self.ring_sizes.values())

    @property
    def rewindable(self) -> bool:
        """Whether a slot can go back to an earlier position: keys and values can, a state is known at its end only."""
        return not self.states

    def swap(self, a: int, b: int, n_tokens: int) -> None:
        """Exchanges two slots, of which at most the first `n_tokens` positions are filled."""
        for tensor in self.kv_tensors:
            tensor[[a, b], :, :n_tokens] = tensor[[b, a], :, :n_tokens]
        for tensor in (tensor for states in self.states.values() for tensor in states):
            tensor[[a, b]] = tensor[[b, a]]
        self.state_positions[a], self.state_positions[b] = self.state_positions[b], self.state_positions[a]
        self.filled_ends[a], self.filled_ends[b] = self.filled_ends[b], self.filled_ends[a]

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Makes the first `n_tokens` positions of a slot those of another; all that are filled unless `rewindable`."""
        for tensor in self.kv_tensors:
            tensor[target, :, :n_tokens] = tensor[source, :, :n_tokens]
        for tensor in (tensor for states in self.states.values() for tensor in states):
            tensor[target] = tensor[source]
        self.state_positions[target] = self.state_positions[source]
        self.filled_ends[target] = self.filled_ends[source] if self.ring_sizes else n_tokens

    @staticmethod
    def nbytes(
        config: Config, slots: int, length: int, dtype: torch.dtype, ranks: int = 1, max_chunk: int | None = None
    ) -> int:
        """Bytes a cache of this size takes, on each of `ranks` processes."""
        n_linear = sum(config.has_state(layer) for layer in range(config.n_layer))
        states = state_shapes(config, dtype) if n_linear else ()
        state = sum(math.prod(shape) * kind.itemsize for shape, kind in states)
        cached = 0
        for layer in range(config.n_layer):
            groups, key_size, value_size = kv_shape(config, ranks, layer)
            size = key_size + (value_size if config.latent_attention is None else 0)
            cached += cached_positions(config, layer, length, max_chunk) * groups * size
        return slots * (n_linear * state + cached * dtype.itemsize)


def cached_positions(config: Config, layer: int, length: int, max_chunk: int | None) -> int:
    """Positions of a sequence of `length` tokens that a layer keeps at a time."""
    if config.linear(layer) or config.shares_kv(layer) or not config.mixes(layer):
        return 0
    window = config.window(layer)
    return length if window is None or max_chunk is None else min(length, window + max_chunk)


def _zeros(shape: tuple[int, ...], device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
    """Zeros; on a CPU, large ones take no memory until they are written to. (torch's own take all at once, and numpy's
    two megabytes for each sequence's first token.)"""
    dtype = dtype or torch.get_default_dtype()
    nbytes = math.prod(shape) * dtype.itemsize
    if torch.device(device or "cpu").type != "cpu" or nbytes < LAZY_NBYTES or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.zeros(shape, device=device, dtype=dtype)
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def kv_shape(config: Config, ranks: int, layer: int) -> tuple[int, int, int]:
    """Heads, key size and value size of what layer number `layer` keeps of a token, on each of `ranks`
    processes; latent attention keeps one latent, as both, and every process needs it."""
    if config.latent_attention is not None:
        rank = config.latent_attention["kv_lora_rank"]
        index = (
            config.sparse_attention["head_size"] if config.sparse_attention and config.indexer(layer) == layer else 0
        )
        return 1, rank + config.latent_attention["qk_rope_head_dim"] + index, rank
    groups, _, size = config.kv_heads(layer)
    groups //= ranks
    behind = config.sparse_attention if config.indexer(layer) == layer else None
    index = 0 if behind is None else -(-behind["head_size"] // groups)  # its keys, shared out over those of the groups
    return groups, size + index, config.values_of(size)


def state_shapes(config: Config, dtype: torch.dtype | None) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """Shape and type of what a layer of linear attention keeps of a sequence: its convolution's last inputs, and the
    recurrent state, which is a sum over all tokens, in float32 at least."""
    dtype = dtype or torch.get_default_dtype()
    if (sizes := config.short_conv) is not None:
        return (((config.n_embd, sizes["kernel_size"] - 1), dtype),)
    if (sizes := config.state_space) is not None:
        channels = sizes["n_heads"] * sizes["head_size"] + 2 * sizes["n_groups"] * sizes["state_size"]
        recurrent = sizes["n_heads"], sizes["state_size"], sizes["head_size"]
        wide = torch.promote_types(dtype, torch.float32)
        return ((channels, sizes["kernel_size"] - 1), dtype), (recurrent, wide)
    sizes = config.linear_attention
    assert sizes is not None
    channels = 2 * sizes["n_key_heads"] * sizes["key_size"] + sizes["n_value_heads"] * sizes["value_size"]
    recurrent = sizes["n_value_heads"], sizes["key_size"], sizes["value_size"]
    return ((channels, sizes["kernel_size"] - 1), dtype), (recurrent, torch.promote_types(dtype, torch.float32))


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

    def begin(self) -> None:
        """Before the layers: the states of slots that begin anew are none.

        Raises:
            LitGPTError: A state is at another position than the slot is to go on from.
        """
        if self.cache.rewindable:
            return
        for slot, start in enumerate(self.starts, self.rows.start):
            if start == 0:
                for tensor in (tensor for states in self.cache.states.values() for tensor in states):
                    tensor[slot].zero_()
            elif start != self.cache.state_positions[slot]:
                raise LitGPTError(
                    f"Linear attention can't go on from position {start}: its state in slot {slot} of the cache is at"
                    f" {self.cache.state_positions[slot]}; begin at 0."
                )
            self.cache.state_positions[slot] = -1  # until all layers are through

    def finish(self, n_tokens: int) -> None:
        """After the layers."""
        for slot, start in enumerate(self.starts, self.rows.start):
            self.cache.state_positions[slot] = start + n_tokens
            self.cache.filled_ends[slot] = max(start + n_tokens, self.cache.filled_ends[slot] if start else 0)

    def key_positions(self, window: int | None, n_tokens: int) -> Tensor | None:
        """The positions of what `extend` returns in layers with this window, `(B or 1, S)`, below 0 where there is
        nothing; None: 0 ... `end` - 1."""
        size = None if window is None else self.cache.ring_sizes.get(window)
        if size is None or self.end(n_tokens) <= size:
            return None
        device = self.cache.keys[0].device
        last = torch.tensor(sorted(set(self.starts)) if len(set(self.starts)) == 1 else self.starts, device=device)
        last = last[:, None] + (n_tokens - 1)
        return last - (last - torch.arange(size, device=device)) % size

    def state(self, layer: int) -> list[Tensor]:
        """The convolution's last inputs `(B, channels, kernel - 1)`, the recurrent state `(B, heads, keys, values)`."""
        return [tensor[self.rows] for tensor in self.cache.states[layer]]

    def store_state(self, layer: int, *states: Tensor) -> None:
        """Stores what `state` gives next time."""
        for tensor, state in zip(self.cache.states[layer], states, strict=True):
            tensor[self.rows] = state

    @cached_property
    def _indices(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        """Rows and where each starts, on every device that has layers."""
        rows, starts = torch.arange(len(self.starts)), torch.tensor(self.starts)
        return {on: (rows.to(on), starts.to(on)) for on in {keys.device for keys in self.cache.keys}}

    def extend(self, layer: int, k: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Stores new keys and values `(B, G, T, H)`; returns the filled part of these slots, `(B, G, end, H)` each."""
        keys, values = self.cache.keys[layer][self.rows], self.cache.values[layer][self.rows]
        self._write(keys, k)
        if v is not None:
            self._write(values, v)
        end = self.end(k.size(2))  # a ring has fewer positions, and gives them all
        return keys[:, :, :end], values[:, :, :end]

    def _write(self, cached: Tensor, new: Tensor) -> None:
        n_tokens = new.size(2)
        if len(set(self.starts)) == 1:
            self._write_rows(cached, new, self.starts[0])
        elif n_tokens == 1:
            rows, starts = self._indices[cached.device]
            size = cached.size(2)
            cached[rows, :, starts if size == self.cache.length else starts % size] = new[:, :, 0]
        else:
            for row, start in enumerate(self.starts):
                self._write_rows(cached[row : row + 1], new[row : row + 1], start)

    def _write_rows(self, cached: Tensor, new: Tensor, start: int) -> None:
        """Writes `(B, G, T, H)` from position `start` on; in a ring, over its end to its beginning."""
        size, n_tokens = cached.size(2), new.size(2)
        if size < self.cache.length and self.cache.max_chunk is not None and n_tokens > self.cache.max_chunk:
            raise LitGPTError(f"This cache takes {self.cache.max_chunk} tokens at once, not {n_tokens}.")
        at = start % size if size < self.cache.length else start
        first = min(n_tokens, size - at)
        cached[:, :, at : at + first] = new[:, :, :first]
        if first < n_tokens:
            cached[:, :, : n_tokens - first] = new[:, :, first:]

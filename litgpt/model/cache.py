"""Keys and values of tokens already seen, so that each new token is computed once; in layers of linear attention, their
state after those tokens.

S: slots (sequences held at the same time), G: key-value heads, L: positions a slot has room for, H: head size.
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

LARGE = 2**20
"""Bytes from which on a tensor of a cache takes memory page by page, as it fills."""


class KVCache:
    """Room for `slots` sequences of `length` tokens, in every layer; allocated once, never moved.

    Args:
        config: Of the model.
        slots: Sequences held at the same time.
        length: Tokens of each.
        device: Where, for all layers or one by one.
        dtype: None: torch's default.
        ranks: Processes that share the model's key-value heads; each holds those of its own.
        at_once: The most tokens that come at once. Layers with a sliding window then keep that many and a window's, a
            new token in the place of the oldest. None: every layer keeps all.
    """

    def __init__(
        self,
        config: Config,
        slots: int,
        length: int,
        device: torch.device | str | Sequence[torch.device] | None = None,
        dtype: torch.dtype | None = None,
        ranks: int = 1,
        at_once: int | None = None,
    ) -> None:
        groups, key_size, value_size = kv_shape(config, ranks)
        devices = device if isinstance(device, Sequence) and not isinstance(device, str) else [device] * config.n_layer
        places = [(room(config, layer, length, at_once), place) for layer, place in enumerate(devices)]
        # One tensor a layer: compilers copy a single stacked one whole at each write.
        self.keys = [_zeros((slots, groups, L, key_size), place, dtype) for L, place in places]
        if config.latent_attention is None:
            self.values = [_zeros((slots, groups, L, value_size), place, dtype) for L, place in places]
        else:
            self.values = [keys[..., :value_size] for keys in self.keys]  # the latent is both
        self.held = self.keys if config.latent_attention is not None else [*self.keys, *self.values]
        """Every tensor of keys and values there is, once, `(slots, G, length, ...)`."""
        self.states = {
            layer: [_zeros((slots, *shape), place, kind) for shape, kind in state_shapes(config, dtype)]
            for layer, place in enumerate(devices)
            if config.linear(layer)
        }
        """By number of a layer of linear attention: the convolution's last inputs and the memory, `(slots, ...)`."""
        self.reached = [0] * slots
        """The position that each slot's states are at; -1: they are of no use."""
        self.rings = {
            window: L
            for layer, (L, _) in enumerate(places)
            if (window := config.window(layer)) is not None and not config.linear(layer) and length > L
        }
        """By window: the positions that its layers have room for, where that is less than `length`."""
        self.written = [0] * slots
        """One past the furthest position written in each slot since it was begun."""
        self.at_once = at_once
        self.slots = slots
        self.length = length

    def resumable(self, slot: int, position: int) -> bool:
        """Whether the sequence in a slot can go on from a position that it reached before."""
        if position and not self.rewindable and position != self.reached[slot]:
            return False
        oldest = max(0, position - max(self.rings, default=0) + 1)
        return position == 0 or all(oldest >= self.written[slot] - room for room in self.rings.values())

    @property
    def rewindable(self) -> bool:
        """Whether a slot can go back to an earlier position: keys and values can, a state is known at its end only."""
        return not self.states

    def swap(self, a: int, b: int, n_tokens: int) -> None:
        """Exchanges two slots, of which at most the first `n_tokens` positions are filled."""
        for tensor in self.held:
            tensor[[a, b], :, :n_tokens] = tensor[[b, a], :, :n_tokens]
        for tensor in (tensor for states in self.states.values() for tensor in states):
            tensor[[a, b]] = tensor[[b, a]]
        self.reached[a], self.reached[b] = self.reached[b], self.reached[a]
        self.written[a], self.written[b] = self.written[b], self.written[a]

    def copy(self, source: int, target: int, n_tokens: int) -> None:
        """Makes the first `n_tokens` positions of a slot those of another; all that are filled unless `rewindable`."""
        for tensor in self.held:
            tensor[target, :, :n_tokens] = tensor[source, :, :n_tokens]
        for tensor in (tensor for states in self.states.values() for tensor in states):
            tensor[target] = tensor[source]
        self.reached[target] = self.reached[source]
        self.written[target] = self.written[source] if self.rings else n_tokens

    @staticmethod
    def nbytes(
        config: Config, slots: int, length: int, dtype: torch.dtype, ranks: int = 1, at_once: int | None = None
    ) -> int:
        """Bytes a cache of this size takes, on each of `ranks` processes."""
        groups, key_size, value_size = kv_shape(config, ranks)
        size = key_size + (value_size if config.latent_attention is None else 0)
        n_linear = sum(config.linear(layer) for layer in range(config.n_layer))
        states = state_shapes(config, dtype) if n_linear else ()
        state = sum(math.prod(shape) * kind.itemsize for shape, kind in states)
        positions = sum(room(config, layer, length, at_once) for layer in range(config.n_layer))
        return slots * (n_linear * state + positions * groups * size * dtype.itemsize)


def room(config: Config, layer: int, length: int, at_once: int | None) -> int:
    """Positions of a sequence of `length` tokens that a layer keeps at a time."""
    if config.linear(layer):
        return 0
    window = config.window(layer)
    return length if window is None or at_once is None else min(length, window + at_once)


def _zeros(shape: tuple[int, ...], device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
    """Zeros; on a CPU, large ones cost no memory until they are written to. (torch's own cost all at once, and numpy's
    two megabytes for each sequence's first token.)"""
    dtype = dtype or torch.get_default_dtype()
    nbytes = math.prod(shape) * dtype.itemsize
    if torch.device(device or "cpu").type != "cpu" or nbytes < LARGE or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.zeros(shape, device=device, dtype=dtype)
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).view(shape)


def kv_shape(config: Config, ranks: int = 1) -> tuple[int, int, int]:
    """Heads, key size and value size of what a layer keeps of a token, on each of `ranks` processes; latent attention
    keeps one latent, as both, and every process needs it."""
    if config.latent_attention is not None:
        rank = config.latent_attention["kv_lora_rank"]
        return 1, rank + config.latent_attention["qk_rope_head_dim"], rank
    assert config.n_query_groups is not None and config.head_size is not None
    return config.n_query_groups // ranks, config.head_size, config.head_size


def state_shapes(config: Config, dtype: torch.dtype | None) -> tuple[tuple[tuple[int, ...], torch.dtype], ...]:
    """Shape and type of what a layer of linear attention keeps of a sequence: its convolution's last inputs, and the
    memory, which is a sum over all tokens, in float32 at least."""
    sizes, narrow = config.linear_attention, dtype or torch.get_default_dtype()
    assert sizes is not None
    channels = 2 * sizes["n_key_heads"] * sizes["key_size"] + sizes["n_value_heads"] * sizes["value_size"]
    memory = sizes["n_value_heads"], sizes["key_size"], sizes["value_size"]
    wide = torch.promote_types(narrow, torch.float32)
    return ((channels, sizes["kernel_size"] - 1), narrow), (memory, wide)


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
            elif start != self.cache.reached[slot]:
                raise LitGPTError(
                    f"Linear attention can't go on from position {start}: its state in slot {slot} of the cache is at"
                    f" {self.cache.reached[slot]}; begin at 0."
                )
            self.cache.reached[slot] = -1  # until all layers are through

    def finish(self, n_tokens: int) -> None:
        """After the layers."""
        for slot, start in enumerate(self.starts, self.rows.start):
            self.cache.reached[slot] = start + n_tokens
            self.cache.written[slot] = max(start + n_tokens, self.cache.written[slot] if start else 0)

    def held(self, window: int | None, n_tokens: int) -> Tensor | None:
        """The positions of what `extend` returns in layers with this window, `(B or 1, S)`, below 0 where there is
        nothing; None: 0 ... `end` - 1."""
        size = None if window is None else self.cache.rings.get(window)
        if size is None or self.end(n_tokens) <= size:
            return None
        device = self.cache.keys[0].device
        last = torch.tensor(sorted(set(self.starts)) if len(set(self.starts)) == 1 else self.starts, device=device)
        last = last[:, None] + (n_tokens - 1)
        return last - (last - torch.arange(size, device=device)) % size

    def state(self, layer: int) -> list[Tensor]:
        """The convolution's last inputs `(B, channels, kernel - 1)` and the memory `(B, heads, keys, values)`."""
        return [tensor[self.rows] for tensor in self.cache.states[layer]]

    def keep(self, layer: int, *states: Tensor) -> None:
        """Stores what `state` gives next time."""
        for tensor, state in zip(self.cache.states[layer], states, strict=True):
            tensor[self.rows] = state

    @cached_property
    def _indices(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        """Rows and where each starts, on every device that has layers."""
        rows, starts = torch.arange(len(self.starts)), torch.tensor(self.starts)
        return {place: (rows.to(place), starts.to(place)) for place in {keys.device for keys in self.cache.keys}}

    def extend(self, layer: int, k: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Stores new keys and values `(B, G, T, H)`; returns the filled part of these slots, `(B, G, end, H)` each."""
        keys, values = self.cache.keys[layer][self.rows], self.cache.values[layer][self.rows]
        self._write(keys, k)
        if v is not None:
            self._write(values, v)
        end = self.end(k.size(2))  # a ring has fewer positions, and gives them all
        return keys[:, :, :end], values[:, :, :end]

    def _write(self, held: Tensor, new: Tensor) -> None:
        n_tokens = new.size(2)
        if len(set(self.starts)) == 1:
            self._place(held, new, self.starts[0])
        elif n_tokens == 1:
            rows, starts = self._indices[held.device]
            held[rows, :, starts if held.size(2) == self.cache.length else starts % held.size(2)] = new[:, :, 0]
        else:
            for row, start in enumerate(self.starts):
                self._place(held[row : row + 1], new[row : row + 1], start)

    def _place(self, held: Tensor, new: Tensor, start: int) -> None:
        """Writes `(B, G, T, H)` from position `start` on; in a ring, over its end to its beginning."""
        size, n_tokens = held.size(2), new.size(2)
        if size < self.cache.length and self.cache.at_once is not None and n_tokens > self.cache.at_once:
            raise LitGPTError(f"This cache takes {self.cache.at_once} tokens at once, not {n_tokens}.")
        at = start % size if size < self.cache.length else start
        first = min(n_tokens, size - at)
        held[:, :, at : at + first] = new[:, :, :first]
        if first < n_tokens:
            held[:, :, : n_tokens - first] = new[:, :, first:]

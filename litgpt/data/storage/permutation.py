"""Random orders that take next to no memory, whatever their length."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    import numpy as np

DRAWN = 1 << 20
"""Up to this size an order is drawn and held, 8 bytes a place; the places of a larger one are computed."""
ROUNDS = 6
WORD = (1 << 64) - 1


class Order(Sequence[int]):
    """An order of the numbers below its length; a subclass says which is at each place."""

    def at(self, place: int) -> int:
        """The number at a place from 0 up to, not including, the length."""
        raise NotImplementedError

    @overload
    def __getitem__(self, place: int) -> int: ...
    @overload
    def __getitem__(self, place: slice) -> list[int]: ...
    def __getitem__(self, place: int | slice) -> int | list[int]:
        if isinstance(place, slice):
            return [self.at(each) for each in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        return self.at(place % len(self))


class Permutation(Order):
    """The numbers below `size` in an order that follows from the seed.

    A large one is a Feistel network over the next power of two, walked until it falls below `size`: Black and Rogaway,
    Ciphers with Arbitrary Finite Domains (2002), section 4.

    Args:
        size: How many.
        seed: From 0 up to 2⁶³.
        drawn: The size up to which the order is held.
    """

    def __init__(self, size: int, seed: int, drawn: int = DRAWN) -> None:
        self.size = size
        bits = max(2, (size - 1).bit_length())
        self.low, self.high = bits // 2, bits - bits // 2
        self.keys = [_mixed(seed + number * 0x9E3779B97F4A7C15) for number in range(ROUNDS)]
        self.drawn: np.ndarray | None = None
        if size <= drawn:
            import torch

            order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
            self.drawn = order.numpy()  # a list of these numbers takes four times as much

    def __len__(self) -> int:
        return self.size

    def at(self, place: int) -> int:
        if self.drawn is not None:
            return int(self.drawn[place])
        place = self._walk(place)
        while place >= self.size:
            place = self._walk(place)
        return place

    def _walk(self, place: int) -> int:
        low, high = self.low, self.high
        left, right = place >> low, place & ((1 << low) - 1)
        for key in self.keys:  # an even number of rounds: the halves have their sizes again
            left, right, low, high = right, left ^ (_mixed(right ^ key) & ((1 << high) - 1)), high, low
        return left << low | right


class ChunkedOrder(Order):
    """The samples of chunks, one chunk after the other in a random order, those of a chunk in a random order: what is
    read lies together, as chunks that are fetched from afar need it.

    Args:
        sizes: Samples of each chunk, which are numbered through all chunks.
        seed: From 0 up to 2⁶³.
    """

    def __init__(self, sizes: Sequence[int], seed: int) -> None:
        self.sizes, self.seed = sizes, seed
        self.firsts = [0, *accumulate(sizes)]
        self.chunks = Permutation(len(sizes), seed)[:]
        self.ends = list(accumulate(sizes[chunk] for chunk in self.chunks))
        self.within = lru_cache(maxsize=4)(self._within)

    def __len__(self) -> int:
        return self.firsts[-1]

    def at(self, place: int) -> int:
        number = bisect_right(self.ends, place)
        chunk = self.chunks[number]
        return self.firsts[chunk] + self.within(chunk)[place - self.ends[number] + self.sizes[chunk]]

    def _within(self, chunk: int) -> Permutation:
        return Permutation(self.sizes[chunk], _mixed(self.seed + chunk + 1) >> 1)


def _mixed(word: int) -> int:
    """64 bits from 64 bits, each of which depends on all: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    word &= WORD
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB & WORD
    return word ^ word >> 31

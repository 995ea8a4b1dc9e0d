"""In which order samples are read: a new permutation each epoch, found again from nothing but seed and position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, overload

from litgpt.data.storage.permutation import Permutation
from litgpt.training.batching.packing import TokenizedSample

if TYPE_CHECKING:
    from litgpt.training.run import Samples


class Portion(Sequence[TokenizedSample]):
    """Some samples of a data set, each read when it is first asked for."""

    def __init__(self, dataset: Samples, indices: Iterable[int] = ()) -> None:
        self.dataset = dataset
        self.indices = list(indices)
        self._read: dict[int, TokenizedSample] = {}

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, place: int) -> TokenizedSample: ...
    @overload
    def __getitem__(self, place: slice) -> list[TokenizedSample]: ...
    def __getitem__(self, place: int | slice) -> TokenizedSample | list[TokenizedSample]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        if place not in self._read:
            self._read[place] = self.dataset[self.indices[place]]
        return self._read[place]

    def fetch(self, places: Iterable[int]) -> None:
        """Reads these samples now."""
        for place in places:
            self[place]

    def known_length(self, place: int) -> int | None:
        """Tokens of a sample that are all targets but the first, if the data set knows without reading them."""
        known = getattr(self.dataset, "known_length", None)
        return None if known is None or place in self._read else known(self.indices[place])


class Shuffled:
    """An endless stream of samples, epoch after epoch, that can be entered anywhere.

    A data set may have an order of its own: `order(seed)`, of all its samples.
    """

    def __init__(self, dataset: Samples, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = -1
        self.order: Sequence[int] = ()

    def read(self, position: int, count: int) -> Portion:
        """The `count` samples from `position` (samples since the start of training) on; they may reach into the next
        epoch, before which those of the one before are read."""
        portion, size = Portion(self.dataset), len(self.dataset)
        for epoch, places in groupby(range(position, position + count), lambda place: place // size):
            portion.fetch(range(len(portion)))
            self._begin(epoch)
            portion.indices += [self.order[place % size] for place in places]
        return portion

    def _begin(self, epoch: int) -> None:
        if epoch == self.epoch:
            return
        self.epoch = epoch
        seed = (self.seed * 1_000_003 + epoch) % 2**63
        own = getattr(self.dataset, "order", None)
        self.order = Permutation(len(self.dataset), seed) if own is None else own(seed)
        redraw = getattr(self.dataset, "epoch", None)
        if redraw is not None:
            redraw(epoch)

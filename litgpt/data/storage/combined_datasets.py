"""Several data sets as one: concatenated, or mixed by weights."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from litgpt.data.storage.fingerprint import data_fingerprint
from litgpt.data.storage.permutation import Permutation
from litgpt.data.storage.token_cache import content_hash


class ConcatDataset:
    """Data sets one after the other."""

    def __init__(self, datasets: Sequence[Any]) -> None:
        self.datasets = list(datasets)
        self._ends = list(accumulate(map(len, self.datasets)))

    def epoch(self, n: int) -> None:
        """Starts epoch `n` of the data sets that have epochs."""
        _start_epoch(self.datasets, n)

    @property
    def fingerprint(self) -> str:
        """A hash of all data sets."""
        return _fingerprint(self.datasets)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample."""
        return [length for dataset in self.datasets for length in dataset.lengths]

    def known_length(self, index: int) -> int | None:
        """Tokens of a sample, if its data set knows without reading it."""
        return _known_length(*self._locate(index))

    def _locate(self, index: int) -> tuple[Any, int]:
        """The data set that a sample comes from, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect_right(self._ends, index)
        return self.datasets[which], index - (self._ends[which - 1] if which else 0)

    @property
    def prompt_style(self) -> Any:
        """How the samples of the first data set are rendered; None: they aren't."""
        return getattr(self.datasets[0], "prompt_style", None)

    def question(self, index: int, protect: Callable[[str], str] = str) -> tuple[str, str] | None:
        """As `SFTDataset.question`; None where the data set has no questions."""
        dataset, own = self._locate(index)
        return dataset.question(own, protect) if hasattr(dataset, "question") else None

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Any:
        dataset, own = self._locate(index)
        return dataset[own]


class MixedDataset:
    """Data sets mixed by weights: each epoch has the same number of samples of each.

    A data set is gone through again and again in orders drawn from the seed, each sample once before any comes a second
    time, from epoch to epoch; so all follows from the seed and the number of the epoch.

    Args:
        datasets: To mix.
        weights: The share of each among the samples of an epoch, to any scale.
        size: Samples of an epoch. None: as many as the data sets have together.
        seed: Of the orders.
    """

    def __init__(self, datasets: Sequence[Any], weights: Sequence[float], size: int | None, seed: int) -> None:
        self.datasets, self.seed = list(datasets), seed
        self.counts = shares(weights, sum(map(len, datasets)) if size is None else size)
        self._ends = list(accumulate(self.counts))
        self._orders: dict[tuple[int, int], Sequence[int]] = {}
        self._number = 0

    def epoch(self, n: int) -> None:
        """Chooses the samples of epoch `n`, the same for the same seed and `n`."""
        self._number, self._orders = n, {}
        _start_epoch(self.datasets, n)

    @property
    def fingerprint(self) -> str:
        """A hash of all data sets, and of how they are mixed."""
        return _fingerprint(self.datasets, self.counts, self.seed)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample of the epoch."""
        own = [dataset.lengths for dataset in self.datasets]
        return [own[which][sample] for which, sample in map(self._locate, range(len(self)))]

    def known_length(self, index: int) -> int | None:
        """Tokens of a sample, if its data set knows without reading it."""
        which, sample = self._locate(index)
        return _known_length(self.datasets[which], sample)

    def _locate(self, index: int) -> tuple[int, int]:
        """Which data set, and which of its samples."""
        which = bisect_right(self._ends, index)
        count, size = self.counts[which], len(self.datasets[which])
        position = self._number * count + index - (self._ends[which] - count)
        pass_, offset = divmod(position, size)
        if (which, pass_) not in self._orders:
            self._orders[which, pass_] = self._order(which, pass_, size)
        return which, self._orders[which, pass_][offset]

    def _order(self, which: int, pass_: int, size: int) -> Sequence[int]:
        seed, own = ((self.seed * 1_000_003 + pass_) * 1_009 + which) % 2**63, self.datasets[which]
        return own.order(seed) if hasattr(own, "order") else Permutation(size, seed)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which, sample = self._locate(index)
        return self.datasets[which][sample]


def _known_length(dataset: Any, index: int) -> int | None:
    return dataset.known_length(index) if hasattr(dataset, "known_length") else None


def _fingerprint(datasets: Sequence[Any], *mixture: Any) -> str:
    return content_hash(repr([*mixture, *map(data_fingerprint, datasets)]).encode())


def _start_epoch(datasets: Sequence[Any], n: int) -> None:
    for dataset in datasets:
        if hasattr(dataset, "epoch"):
            dataset.epoch(n)


def shares(weights: Sequence[float], size: int) -> list[int]:
    """`size` cut in proportion to the weights, the largest remainders rounded up."""
    total = sum(weights)
    exact = [size * weight / total for weight in weights]
    counts = [int(share) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_rest[: size - sum(counts)]:
        counts[i] += 1
    return counts

"""Concatenated and mixed data sets: shares, and orders that follow from seed and epoch."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from litgpt.data.storage.combined_datasets import ConcatDataset, MixedDataset, shares
from litgpt.training.batching.order import Shuffled


class Numbers:
    """A data set of numbers."""

    def __init__(self, start: int, size: int) -> None:
        self.items = list(range(start, start + size))
        self.lengths = [1 + i % 3 for i in range(size)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def epochs(mixed: MixedDataset, count: int) -> list[list[int]]:
    found = []
    for number in range(count):
        mixed.epoch(number)
        found.append([mixed[index] for index in range(len(mixed))])
    return found


def test_each_epoch_has_each_source_by_its_weight() -> None:
    mixed = MixedDataset([Numbers(0, 10), Numbers(100, 40)], [3, 1], 20, seed=1)
    for found in epochs(mixed, 3):
        assert Counter(number >= 100 for number in found) == {False: 15, True: 5}


def test_no_sample_comes_a_second_time_before_all_have_come() -> None:
    mixed = MixedDataset([Numbers(0, 10), Numbers(100, 40)], [3, 1], 20, seed=1)
    seen = [number for found in epochs(mixed, 8) for number in found]
    assert set(Counter(number for number in seen if number < 100).values()) == {12}
    assert set(Counter(number for number in seen if number >= 100).values()) == {1}


def test_an_epoch_follows_from_the_seed_and_its_number_alone() -> None:
    def make(seed: int) -> MixedDataset:
        return MixedDataset([Numbers(0, 7), Numbers(100, 5)], [1, 1], None, seed)

    whole, fresh = make(3), make(3)
    stream, resumed = Shuffled(whole, 5), Shuffled(fresh, 5)
    assert stream.read(0, 100)[60:] == resumed.read(60, 40)[:]
    assert epochs(make(3), 4)[3] == epochs(make(3), 9)[3] != epochs(make(4), 4)[3]
    assert len(make(3)) == 12


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [0.1, 0.2, 0.7], [1e-9, 1]])
@pytest.mark.parametrize("size", [1, 10, 997])
def test_shares_make_up_the_whole(weights: list[float], size: int) -> None:
    counts = shares(weights, size)
    assert sum(counts) == size
    assert all(abs(count - size * w / sum(weights)) < 1 for count, w in zip(counts, weights, strict=True))


def test_lengths_are_those_of_the_samples() -> None:
    mixed = MixedDataset([Numbers(0, 6), Numbers(100, 6)], [1, 2], 9, seed=0)
    mixed.epoch(2)
    assert mixed.lengths == [1 + (mixed[index] % 100) % 3 for index in range(9)]


def test_concatenated_sets_follow_one_another() -> None:
    concatenated = ConcatDataset([Numbers(0, 2), Numbers(10, 3)])
    assert [concatenated[index] for index in range(len(concatenated))] == [0, 1, 10, 11, 12]
    with pytest.raises(IndexError):
        concatenated[5]

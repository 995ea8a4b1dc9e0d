"""The order of the samples."""

from __future__ import annotations

from litgpt.training.batching.order import Shuffled, permutation


class Numbers:
    """A data set whose samples say which they are; it notes the epochs it is told."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> int:
        return index

    def epoch(self, n: int) -> None:
        self.epochs.append(n)


def test_an_epoch_has_every_sample_once_in_an_order_of_its_own():
    stream = Shuffled(Numbers(), seed=1)
    first, second = stream.read(0, 7), stream.read(7, 7)
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second


def test_reading_reaches_into_the_next_epoch_and_tells_the_data_set():
    dataset = Numbers()
    assert len(Shuffled(dataset, seed=1).read(4, 12)) == 12
    assert dataset.epochs == [0, 1, 2]


def test_a_position_has_the_same_sample_however_it_is_reached():
    whole = Shuffled(Numbers(), seed=3).read(0, 20)
    assert Shuffled(Numbers(), seed=3).read(9, 11) == whole[9:]
    assert Shuffled(Numbers(), seed=4).read(0, 20) != whole


def test_the_order_is_the_same_on_every_machine():
    assert permutation(7, seed=1, epoch=0).tolist() == permutation(7, seed=1, epoch=0).tolist()
    assert permutation(1000, 1, 0).tolist() != permutation(1000, 1, 1).tolist()

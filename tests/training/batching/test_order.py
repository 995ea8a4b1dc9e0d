"""The order of the samples."""

from __future__ import annotations

from litgpt.training.batching.order import Portion, Shuffled


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
    first, second = list(stream.read(0, 7)), list(stream.read(7, 7))
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second


def test_reading_reaches_into_the_next_epoch_and_tells_the_data_set():
    dataset = Numbers()
    assert len(Shuffled(dataset, seed=1).read(4, 12)) == 12
    assert dataset.epochs == [0, 1, 2]


def test_a_position_has_the_same_sample_however_it_is_reached():
    whole = list(Shuffled(Numbers(), seed=3).read(0, 20))
    assert list(Shuffled(Numbers(), seed=3).read(9, 11)) == whole[9:]
    assert list(Shuffled(Numbers(), seed=4).read(0, 20)) != whole


class Epochs(Numbers):
    """Samples that say of which epoch they are, too."""

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self.epochs[-1], index


def test_samples_are_of_the_epoch_in_which_they_come():
    read = Shuffled(Epochs(), seed=1).read(4, 12)
    assert [epoch for epoch, _ in read] == [0] * 3 + [1] * 7 + [2] * 2


def test_a_data_set_may_have_an_order_of_its_own():
    class Ordered(Numbers):
        def order(self, seed: int) -> range:
            return range(6, -1, -1)

    assert list(Shuffled(Ordered(), seed=1).read(0, 8)) == [6, 5, 4, 3, 2, 1, 0, 6]


def test_a_portion_reads_what_it_is_asked_for_once():
    read = []

    class Noting(Numbers):
        def __getitem__(self, index: int) -> int:
            read.append(index)
            return index

        def known_length(self, index: int) -> int:
            return 10 + index

    portion = Portion(Noting(), [3, 5, 6])
    assert portion.known_length(1) == 15 and read == []
    assert portion[1] == 5 and portion[1] == 5 and portion[-2:] == [5, 6] and read == [5, 6]
    assert portion.known_length(1) is None  # what is read tells it
    assert Portion(Numbers(), [3]).known_length(0) is None

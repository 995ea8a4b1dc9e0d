"""Samples that are read while a step is computed, and by one rank alone."""

from __future__ import annotations

import threading

import pytest
import torch

from litgpt.data.storage.blocks import TokenBlocks
from litgpt.training.batching.batches import Batching
from litgpt.training.batching.order import Shuffled
from litgpt.training.batching.read_ahead import ReadAhead
from litgpt.training.loop import fit
from tests.training.runs import column, make_run


class Watched(TokenBlocks):
    """Blocks that note which of them are read, and by which thread."""

    def __init__(self, n_tokens: int = 400, seed: int | None = 1) -> None:
        import numpy as np

        super().__init__(np.arange(n_tokens, dtype="uint16") % 40, 8, seed)
        self.read: list[int] = []
        self.threads: set[str] = set()

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.read.append(index)
        self.threads.add(threading.current_thread().name.split("-")[0])
        return super().__getitem__(index)


def test_each_rank_reads_its_own_samples_alone():
    portions = []
    for rank in range(4):
        data = Watched()
        portion = Shuffled(data, 3).read(0, 12)
        batch = Batching(1, None, packing=True).cut(portion, ranks=4)
        assert data.read == [] and batch.targets == 12 * 8 == batch.tokens
        list(batch.of_rank(rank))
        portions.append(set(data.read))
        assert len(data.read) == 3
    assert len(set.union(*portions)) == 12


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("limit", [None, 5])
def test_what_is_known_is_what_would_be_read(packing, limit):
    data, blind = Watched(seed=None), Watched(seed=None)
    blind.known_length = lambda index: None
    cut = [Batching(2, limit, packing).cut(Shuffled(each, 3).read(5, 20), 2) for each in (data, blind)]
    assert not data.read and len(blind.read) == 20
    for part in ("plan", "lengths", "targets", "tokens"):
        assert getattr(cut[0], part) == getattr(cut[1], part)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_run_that_reads_ahead_is_the_run_that_does_not(tmp_path, steps):
    settings = dict(max_steps=9, global_batch_size=14, save_interval=4)
    plain, ahead = Watched(), Watched()
    fit(make_run(tmp_path / "plain", train_dataset=plain, val_dataset=Watched(seed=None), train=settings))
    run = make_run(tmp_path / "ahead", train_dataset=ahead, val_dataset=Watched(seed=None), train=settings)
    run.read_ahead = steps
    fit(run)
    assert column(tmp_path / "plain", "loss") == column(tmp_path / "ahead", "loss")
    assert len(column(tmp_path / "ahead", "data_time")) == 9
    assert "read" in ahead.threads and "read" not in plain.threads
    resumed = make_run(
        tmp_path / "resumed",
        train_dataset=Watched(),
        train=settings,
        read_ahead=steps,
        resume=tmp_path / "plain" / "step-000004",
    )
    fit(resumed)
    assert column(tmp_path / "resumed", "loss") == column(tmp_path / "plain", "loss")
    assert not [each for each in threading.enumerate() if each.name.startswith("read-ahead")]


def test_what_was_not_foreseen_is_read_at_once_and_errors_arrive_in_their_turn():
    made = []

    def make(position: int, size: int) -> tuple[int, int]:
        if position == 8:
            raise OSError("gone")
        made.append(position)
        return position, size

    batches = ReadAhead(make, 2)
    assert batches.take(0, 4) == (0, 4) and batches.take(4, 4) == (4, 4)
    assert batches.take(6, 2) == (6, 2)
    with pytest.raises(OSError, match="gone"):
        batches.take(8, 2)
    assert batches.take(20, 1) == (20, 1)
    batches.settle()
    assert made[-3:] == [20, 21, 22]
    batches.close()

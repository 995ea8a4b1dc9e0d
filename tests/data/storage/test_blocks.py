"""Blocks cut from one long stream of tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from litgpt.data.storage.blocks import TokenBlocks


def targets(blocks: TokenBlocks) -> list[int]:
    return [token for block in blocks for token in block["labels"][1:].tolist()]


@pytest.mark.parametrize("size", [2, 9, 16, 17, 18, 40])
def test_validation_covers_every_token_once(size: int) -> None:
    blocks = TokenBlocks(np.arange(size, dtype=np.uint16), length=8)
    assert targets(blocks) == list(range(1, size))
    assert blocks.lengths == [len(block["input_ids"]) for block in blocks]


@pytest.mark.parametrize("size", [9, 12, 17, 25, 100])
def test_training_blocks_are_full_and_never_overlap(size: int) -> None:
    blocks = TokenBlocks(np.arange(size, dtype=np.uint16), length=8, seed=3)
    for epoch in range(20):
        blocks.epoch(epoch)
        found = targets(blocks)
        assert len(found) == len(set(found)) == 8 * len(blocks)
        assert all(
            block["input_ids"].tolist() == list(range(block["input_ids"][0], block["input_ids"][0] + 9))
            for block in blocks
        )


def test_epochs_start_elsewhere_but_always_the_same() -> None:
    blocks = TokenBlocks(np.arange(100, dtype=np.uint16), length=8, seed=3)

    def starts(seed: int) -> list[int]:
        blocks.seed = seed
        return [blocks.epoch(epoch) or int(blocks[0]["input_ids"][0]) for epoch in range(12)]

    assert starts(3) == starts(3) != starts(4)
    assert len(set(starts(3))) > 4


def test_ids_are_int64_whatever_the_file_holds() -> None:
    block = TokenBlocks(np.array([65535, 0, 7], dtype="<u2"), length=2)[0]
    assert block["input_ids"].dtype == torch.int64 and block["input_ids"].tolist() == [65535, 0, 7]

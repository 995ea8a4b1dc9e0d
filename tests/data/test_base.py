"""What all data modules share: padded batches, and the split."""

from __future__ import annotations

import pytest
import torch

from litgpt.data import get_sft_collate_fn
from litgpt.data.base import split_indices
from litgpt.errors import LitGPTError


def test_collating_pads_on_the_right_and_cuts() -> None:
    samples = [{"input_ids": torch.arange(n), "labels": torch.arange(n)} for n in (2, 5)]
    batch = get_sft_collate_fn(max_seq_length=4, pad_id=9, ignore_index=-1)(samples)
    assert batch["input_ids"].tolist() == [[0, 1, 9, 9], [0, 1, 2, 3]]
    assert batch["labels"].tolist() == [[0, 1, -1, -1], [0, 1, 2, 3]]


def test_the_split_is_litgpts() -> None:
    # Seen by running LitGPT 0.5.13 on 41 rows with val_split_fraction 0.1 and seed 42.
    train, val = split_indices(41, 0.1, 42)
    assert train[:8] == [0, 28, 21, 17, 30, 16, 11, 35]
    assert val == [26, 18, 25, 3]


@pytest.mark.parametrize("fraction", [1.0, -0.1, 3.0])
def test_a_fraction_that_is_none_is_refused(fraction: float) -> None:
    with pytest.raises(LitGPTError, match="between 0 and 1"):
        split_indices(2, fraction, 42)


def test_a_small_file_still_has_something_to_validate_on() -> None:
    train, val = split_indices(5, 0.05, 42)
    assert (len(train), len(val)) == (4, 1)

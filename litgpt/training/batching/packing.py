"""How the samples of one optimizer step become micro-batches: packed without padding, or padded.

The plan is made over the samples of all ranks together and depends on their lengths alone, so every rank makes the
same plan and runs the same number of micro-batches; a rank short of samples runs one without targets (a sharded model
would hang otherwise).
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from litgpt.training.loss import IGNORED

DOCUMENTS = "documents"
"""What a sample may have besides its tokens: the lengths of the documents that its inputs are, `(D,)` int64."""
GIVEN = "given"
"""And numbers that the objective reads, `(G,)` float32, equally many for every sample."""

TokenizedSample = Mapping[str, Tensor]
PackingPlan = list[list[list[int]]]
"""`plan[micro_batch][rank]`: which samples of the step it gets; none: a micro-batch without targets."""


class MicroBatch(NamedTuple):
    """What one forward pass computes."""

    inputs: Tensor
    """`(1, sum of lengths)` packed, `(B, longest)` padded; int64."""
    targets: Tensor
    """The token after each input, `IGNORED` where there is no loss; same shape."""
    lengths: tuple[int, ...] | None
    """Of the packed samples, or of the documents in them; None: padded."""
    given: Tensor | None = None
    """What the objective is given of each sample, `(S, G)`; None: nothing."""

    @property
    def kept(self) -> Tensor | slice:
        """The places of the targets that have a loss, counted through all rows; a slice: all have."""
        found = (self.targets.flatten() != IGNORED).nonzero().squeeze(1)
        return slice(None) if len(found) == self.targets.numel() else found


def plan_packed(lengths: Sequence[int], capacity: int, ranks: int = 1) -> PackingPlan:
    """Spreads samples over as few micro-batches of at most `capacity` tokens as it can, evenly filled, the same
    number for each rank.

    Args:
        lengths: Tokens of each sample. One longer than `capacity` is a micro-batch of its own.
        capacity: Tokens of a micro-batch.
        ranks: Among which the micro-batches are dealt out.
    """
    capacity = max(1, capacity, *lengths)
    bins = _multiple(-(-sum(lengths) // capacity), ranks)
    while (filled := _fill(lengths, capacity, bins)) is None:
        bins += ranks
    return [filled[first : first + ranks] for first in range(0, bins, ranks)]


def plan_padded(lengths: Sequence[int], micro_batch_size: int, ranks: int = 1) -> PackingPlan:
    """Micro-batches of at most `micro_batch_size` samples; samples of like length are together, to pad little."""
    by_length = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    bins = _multiple(-(-len(lengths) // micro_batch_size), ranks)
    size, larger = divmod(len(lengths), bins)
    ends = [number * size + min(number, larger) for number in range(bins + 1)]
    filled = [by_length[start:end] for start, end in itertools.pairwise(ends)]
    return [filled[first : first + ranks] for first in range(0, bins, ranks)]


def _multiple(count: int, of: int) -> int:
    return max(1, -(-count // of)) * of


def _fill(lengths: Sequence[int], capacity: int, bins: int) -> list[list[int]] | None:
    """Longest first, each into the emptiest bin; None where that overfills one."""
    filled: list[list[int]] = [[] for _ in range(bins)]
    emptiest = [(0, number) for number in range(bins)]
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        load, number = emptiest[0]
        if load + lengths[index] > capacity:
            return None
        filled[number].append(index)
        heapq.heapreplace(emptiest, (load + lengths[index], number))
    return filled


def input_length(sample: TokenizedSample, limit: int | None = None) -> int:
    """Tokens that a sample puts into the model: all but its last, at most `limit`."""
    length = max(0, sample["input_ids"].numel() - 1)
    return length if limit is None else min(length, limit)


def one_shape(samples: Sequence[TokenizedSample]) -> bool:
    """Whether these samples all have the same length and are one document each, so that micro-batches look alike."""
    return len({input_length(sample) for sample in samples}) == 1 and not any(DOCUMENTS in each for each in samples)


def target_count(sample: TokenizedSample, limit: int | None = None) -> int:
    """Tokens of a sample that have a loss."""
    return int((sample["labels"][1 : input_length(sample, limit) + 1] != IGNORED).sum())


def pack(samples: Sequence[TokenizedSample], limit: int | None = None) -> MicroBatch:
    """Samples one behind the other, each shifted by a token and cut to `limit`; without any, one token that has no
    loss."""
    cut = [(sample, length) for sample in samples if (length := input_length(sample, limit))]
    if not cut:
        return MicroBatch(torch.zeros(1, 1, dtype=torch.long), torch.full((1, 1), IGNORED), (1,))
    inputs = torch.cat([sample["input_ids"][:length] for sample, length in cut])
    targets = torch.cat([sample["labels"][1 : length + 1] for sample, length in cut])
    lengths = tuple(part for sample, length in cut for part in document_lengths(sample, length))
    given = [sample[GIVEN] for sample, _ in cut if GIVEN in sample]
    return MicroBatch(inputs.long()[None], targets.long()[None], lengths, torch.stack(given) if given else None)


def document_lengths(sample: TokenizedSample, length: int) -> list[int]:
    """Of the documents in the first `length` inputs of a sample: one, where it doesn't tell them apart."""
    lengths: list[int] = sample[DOCUMENTS].tolist() if DOCUMENTS in sample else [length]
    ends = [min(end, length) for end in itertools.accumulate(lengths)]
    return [end - start for start, end in itertools.pairwise([0, *ends]) if end > start]


def pad(samples: Sequence[TokenizedSample], limit: int | None = None) -> MicroBatch:
    """Samples one below the other, padded on the right (what comes after a token never changes it)."""
    packed = pack(samples, limit)
    assert packed.lengths is not None
    shape = (len(packed.lengths), max(packed.lengths))
    inputs, targets = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
    for row, pieces in enumerate(
        zip(packed.inputs[0].split(packed.lengths), packed.targets[0].split(packed.lengths), strict=True)
    ):
        inputs[row, : packed.lengths[row]], targets[row, : packed.lengths[row]] = pieces
    return MicroBatch(inputs, targets, None, packed.given)

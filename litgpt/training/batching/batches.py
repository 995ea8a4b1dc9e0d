"""The samples of an optimizer step, cut into micro-batches for every rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from litgpt.args import TrainArgs
from litgpt.training.batching.packing import (
    MicroBatch,
    PackingPlan,
    TokenizedSample,
    input_length,
    pack,
    pad,
    plan_packed,
    plan_padded,
    target_count,
)

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True)
class Batch:
    """Samples with the plan that cuts them."""

    samples: Sequence[TokenizedSample]
    plan: PackingPlan
    packing: bool
    limit: int | None
    lengths: Sequence[int]
    """Input tokens of each sample."""
    targets: int
    """Tokens with a loss, all ranks."""
    per_sample: bool = False

    @property
    def units(self) -> int:
        """What the sum of the losses is divided by: target tokens, or samples."""
        return len(self.samples) if self.per_sample and self.targets else self.targets

    @property
    def tokens(self) -> int:
        """Input tokens, all ranks, padding not counted."""
        return sum(self.lengths)

    @property
    def padded_tokens(self) -> int:
        """Tokens that all ranks compute, padding included."""
        cuts = [[self.lengths[index] for index in chosen if self.lengths[index]] for of in self.plan for chosen in of]
        if self.packing:
            return sum(sum(cut) or 1 for cut in cuts)
        return sum(len(cut) * max(cut) if cut else 1 for cut in cuts)

    def places(self, rank: int) -> list[int]:
        """Which samples a rank computes."""
        return [place for of_ranks in self.plan for place in of_ranks[rank]]

    def of_rank(self, rank: int) -> Iterator[MicroBatch]:
        """What a rank computes, one micro-batch after the other; as many as every other rank has."""
        make = pack if self.packing else pad
        for of_ranks in self.plan:
            yield make([self.samples[index] for index in of_ranks[rank]], self.limit)


@dataclass(frozen=True)
class Batching:
    """How samples become micro-batches."""

    micro_batch_size: int
    max_seq_length: int | None
    """Tokens of a sample that are used at most; None: all."""
    packing: bool
    per_sample: bool = False
    """Whether losses are summed up to one a sample, not one a target token."""

    @classmethod
    def of(cls, train: TrainArgs, sequences: int = 1, per_sample: bool = False) -> Batching:
        """As `train` says, whose `max_seq_length` is of each of a sample's `sequences`."""
        limit = train.max_seq_length and train.max_seq_length * sequences
        return cls(train.micro_batch_size, limit, train.packing, per_sample)

    def cut(self, samples: Sequence[TokenizedSample], ranks: int) -> Batch:
        """The micro-batches of `samples`, the same on every rank; those of a `known_length` aren't read for it.

        Packed ones have at most `micro_batch_size` times `max_seq_length` tokens (unset: times the longest of these
        samples).
        """
        counts = [self._counts(samples, place) for place in range(len(samples))]
        lengths, targets = [tokens for tokens, _ in counts], sum(own for _, own in counts)
        if self.packing:
            plan = plan_packed(lengths, self.micro_batch_size * (self.max_seq_length or max(lengths)), ranks)
        else:
            plan = plan_padded(lengths, self.micro_batch_size, ranks)
        return Batch(samples, plan, self.packing, self.max_seq_length, lengths, targets, self.per_sample)

    def _counts(self, samples: Sequence[TokenizedSample], place: int) -> tuple[int, int]:
        """Input tokens of a sample, and those that have a loss."""
        known, limit = getattr(samples, "known_length", None), self.max_seq_length
        if known is not None and (length := known(place)) is not None:
            tokens = length - 1 if limit is None else min(length - 1, limit)
            return tokens, tokens
        return input_length(samples[place], limit), target_count(samples[place], limit)


def sum_over_ranks(fabric: Fabric, value: Tensor) -> float:
    """The sum of a number that each rank has a part of."""
    if fabric.world_size == 1:
        return float(value)
    dtype = torch.float32 if fabric.device.type == "mps" else torch.float64
    summed = fabric.all_reduce(value.to(fabric.device, dtype), reduce_op="sum")
    assert isinstance(summed, Tensor)
    return float(summed)

"""In which order samples are read: a new permutation each epoch, found again from nothing but seed and position."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from litgpt.training.batching.packing import TokenizedSample

if TYPE_CHECKING:
    from litgpt.training.run import Samples


class Shuffled:
    """An endless stream of samples, epoch after epoch, that can be entered anywhere."""

    def __init__(self, dataset: Samples, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.epoch = -1
        self.order: list[int] = []

    def read(self, position: int, count: int) -> list[TokenizedSample]:
        """The `count` samples from `position` (samples since the start of training) on; they may reach into the next
        epoch."""
        return [self._sample(*divmod(place, len(self.dataset))) for place in range(position, position + count)]

    def _sample(self, epoch: int, place: int) -> TokenizedSample:
        if epoch != self.epoch:
            self.epoch = epoch
            self.order = permutation(len(self.dataset), self.seed, epoch).tolist()
            redraw = getattr(self.dataset, "epoch", None)
            if redraw is not None:
                redraw(epoch)
        return self.dataset[self.order[place]]


def permutation(size: int, seed: int, epoch: int) -> Tensor:
    """The order of `size` samples in an epoch, `(size,)`."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
    return torch.randperm(size, generator=generator)

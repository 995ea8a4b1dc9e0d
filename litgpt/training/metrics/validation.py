"""The loss on held-out samples: the sum over their target tokens divided by their number, whatever the batches and
ranks; and what a run makes of it: which weights are the best, and whether more training still helps."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from litgpt.args import EvalArgs
from litgpt.errors import LitGPTError
from litgpt.training.batching.batches import Batch, Batching, sum_over_ranks
from litgpt.training.batching.order import Portion
from litgpt.training.step import begin, compute

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from litgpt.training.run import Samples


@dataclass
class Validations:
    """What the validations of a run have found so far; saved with its state.

    Only validations over equally many samples are compared with each other.
    """

    step: int = -1
    """Optimizer steps before the last one; -1: there was none."""
    samples: int = 0
    """How many the last one read."""
    loss: float | None = None
    """Of the last one, nats per target token."""
    best_loss: float | None = None
    best_step: int = -1
    worse: int = 0
    """Validations in a row that found no lower loss."""

    def note(self, step: int, samples: int, loss: float, compared: bool) -> bool:
        """Takes in a validation; says whether it found the lowest loss so far (never where it is not `compared`)."""
        self.step, self.samples, self.loss = step, samples, loss
        if not compared:
            return False
        if loss == loss and (self.best_loss is None or loss < self.best_loss):  # a NaN is no improvement
            self.best_loss, self.best_step, self.worse = loss, step, 0
            return True
        self.worse += 1
        return False

    def exhausted(self, patience: int | None) -> bool:
        """Whether the loss has not fallen for so long that the run ends."""
        return patience is not None and self.worse >= patience


def example_index(choice: EvalArgs, size: int, seed: int, step: int) -> int:
    """Which of `size` validation samples the example after a step starts from; a resumed run chooses the same.

    Raises:
        LitGPTError: `eval.evaluate_example` is none of them.
    """
    if choice.evaluate_example == "random":
        return random.Random(f"{seed} {step}").randrange(size)
    index = 0 if choice.evaluate_example == "first" else int(choice.evaluate_example)
    if not 0 <= index < size:
        raise LitGPTError(
            f"eval.evaluate_example is {index}, but there are {size} validation samples, numbered from 0."
        )
    return index


@torch.no_grad()
def validate(
    fabric: Fabric,
    objective: nn.Module,
    dataset: Samples,
    batching: Batching,
    max_samples: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> float:
    """The mean loss per target token, in nats, or per sample, over the first `max_samples` of `dataset` (None: all);
    NaN if none has a target. `on_progress` learns how many samples were read, of how many.

    Leaves the model in the mode, training or evaluation, that it was in.
    """
    was_training = objective.training
    objective.eval()
    count = len(dataset) if max_samples is None else min(max_samples, len(dataset))
    wide = torch.float32 if fabric.device.type == "mps" else torch.float64
    loss = torch.zeros((), dtype=wide, device=fabric.device)  # the host need not know it before the end
    units = done = 0
    batches = _batches(dataset, count, batching, fabric.world_size)
    if batching.per_sample:  # a loss that may depend on all samples
        batches = list(batches)
        begin(fabric, objective, batches)
    for batch in batches:
        units += batch.units
        if on_progress is not None:
            on_progress(done, count)
        done += len(batch.samples)
        for micro_batch in batch.of_rank(fabric.global_rank):
            loss += compute(fabric, objective, micro_batch).to(loss.dtype)
    objective.train(was_training)
    total = sum_over_ranks(fabric, loss)
    return total / units if units else float("nan")


def _batches(dataset: Samples, count: int, batching: Batching, ranks: int) -> Iterable[Batch]:
    per_plan = batching.micro_batch_size * ranks * 8
    for start in range(0, count, per_plan):
        yield batching.cut(Portion(dataset, range(start, min(start + per_plan, count))), ranks)

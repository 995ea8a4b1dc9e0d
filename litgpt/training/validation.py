"""The loss on held-out samples: the sum over their target tokens divided by their number, whatever the batches and
ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from litgpt.training.batches import Batching, sum_over_ranks

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from litgpt.training.loop import Samples


@torch.no_grad()
def validate(
    fabric: Fabric, objective: nn.Module, dataset: Samples, batching: Batching, max_samples: int | None = None
) -> float:
    """The mean loss per target token, in nats, over the first `max_samples` of `dataset` (None: all); NaN if none has
    a target.

    Leaves the model in the mode, training or evaluation, that it was in.
    """
    was_training = objective.training
    objective.eval()
    count = len(dataset) if max_samples is None else min(max_samples, len(dataset))
    loss = torch.zeros((), dtype=torch.float64)
    targets = 0
    per_plan = batching.micro_batch_size * fabric.world_size * 8
    for start in range(0, count, per_plan):
        batch = batching.cut(
            [dataset[index] for index in range(start, min(start + per_plan, count))], fabric.world_size
        )
        targets += batch.targets
        for micro_batch in batch.of_rank(fabric.global_rank):
            inputs, wanted = fabric.to_device((micro_batch.inputs, micro_batch.targets))
            loss += objective(inputs, wanted, micro_batch.lengths).double().cpu()
    objective.train(was_training)
    total = sum_over_ranks(fabric, loss)
    return total / targets if targets else float("nan")

"""One optimizer step: the gradients of its micro-batches, the spike guard, and the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from litgpt.model.sharding import whole
from litgpt.training.batching.batches import Batch, sum_over_ranks
from litgpt.training.batching.packing import MicroBatch
from litgpt.training.blocks import offloading
from litgpt.training.optim.optimizers import StepsInBackward, gradient_norm
from litgpt.training.run import Objective
from litgpt.training.schedule import Counters
from litgpt.training.spike_guard import skip_reason

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from litgpt.training.run import Run


def compute(fabric: Fabric, objective: nn.Module, micro_batch: MicroBatch, **more: Any) -> Tensor:
    """The objective of a micro-batch, which is brought to the device without waiting for it."""
    parts: tuple[Any, ...] = micro_batch.inputs, micro_batch.targets, micro_batch.given, micro_batch.kept
    if fabric.device.type == "cuda":  # what isn't pinned would be copied only when all before it is done
        parts = tuple(part.pin_memory() if isinstance(part, Tensor) else part for part in parts)
    inputs, targets, given, kept = fabric.to_device(parts)
    plain = getattr(objective, "module", objective)
    assert isinstance(plain, Objective)
    plain.kept = kept
    loss: Tensor = objective(inputs, targets, micro_batch.lengths, given, **more)
    return loss


@torch.no_grad()
def begin(fabric: Fabric, objective: nn.Module, batches: Sequence[Batch]) -> None:
    """Tells the objective of all samples of a step, or of a validation, before the loss of any is computed.

    One that `estimates` first computes what it has to know of them all, in evaluation mode.
    """
    plain = getattr(objective, "module", objective)
    assert isinstance(plain, Objective)
    one = len(batches) == 1
    plain.begin(batches[0].samples if one else [sample for batch in batches for sample in batch.samples])
    if not plain.estimates:
        return
    training = objective.training
    objective.eval()
    total = torch.zeros((), dtype=torch.float32, device=fabric.device)
    for batch in batches:
        for micro_batch in batch.of_rank(fabric.global_rank):
            total += compute(fabric, objective, micro_batch, estimating=True)
    objective.train(training)
    plain.estimate(sum_over_ranks(fabric, total), sum(len(batch.samples) for batch in batches))


class OptimizerStep:
    """An optimizer step of a run, callable again and again.

    Args:
        run: What to train, and how.
        objective: As the fabric has set it up.
        optimizer: Likewise.
        say: Prints a line.
    """

    def __init__(self, run: Run, objective: nn.Module, optimizer: Any, say: Callable[[str], None]) -> None:
        self.run, self.fabric, self.objective, self.optimizer, self.say = run, run.fabric, objective, optimizer, say
        self.in_backward = StepsInBackward(optimizer.optimizer) if run.train.optimizer_in_backward else None

    def __call__(self, batch: Batch, counters: Counters, wants_norm: bool) -> tuple[Tensor, Tensor | None]:
        """Gradients of all micro-batches, then the optimizer, unless the spike guard refuses the step.

        Returns:
            This rank's sum of losses, and the norm of the gradients if wanted, as it was before they were clipped.
        """
        if not batch.targets:
            self.say(f"Step {counters.step + 1} is skipped: none of its samples has a token to learn from.")
            return torch.zeros((), device=self.fabric.device), None
        total = self.gradients(batch)
        guard = self.run.train.guard
        norm = self.norm(wants_norm or guard is not None)
        if guard is not None and norm is not None and self.in_backward is None:
            loss = sum_over_ranks(self.fabric, total) / batch.units
            if reason := skip_reason(counters, guard, loss, float(norm)):
                counters.skipped += 1
                self.say(f"Step {counters.step + 1} is skipped by train.guard: {reason} ({counters.skipped} so far).")
                self.optimizer.zero_grad()
                return total, norm
        self.apply()
        return total, norm

    def apply(self) -> None:
        """Steps by the gradients that there are, unless the backward pass has done so."""
        if self.in_backward is None:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def gradients(self, batch: Batch) -> Tensor:
        """Adds up the gradients of the step's loss; returns this rank's sum of losses."""
        fabric = self.fabric
        total = torch.zeros((), dtype=torch.float32, device=fabric.device)
        share = fabric.world_size / batch.units  # ranks' gradients are averaged, hence the size of the world
        begin(fabric, self.objective, [batch])
        micro_batches = list(batch.of_rank(fabric.global_rank))
        for number, micro_batch in enumerate(micro_batches, start=1):
            with fabric.no_backward_sync(self.objective, enabled=number < len(micro_batches)):
                with offloading(self.run.model, self.run.train.activation_offload):
                    loss = compute(fabric, self.objective, micro_batch)
                fabric.backward(loss * share)
            total += loss.detach()
        return total

    def norm(self, wanted: bool) -> Tensor | None:
        """Clips the gradients where that is asked for; their norm before it, if wanted or needed."""
        if self.in_backward is not None:
            return self.in_backward.norm()
        scaled = self.fabric.strategy.precision.precision == "16-mixed"
        limit = self.run.train.max_norm or (float("inf") if scaled and wanted else None)
        if limit is not None:  # which undoes the scale of 16-mixed first
            return whole(
                self.fabric.clip_gradients(self.objective, self.optimizer, max_norm=limit, error_if_nonfinite=False)
            )
        return gradient_norm(self.run.model.parameters()) if wanted else None

    def close(self) -> None:
        """Removes the hooks from the parameters."""
        if self.in_backward is not None:
            self.in_backward.end()

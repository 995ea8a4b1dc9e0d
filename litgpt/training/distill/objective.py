"""The objective of distillation, over the same micro-batches as any other.

Logits of student and teacher are made for a chunk of tokens at a time, and again in the backward pass: those of all
tokens are never there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from litgpt.model import GPT
from litgpt.training.distill.divergences import DistillationLoss
from litgpt.training.distill.teachers import Asked, Known, Teacher
from litgpt.training.loss import chunk_rows, connected, slices
from litgpt.training.run import Objective

HELD_AT_ONCE = 8
"""Tensors of the size of a chunk's logits that are there at the same time."""


class Distillation(Objective):
    """The losses of the tokens of one micro-batch, summed up; in evaluation mode plain cross-entropy, which compares
    with that of any other training, and the divergence is measured beside it.

    Args:
        model: The student.
        loss: Which divergence, and how it is mixed with cross-entropy.
        teacher: What the student learns from.
    """

    def __init__(self, model: GPT, loss: DistillationLoss, teacher: Teacher) -> None:
        super().__init__(model)
        self.loss = loss
        self._teacher = (teacher,)  # not registered: its weights are no part of what trains
        self.sums: Tensor | None = None

    def begin(self, samples: Sequence[Mapping[str, Tensor]]) -> None:
        self.sums = None

    def forward(
        self, inputs: Tensor, targets: Tensor, lengths: Sequence[int] | None = None, given: Tensor | None = None
    ) -> Tensor:
        """Inputs and targets `(B, T)`, and for packed samples their `lengths` (B is 1) → the sum of the losses,
        float32."""
        asked = Asked(inputs, targets, lengths, given)
        rows, size = asked.rows, self.model.config.padded_vocab_size
        assert size is not None
        hidden = self.model.hidden(inputs, lengths=lengths).flatten(0, 1)
        wanted = targets.flatten()[rows]
        entropy = divergence = (
            hidden.new_zeros((), dtype=torch.float32) if len(rows) else connected(self.model.head, hidden)
        )
        known = self._teacher[0].ask(asked) if len(rows) else None
        for own in slices(rows, max(16, chunk_rows(size, 4, hidden) // HELD_AT_ONCE)):
            assert known is not None
            found = checkpoint(self._of_chunk, hidden[rows[own]], wanted[own], known, own, use_reentrant=False)
            entropy, divergence = entropy + found[0], divergence + found[1]
        count = torch.tensor(float(len(rows)), device=hidden.device)
        sums = torch.stack([count, entropy.detach().float(), divergence.detach().float()])
        self.sums = sums if self.sums is None else self.sums + sums
        loss: Tensor = self.loss.mix(divergence, entropy) if self.training else entropy
        return loss

    def _of_chunk(self, hidden: Tensor, targets: Tensor, known: Known, own: slice) -> tuple[Tensor, Tensor]:
        """Sums over the rows of a chunk: cross-entropy and divergence."""
        logits = self.model.head(hidden)
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        entropy = F.cross_entropy(logits, targets, reduction="sum")
        student, teacher = known.log_probs(own, logits, self.loss.temperature)
        return entropy, self.loss.of_log_probs(student, teacher).sum()

    def measured(self) -> Tensor | None:
        sums, self.sums = self.sums, None
        return torch.zeros(3, device=self.model.lm_head.weight.device) if sums is None else sums

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """`divergence`: from the teacher, nats per token; `cross_entropy`: of the targets, likewise."""
        count, entropy, divergence = sums
        return {"divergence": divergence / count, "cross_entropy": entropy / count} if count else {}

"""What knows a teacher's distributions: the teacher beside the student, or its best tokens from a file or a server.

N: tokens with a target in a micro-batch, R: some of them, k: the teacher's best tokens, V: vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.training.distill.divergences import with_rest
from litgpt.training.loss import IGNORED


@dataclass(frozen=True)
class Asked:
    """A micro-batch, as a teacher is asked about it."""

    inputs: Tensor
    """`(B, T)`."""
    targets: Tensor
    """`(B, T)`."""
    lengths: Sequence[int] | None
    """Of packed samples (B is 1); None: a sample a row."""
    given: Tensor | None
    """`(S, G)`: what samples hold besides tokens."""

    @property
    def rows(self) -> Tensor:
        """Places of the tokens with a target in the flattened micro-batch, `(N,)`."""
        return (self.targets.flatten() != IGNORED).nonzero().squeeze(1)

    def sequences(self) -> list[tuple[Tensor, Tensor]]:
        """The inputs and the targets of each sample."""
        if self.lengths is None:
            return list(zip(self.inputs.unbind(), self.targets.unbind(), strict=True))
        parts = (tensor.flatten().split(list(self.lengths)) for tensor in (self.inputs, self.targets))
        return list(zip(*parts, strict=True))


class Known(Protocol):
    """A teacher's distributions over the tokens that follow those of a micro-batch."""

    def log_probs(self, own: slice, logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """Of the rows `own` of N, and the student's logits `(R, V)` of them: the student's and the teacher's
        log-probabilities of the same outcomes, `(R, K)` each."""


class Teacher(Protocol):
    """Anything that has distributions over next tokens."""

    def ask(self, asked: Asked) -> Known:
        """What it knows of a micro-batch.

        Raises:
            LitGPTError: It doesn't answer, or doesn't know these samples.
        """


@dataclass(frozen=True)
class BestTokens:
    """The teacher's best tokens and their log-probabilities at the temperature of the training; all others are taken
    together as one outcome, so that a student equal to its teacher has no divergence."""

    ids: Tensor
    """`(N, k)`, int64."""
    values: Tensor
    """`(N, k)`, float32."""

    def log_probs(self, own: slice, logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """As `Known.log_probs`."""
        student = (logits / temperature).log_softmax(-1).gather(1, self.ids[own].to(logits.device))
        teacher = self.values[own].to(student)
        if teacher.size(1) >= logits.size(1):
            return student, teacher
        return with_rest(student), with_rest(teacher)


@dataclass(frozen=True)
class AllTokens:
    """Hidden states, of which the teacher's head makes logits a few rows at a time."""

    hidden: Tensor
    """`(N, C)`."""
    head: Callable[[Tensor], Tensor]

    def log_probs(self, own: slice, logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """As `Known.log_probs`. Where one model has more rows for tokens that there aren't, both go without them."""
        with torch.no_grad():
            theirs = self.head(self.hidden[own]).to(logits)
        V = min(logits.size(1), theirs.size(1))
        return (logits[:, :V] / temperature).log_softmax(-1), (theirs[:, :V] / temperature).log_softmax(-1)


class ModelTeacher:
    """A model beside the student; it is no part of what trains.

    Args:
        model: Frozen, on the student's device; of the same vocabulary.
    """

    def __init__(self, model: GPT) -> None:
        self.model = model.eval()

    @torch.no_grad()
    def ask(self, asked: Asked) -> Known:
        """As `Teacher.ask`."""
        longest = max(asked.lengths) if asked.lengths is not None else asked.inputs.size(1)
        if longest > self.model.max_seq_length:
            raise LitGPTError(
                f"A sample has {longest} tokens, and the teacher's context {self.model.max_seq_length}; "
                f"give --train.max_seq_length {self.model.max_seq_length}."
            )
        hidden = self.model.hidden(asked.inputs, lengths=asked.lengths).flatten(0, 1)
        return AllTokens(hidden[asked.rows], self.model.head)

"""How far a student's distribution over the next token is from a teacher's.

| divergence | of the teacher p and the student q |
|---|---|
| forward_kl | Σ p log(p / q): the student covers what the teacher may say |
| reverse_kl | Σ q log(q / p): the student says only what the teacher may |
| jsd | β Σ p log(p / m) + (1 - β) Σ q log(q / m), m = β p + (1 - β) q (https://arxiv.org/abs/2306.13649) |

Both are softened by a temperature T; the divergence is then multiplied by T², so that its gradients keep their size
(https://arxiv.org/abs/1503.02531). The loss of a token is α times that, and 1 - α times its cross-entropy.

R: rows (tokens), K: outcomes: the vocabulary, or the teacher's best tokens and all others together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from litgpt.errors import UsageError

JSD_BETA = 0.5
SMALLEST = 1e-7
"""Probability that all tokens but a teacher's best have together, at least: what float32 can tell from nothing."""


@dataclass(frozen=True)
class DistillationLoss:
    """Which divergence, and how it is mixed."""

    divergence: str = "forward_kl"
    alpha: float = 0.5
    """Share of the divergence, 0 to 1; the rest is cross-entropy."""
    temperature: float = 1.0
    jsd_beta: float | None = None
    """The teacher's share of the mixture; None: 0.5."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"--alpha is the share of the divergence, 0 to 1, not {self.alpha}.")
        if not 0 < self.temperature < math.inf:
            raise UsageError(f"--temperature must be above 0, not {self.temperature}.")
        if self.jsd_beta is not None and self.divergence != "jsd":
            raise UsageError(f"--jsd_beta is for --divergence jsd, not {self.divergence}; leave it out.")
        if self.jsd_beta is not None and not 0 < self.jsd_beta < 1:
            raise UsageError(f"--jsd_beta must lie between 0 and 1, not be {self.jsd_beta}.")

    def of_log_probs(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Log-probabilities of all outcomes, `(R, K)` each → the divergence of every row, `(R,)`."""
        if self.divergence == "forward_kl":
            return kl(teacher, student)
        if self.divergence == "reverse_kl":
            return kl(student, teacher)
        beta = JSD_BETA if self.jsd_beta is None else self.jsd_beta
        mixture = torch.logaddexp(teacher + math.log(beta), student + math.log(1 - beta))
        return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)

    def mix(self, divergence: Any, cross_entropy: Any) -> Any:
        """The loss, of tensors or of numbers."""
        return self.alpha * self.temperature**2 * divergence + (1 - self.alpha) * cross_entropy


def distillation_loss(arguments: Mapping[str, Any]) -> DistillationLoss:
    """The loss that a command's arguments ask for.

    Raises:
        UsageError: They ask for what it doesn't have.
    """
    return DistillationLoss(**{name: arguments[name] for name in ("divergence", "alpha", "temperature", "jsd_beta")})


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Σ p log(p / q) of every row, `(R,)`, from logarithms `(R, K)`; what p never says counts nothing."""
    return torch.where(p > -math.inf, p.exp() * (p - q), 0.0).sum(-1)


def with_rest(log_probs: Tensor) -> Tensor:
    """Log-probabilities of some tokens, `(R, k)`, and behind them that of all others together, `(R, k + 1)`."""
    known = log_probs.logsumexp(-1, keepdim=True).clamp(max=math.log1p(-SMALLEST))
    return torch.cat((log_probs, torch.log(-torch.expm1(known))), -1)

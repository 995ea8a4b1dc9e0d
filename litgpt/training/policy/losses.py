"""Advantages and losses of policies whose answers come in groups, G to a prompt.

| loss | paper | advantage of answer i | an answer's share of the loss |
|---|---|---|---|
| grpo | 2402.03300 | (r_i - mean) / std of its group | mean over its tokens; mean over answers |
| dr_grpo | 2503.20783 | r_i - mean | sum over its tokens / the longest that may be; mean over answers |
| dapo | 2503.14476 | as grpo | every token of all answers counts alike; clips higher above than below |
| rloo | 2402.14740 | r_i - mean of the others | one ratio for the whole answer; mean over answers |

A token's loss is -min(ρ A, clip(ρ, 1 - low, 1 + high) A), ρ the ratio of its probability to that when it was drawn;
β times an estimate of the divergence from the reference, exp(d) - d - 1 for d = log(p_ref / p), is added.

N: tokens of answers, D: answers in a micro-batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from litgpt.errors import UsageError

STD_EPSILON = 1e-4
"""Added to the standard deviation of a group's rewards, as peers do."""
CLIP = 0.2
DAPO_CLIP_HIGH = 0.28
KINDS = ("grpo", "dr_grpo", "dapo", "rloo")


@dataclass(frozen=True)
class PolicyLoss:
    """Which loss, and its numbers; None: the loss's own."""

    kind: str = "grpo"
    clip: float | None = None
    """By how much a ratio may fall below 1 before it no longer counts. None: 0.2."""
    clip_high: float | None = None
    """By how much it may rise above 1. None: as `clip`, and 0.28 for dapo."""
    beta: float = 0.0
    """How strongly the policy is held to the reference; 0: there is none."""
    longest: int = 1
    """Tokens that an answer may have, which dr_grpo divides by."""

    def __post_init__(self) -> None:
        for name in ("clip", "clip_high"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"--{name} must be above 0, not {value}.")
        if not 0 <= self.beta < math.inf:
            raise UsageError(f"--beta must be at least 0, not {self.beta}.")

    @property
    def bounds(self) -> tuple[float, float]:
        """What a ratio counts as at least and at most."""
        low = CLIP if self.clip is None else self.clip
        usual = DAPO_CLIP_HIGH if self.kind == "dapo" and self.clip is None else low
        return 1 - low, 1 + (usual if self.clip_high is None else self.clip_high)

    @property
    def per_answer(self) -> bool:
        """Whether the sum of a step is divided by its answers, not by their tokens."""
        return self.kind != "dapo"

    def advantages(self, rewards: Tensor) -> Tensor:
        """Of groups of rewards `(P, G)`, likewise `(P, G)`."""
        mean = rewards.mean(1, keepdim=True)
        if self.kind == "rloo":
            return (rewards - mean) * (rewards.size(1) / (rewards.size(1) - 1))  # r_i less the mean of the others
        if self.kind == "dr_grpo":
            return rewards - mean
        return (rewards - mean) / (rewards.std(1, keepdim=True) + STD_EPSILON)

    def of_tokens(
        self, log_probs: Tensor, old: Tensor, reference: Tensor | None, advantages: Tensor, answers: Tensor, count: int
    ) -> tuple[Tensor, Tensor]:
        """The sum of the losses of some answers.

        Args:
            log_probs: Of each token, `(N,)`.
            old: When they were drawn, `(N,)`.
            reference: The reference's, `(N,)`; None: there is none.
            advantages: `(D,)`.
            answers: Which answer each token is of, `(N,)`.
            count: D.

        Returns:
            The sum, and how many ratios are clipped.
        """
        low, high = self.bounds
        log_ratios, of = log_probs - old, advantages[answers]
        if self.kind == "rloo":
            log_ratios, of = log_probs.new_zeros(count).index_add(0, answers, log_ratios), advantages
        ratios = log_ratios.exp()
        losses = -torch.minimum(ratios * of, ratios.clamp(low, high) * of)
        clipped = ((ratios < low) & (of < 0) | (ratios > high) & (of > 0)).sum()
        held = torch.zeros_like(log_probs)
        if reference is not None:
            d = reference - log_probs
            held = self.beta * (d.exp() - d - 1)
        if self.kind == "rloo":
            return losses.sum() + held.sum(), clipped
        tokens = losses + held
        if self.kind == "grpo":
            lengths = torch.bincount(answers, minlength=count).clamp(min=1)
            tokens = tokens / lengths[answers]
        if self.kind == "dr_grpo":
            tokens = tokens / self.longest
        return tokens.sum(), clipped


def policy_loss(arguments: Mapping[str, Any]) -> PolicyLoss:
    """The loss that a command's arguments ask for.

    Raises:
        UsageError: They ask for what it doesn't have.
    """
    own = {name: arguments[name] for name in ("clip", "clip_high", "beta")}
    return PolicyLoss(arguments["loss"], longest=arguments["max_new_tokens"] * arguments["max_turns"], **own)

"""Losses on preferences, from log-probabilities of answers.

| loss | paper | of a pair: chosen w, rejected l; h is log p(w) / p(l), h_ref that of the reference |
|---|---|---|
| dpo | 2305.18290, smoothed as in 2310.12036's cDPO | -log σ(β (h - h_ref)) |
| ipo | 2310.12036 | (h - h_ref - 1 / 2β)² |
| simpo | 2405.14734 | -log σ(β h - γ) |
| orpo | 2403.07691 | -log p(w) - β log σ(log odds(w) / odds(l)) |

KTO (2402.01306) is of single answers y, each wanted or not: λ (1 - σ(± β (log p(y) / p_ref(y) - z))), where z is the
divergence from the reference, estimated on prompts with answers to other prompts, and no less than 0.

All log-probabilities are sums over an answer's tokens, or, length-normalised, means. P: pairs, S: single answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from litgpt.errors import UsageError

BETAS = {"dpo": 0.1, "ipo": 0.1, "simpo": 2.0, "orpo": 0.1, "kto": 0.1}
"""Loss → its usual β."""
REFERENCED = ("dpo", "ipo", "kto")
"""Losses that compare with a reference."""
NORMALISED = ("ipo", "simpo", "orpo")
"""Those whose log-probabilities are means over tokens unless asked otherwise."""
SMOOTHED = ("dpo", "simpo")
SIMPO_GAMMA = 0.5


@dataclass(frozen=True)
class PreferenceLoss:
    """Which loss, and its numbers; None: the loss's own."""

    kind: str = "dpo"
    beta: float | None = None
    label_smoothing: float = 0.0
    """Share of pairs, 0 up to 0.5, that are taken to be the wrong way round."""
    length_normalization: bool | None = None
    simpo_gamma: float | None = None
    """What rewards must differ by."""
    desirable_weight: float | None = None
    undesirable_weight: float | None = None
    sft_weight: float | None = None
    """So many times the cross-entropy of the chosen answers is added, a mean over their tokens."""

    def __post_init__(self) -> None:
        if self.beta is not None and not 0 < self.beta < float("inf"):
            raise UsageError(f"--beta must be above 0, not {self.beta}.")
        if not 0 <= self.label_smoothing < 0.5:
            raise UsageError(f"--label_smoothing must be at least 0 and less than 0.5, not {self.label_smoothing}.")
        for name in ("simpo_gamma", "desirable_weight", "undesirable_weight", "sft_weight"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UsageError(f"--{name} must be at least 0, not {value}.")
        others = {
            "label_smoothing": (self.label_smoothing, SMOOTHED),
            "simpo_gamma": (self.simpo_gamma is not None, ("simpo",)),
            "desirable_weight": (self.desirable_weight is not None, ("kto",)),
            "undesirable_weight": (self.undesirable_weight is not None, ("kto",)),
            "sft_weight": (self.sft_weight is not None, ("dpo", "ipo", "simpo", "orpo")),
        }
        for name, (given, kinds) in others.items():
            if given and self.kind not in kinds:
                raise UsageError(f"--{name} is for --loss {' or '.join(kinds)}, not {self.kind}; leave it out.")

    @property
    def strength(self) -> float:
        """β."""
        return BETAS[self.kind] if self.beta is None else self.beta

    @property
    def referenced(self) -> bool:
        """Whether it compares with a reference."""
        return self.kind in REFERENCED

    @property
    def normalised(self) -> bool:
        """Whether log-probabilities are means over tokens."""
        return self.kind in NORMALISED if self.length_normalization is None else self.length_normalization

    @property
    def sft(self) -> float:
        """How much cross-entropy is added."""
        return float(self.kind == "orpo") if self.sft_weight is None else self.sft_weight

    def of_pairs(self, chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
        """Log-probabilities `(P,)` each → the loss of every pair, `(P,)`, without the cross-entropy; those of the
        reference count where the loss has one."""
        beta = self.strength
        difference = chosen - rejected
        if self.referenced:
            difference = (chosen - ref_chosen) - (rejected - ref_rejected)
        if self.kind == "ipo":
            return (difference - 1 / (2 * beta)).square()
        if self.kind == "orpo":
            return -beta * F.logsigmoid(log_odds(chosen) - log_odds(rejected))
        scaled = beta * difference
        if self.kind == "simpo":
            scaled = scaled - (SIMPO_GAMMA if self.simpo_gamma is None else self.simpo_gamma)
        smoothing = self.label_smoothing
        return -(1 - smoothing) * F.logsigmoid(scaled) - smoothing * F.logsigmoid(-scaled)

    def of_singles(self, log_ratios: Tensor, wanted: Tensor, divergence: Tensor) -> Tensor:
        """KTO's losses, `(S,)`, of `log p / p_ref`, `(S,)`, whether each answer is wanted, `(S,)` bool, and the
        estimate of the divergence."""
        ahead = self.strength * (log_ratios - divergence)
        of_wanted = 1.0 if self.desirable_weight is None else self.desirable_weight
        of_others = 1.0 if self.undesirable_weight is None else self.undesirable_weight
        return torch.where(wanted, of_wanted * (1 - torch.sigmoid(ahead)), of_others * (1 - torch.sigmoid(-ahead)))


def preference_loss(arguments: Mapping[str, Any]) -> PreferenceLoss:
    """The loss that a command's arguments ask for.

    Raises:
        UsageError: They ask for what it doesn't have.
    """
    own = {field.name: arguments[field.name] for field in fields(PreferenceLoss) if field.name != "kind"}
    return PreferenceLoss(arguments["loss"], **own)


def log_odds(log_probs: Tensor) -> Tensor:
    """`log p / (1 - p)`."""
    below_one = log_probs.clamp(max=-torch.finfo(log_probs.dtype).tiny)
    return log_probs - torch.log(-torch.expm1(below_one))

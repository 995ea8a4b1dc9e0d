"""The objective of training on preferences, over the same micro-batches as any other.

A sample is two sequences, one behind the other as two documents: the prompt with the chosen and with the rejected
answer; or, for single answers (KTO), the prompt with its answer and with the answer to another prompt, by which the
divergence from the reference is estimated. So both are always in one micro-batch, and the sum of a step's losses is
divided by its samples: how they are packed changes nothing.

P: samples of a micro-batch, D: sequences in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from litgpt.model import GPT
from litgpt.training.loss import IGNORED, token_log_probs
from litgpt.training.preference.losses import PreferenceLoss
from litgpt.training.run import Objective

SIDES = ("chosen", "rejected")


class Preferences(Objective):
    """The losses of the preferences of one micro-batch, summed up.

    Args:
        model: What trains.
        loss: Which loss.
        reference: Inside this context the model is the reference; None: the samples hold the reference's
            log-probabilities, two numbers at the end of `given`, or the loss needs none.
    """

    sequences = 2
    per_sample = True

    def __init__(
        self, model: GPT, loss: PreferenceLoss, reference: Callable[[GPT], AbstractContextManager[None]] | None = None
    ) -> None:
        super().__init__(model)
        self.loss, self.reference = loss, reference
        self.estimates = loss.kind == "kto"
        self.divergence = 0.0
        self.per_token = 0.0  # what a chosen token's cross-entropy counts: samples of the step / its chosen tokens
        self.sums: Tensor | None = None

    def begin(self, samples: Sequence[Mapping[str, Tensor]]) -> None:
        self.sums = None
        if self.loss.sft:
            tokens = sum(chosen_targets(sample) for sample in samples)
            self.per_token = len(samples) / tokens if tokens else 0.0

    def estimate(self, total: float, samples: int) -> None:
        self.divergence = max(0.0, total / samples) if samples else 0.0

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        lengths: Sequence[int] | None = None,
        given: Tensor | None = None,
        estimating: bool = False,
    ) -> Tensor:
        """Inputs and targets `(B, T)`, and for packed samples their `lengths` (B is 1) → the sum of the losses,
        float32; `estimating`: of the log-ratios by which the divergence is estimated."""
        n_sequences = inputs.size(0) if lengths is None else len(lengths)
        if n_sequences % self.sequences:  # a rank that is short of samples
            return 0.0 * token_log_probs(self.model, inputs, targets, lengths, self.scratch).sum()
        if self.estimates:
            inputs, targets, lengths = every_second(inputs, targets, lengths, start=int(estimating))
        policy, counts = self.log_probs(inputs, targets, lengths)
        frozen = self.of_reference(policy, inputs, targets, lengths, counts, given, estimating)
        if estimating:
            return (policy - frozen).sum()
        if self.estimates:
            assert given is not None
            return self._of_singles(policy - frozen, given[:, 0] > 0).sum()
        return self._of_pairs(policy, frozen, counts).sum()

    def log_probs(self, inputs: Tensor, targets: Tensor, lengths: Sequence[int] | None) -> tuple[Tensor, Tensor]:
        """The log-probability of the targets of each sequence, `(D,)`, and their number, `(D,)`."""
        tokens = token_log_probs(self.model, inputs, targets, lengths, self.scratch)
        found, counts = by_sequence(tokens, lengths, inputs), by_sequence(targets != IGNORED, lengths, inputs)
        return (found / counts if self.loss.normalised else found), counts

    def of_reference(
        self,
        policy: Tensor,
        inputs: Tensor,
        targets: Tensor,
        lengths: Sequence[int] | None,
        counts: Tensor,
        given: Tensor | None,
        estimating: bool,
    ) -> Tensor:
        """The reference's log-probabilities, `(D,)`, without gradients."""
        if not self.loss.referenced:
            return torch.zeros_like(policy)
        if self.reference is None:
            assert given is not None
            known = given[:, -2:].to(policy)  # sums, (P, 2)
            known = known[:, int(estimating)] if self.estimates else known.flatten()
            return known / counts if self.loss.normalised else known
        training = self.training
        self.eval()
        with torch.no_grad(), self.reference(self.model):
            found, _ = self.log_probs(inputs, targets, lengths)
        self.train(training)
        return found

    def _of_pairs(self, policy: Tensor, frozen: Tensor, counts: Tensor) -> Tensor:
        chosen, rejected = policy.view(-1, 2).unbind(1)
        losses = self.loss.of_pairs(chosen, rejected, *frozen.view(-1, 2).unbind(1))
        if self.loss.sft:
            n_chosen = counts.view(-1, 2)[:, 0]
            of_tokens = chosen * n_chosen if self.loss.normalised else chosen
            losses = losses - self.loss.sft * self.per_token * of_tokens
        rewards = self.loss.strength * (policy - frozen).detach().view(-1, 2)
        right = (rewards[:, 0] > rewards[:, 1]).float() + 0.5 * (rewards[:, 0] == rewards[:, 1])
        one = torch.ones_like(chosen)
        self._measure(right, rewards[:, 0], one, rewards[:, 1], one, chosen, rejected)
        return losses

    def _of_singles(self, log_ratios: Tensor, wanted: Tensor) -> Tensor:
        losses = self.loss.of_singles(log_ratios, wanted, log_ratios.new_tensor(self.divergence))
        rewards, kind = self.loss.strength * log_ratios.detach(), wanted.to(log_ratios)
        ahead = log_ratios.detach() - self.divergence
        right = ((ahead > 0) == wanted).float().where(ahead != 0, torch.full_like(ahead, 0.5))
        self._measure(right, rewards * kind, kind, rewards * (1 - kind), 1 - kind)
        return losses

    def _measure(self, *parts: Tensor) -> None:
        """Adds up: whether the preference is right, and of both sides rewards and number; of pairs log-probabilities
        too."""
        sums = torch.stack([part.detach().float().sum() for part in (torch.ones_like(parts[0]), *parts)])
        self.sums = sums if self.sums is None else self.sums + sums

    def measured(self) -> Tensor | None:
        sums, self.sums = self.sums, None
        size = 6 if self.estimates else 8
        return torch.zeros(size, device=self.model.lm_head.weight.device) if sums is None else sums

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """`accuracy`: the share of pairs whose chosen answer has the higher reward, or of single answers on the right
        side of the divergence, where equals count half; `margin`: what chosen answers are rewarded with above rejected
        ones; and its parts."""
        count, right, chosen, n_chosen, rejected, n_rejected, *log_probs = sums
        if not count:
            return {}
        found = {"accuracy": right / count}
        rewards = {"chosen_reward": (chosen, n_chosen), "rejected_reward": (rejected, n_rejected)}
        means = {name: total / number for name, (total, number) in rewards.items() if number}
        if len(means) == len(rewards):
            found["margin"] = means["chosen_reward"] - means["rejected_reward"]
        own = {f"{side}_log_prob": total / count for side, total in zip(SIDES, log_probs, strict=False)}
        estimate = {"divergence": self.divergence} if self.estimates else {}
        return {**found, **means, **own, **estimate}


def by_sequence(values: Tensor, lengths: Sequence[int] | None, inputs: Tensor) -> Tensor:
    """The sum over each sequence, `(D,)`, of values of tokens."""
    if lengths is None:
        return values.view_as(inputs).sum(1)
    return torch.stack([part.sum() for part in values.flatten().split(list(lengths))])


def every_second(
    inputs: Tensor, targets: Tensor, lengths: Sequence[int] | None, start: int
) -> tuple[Tensor, Tensor, Sequence[int] | None]:
    """A micro-batch of every second of its sequences, from `start` on."""
    if lengths is None:
        return inputs[start::2], targets[start::2], None
    inputs, targets = (torch.cat(part[0].split(list(lengths))[start::2])[None] for part in (inputs, targets))
    return inputs, targets, tuple(lengths[start::2])


def chosen_targets(sample: Mapping[str, Tensor]) -> int:
    """Tokens of a pair's first sequence that have a loss."""
    return int((sample["labels"][1 : int(sample["documents"][0])] != IGNORED).sum())

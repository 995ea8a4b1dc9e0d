"""The objective of reinforcement learning, over the same micro-batches as any other.

What is known of an answer besides its tokens stays with the step's samples; in a micro-batch each answer has its
number among them (`given`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from litgpt.model import GPT
from litgpt.training.loss import IGNORED, token_log_probs
from litgpt.training.policy.losses import PolicyLoss
from litgpt.training.run import Objective

ADVANTAGE, OLD, SAMPLED, NOW, NUMBERS = "advantage", "old", "sampled", "now", "numbers"
"""Keys of a sample: its advantage; log-probabilities of its targets, `(n,)`, by the trainer when they were drawn
(absent: as they are now), by the engine then, and by the engine with the weights as they are now (absent: those of the
packed pass count); and numbers of all answers of the step, by name, in its first sample."""
Reference = Callable[[GPT], AbstractContextManager[None]]


class Policy(Objective):
    """The losses of the answers of one micro-batch, summed up.

    Args:
        model: What trains.
        loss: Which loss.
        temperature: That answers were drawn at.
        reference: Inside this context the model is the reference.
        frozen: A model that is the reference, where there is no such context.
    """

    def __init__(
        self,
        model: GPT,
        loss: PolicyLoss,
        temperature: float = 1.0,
        reference: Reference | None = None,
        frozen: GPT | None = None,
    ) -> None:
        super().__init__(model)
        self.loss, self.temperature, self.reference = loss, temperature, reference
        self._frozen = (frozen,)  # not registered: its weights are no part of what trains
        self.per_sample = loss.per_answer
        self.samples: Sequence[Mapping[str, Tensor]] = ()
        self.numbers: Mapping[str, float] = {}
        self.sums: Tensor | None = None

    def begin(self, samples: Sequence[Mapping[str, Tensor]]) -> None:
        self.samples, self.sums = samples, None
        numbers = samples[0].get(NUMBERS) if samples else None
        self.numbers = dict(numbers) if isinstance(numbers, Mapping) else {}

    def forward(
        self, inputs: Tensor, targets: Tensor, lengths: Sequence[int] | None = None, given: Tensor | None = None
    ) -> Tensor:
        """Inputs and targets `(B, T)`, and for packed samples their `lengths` (B is 1) → the sum of the losses,
        float32."""
        everything = self.log_probs(self.model, inputs, targets, lengths)
        kept = (targets.flatten() != IGNORED).nonzero().squeeze(1)
        if given is None or not len(kept):
            return everything.sum() * 0.0
        packed = ours = everything[kept]  # (N,)
        chosen = [self.samples[int(number)] for number in given[:, 0].tolist()]
        answers = answers_of(inputs, lengths)[kept]
        counts = torch.bincount(answers, minlength=len(chosen)).tolist()
        advantages = torch.stack([sample[ADVANTAGE] for sample in chosen]).to(ours)
        if NOW in chosen[0]:  # the engine's values, to the bit, with the gradients of the packed pass
            ours = self._known(NOW, chosen, counts, packed) + (packed - packed.detach())
        old = self._known(OLD, chosen, counts, ours) if OLD in chosen[0] else ours.detach()
        theirs = self._of_reference(inputs, targets, lengths, kept)
        loss, clipped = self.loss.of_tokens(ours, old, theirs, advantages, answers, len(chosen))
        now = ours.detach()
        drift = now.new_zeros(())
        if self.temperature == 1 and SAMPLED in chosen[0]:
            one, other = (packed.detach(), NOW) if NOW in chosen[0] else (old, SAMPLED)
            drift = (one - self._known(other, chosen, counts, ours)).abs().sum()
        apart = now.new_zeros(()) if theirs is None else ((theirs - now).exp() - (theirs - now) - 1).sum()
        ratios = len(chosen) if self.loss.kind == "rloo" else len(kept)
        parts = (now.new_tensor(float(len(kept))), drift, apart, -now.sum(), clipped, now.new_tensor(float(ratios)))
        sums = torch.stack([part.detach().float() for part in parts])
        self.sums = sums if self.sums is None else self.sums + sums
        return loss

    def log_probs(self, model: GPT, inputs: Tensor, targets: Tensor, lengths: Sequence[int] | None) -> Tensor:
        """Of every target at the temperature that answers were drawn at, `(B·T,)`; 0 where it is ignored."""
        return token_log_probs(model, inputs, targets, lengths, self.scratch, self.temperature)

    def _known(self, name: str, chosen: Sequence[Mapping[str, Tensor]], counts: list[int], like: Tensor) -> Tensor:
        """What is known of the tokens of the answers, `(N,)`; the last ones of an answer may have been cut off."""
        return torch.cat([sample[name][:count] for sample, count in zip(chosen, counts, strict=True)]).to(like)

    @torch.no_grad()
    def _of_reference(
        self, inputs: Tensor, targets: Tensor, lengths: Sequence[int] | None, kept: Tensor
    ) -> Tensor | None:
        if not self.loss.beta:
            return None
        frozen, training = self._frozen[0], self.training
        model = self.model if frozen is None else frozen.to(inputs.device)
        self.eval()
        with nullcontext() if self.reference is None else self.reference(model):
            found = self.log_probs(model, inputs, targets, lengths)[kept]
        self.train(training)
        return found

    def measured(self) -> Tensor | None:
        sums, self.sums = self.sums, None
        return torch.zeros(6, device=self.model.lm_head.weight.device) if sums is None else sums

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """What is told of the answers; `drift`: the mean distance of the packed pass's log-probabilities from the
        engine's; `reference_kl`, `entropy` (an estimate of both, nats per token) and `clipped`, the share of ratios."""
        tokens, drift, apart, surprise, clipped, ratios = sums
        if not tokens:
            return dict(self.numbers)
        found = {**self.numbers, "entropy": surprise / tokens, "clipped": clipped / ratios}
        found |= {"drift": drift / tokens} if self.temperature == 1 else {}
        return found | ({"reference_kl": apart / tokens} if self.loss.beta else {})


def answers_of(inputs: Tensor, lengths: Sequence[int] | None) -> Tensor:
    """Which sequence each token of a flattened micro-batch is in, `(B·T,)`."""
    B, T = inputs.shape
    sizes = torch.tensor([T] * B if lengths is None else list(lengths), device=inputs.device)
    return torch.repeat_interleave(torch.arange(len(sizes), device=inputs.device), sizes, output_size=B * T)

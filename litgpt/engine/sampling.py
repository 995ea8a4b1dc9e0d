"""How the next token is drawn from the model's scores, each row of a batch with settings of its own.

R: rows, V: vocabulary, K: candidates left to choose from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from litgpt.errors import LitGPTError, quoted

if TYPE_CHECKING:
    from litgpt.engine.structured import Grammar

MOST_LOGPROBS = 20
"""Alternatives that `Sampling.logprobs` may ask for."""
LARGEST = torch.finfo(torch.float32).max
SMALLEST = torch.finfo(torch.float32).tiny
"""Settings are numbers that float32, which scores are in, can hold."""


@dataclass(frozen=True)
class Sampling:
    """How a request's tokens are drawn: penalties, `logit_bias`, `grammar`, `top_k`, `temperature`, `top_p`, `min_p`.

    Raises:
        LitGPTError: A value is out of its range.
    """

    temperature: float = 1.0
    """Scores are divided by this; 0 always takes the best token."""
    top_k: int | None = None
    """Choose among this many best tokens; None: all."""
    top_p: float = 1.0
    """Choose among the best tokens that have this much probability together; 0 always takes the best one."""
    min_p: float = 0.0
    """Leave out tokens less likely than this share of the best one's probability."""
    repetition_penalty: float = 1.0
    """Above 1: tokens of the prompt and the answer become less likely (Keskar et al. 2019, https://arxiv.org/abs/1909.05858)."""
    presence_penalty: float = 0.0
    """Taken off the score of every token that is in the answer."""
    frequency_penalty: float = 0.0
    """Taken off the score of a token each time it occurs in the answer."""
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    """Added to the scores of these token ids; -100 all but bans one, 100 all but forces it."""
    logprobs: int | None = None
    """Note each token's log-probability and this many best alternatives, at most 20; None: nothing. See `Logprob`."""
    grammar: Grammar | None = None
    """What the answer must look like as a whole; it ends where nothing more may follow."""
    seed: int | None = None
    """Makes the draws repeatable, whatever else is in the batch; None: taken from torch's random state."""

    def __post_init__(self) -> None:
        biases: Mapping[Any, Any] = self.logit_bias if isinstance(self.logit_bias, Mapping) else {None: None}
        are_biases = all(map(_is_whole, biases)) and all(map(_is_number, biases.values()))
        rules = (
            ("temperature", _is_number(self.temperature, 0), "a number, 0 or more"),
            ("top_k", self.top_k is None or _is_whole(self.top_k, 1), "1 or more tokens, or null for all"),
            ("top_p", _is_number(self.top_p, 0, 1), "a number between 0 and 1"),
            ("min_p", _is_number(self.min_p, 0, 1), "a number between 0 and 1"),
            ("repetition_penalty", _is_number(self.repetition_penalty, SMALLEST), "a number, more than 0; 1 is none"),
            ("presence_penalty", _is_number(self.presence_penalty), "a number; 0 is none"),
            ("frequency_penalty", _is_number(self.frequency_penalty), "a number; 0 is none"),
            ("logit_bias", are_biases, "numbers by token id"),
            ("logprobs", self.logprobs is None or _is_whole(self.logprobs, 0, MOST_LOGPROBS), f"0 to {MOST_LOGPROBS}"),
            ("seed", self.seed is None or _is_whole(self.seed, 0, 2**64 - 1), "a whole number from 0 to 2**64 - 1"),
        )
        for name, holds, what in rules:
            if not holds:
                raise LitGPTError(f"{name} is {quoted(getattr(self, name))}; it must be {what}.")

    @property
    def greedy(self) -> bool:
        """Whether the best token is always taken."""
        return self.temperature == 0 or self.top_p == 0

    def of_sample(self, number: int) -> Sampling:
        """The settings of a sample of several: its seed is so many further, from the largest on to 0."""
        return self if self.seed is None else replace(self, seed=(self.seed + number) % 2**64)

    @property
    def penalizing(self) -> bool:
        """Whether `penalize` changes the scores."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1.0, 0.0, 0.0) or bool(self.logit_bias)


def _is_number(value: Any, least: float = -LARGEST, most: float = LARGEST) -> bool:
    return _is_of(Real, value) and bool(least <= value <= most)


def _is_whole(value: Any, least: int = 0, most: float = LARGEST) -> bool:
    return _is_of(Integral, value) and bool(least <= value <= most)


def _is_of(kind: type, value: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True)
class Logprob:
    """How likely the model itself held a generated token: the logarithm of the softmax of its scores, before penalties,
    biases, a grammar, temperature or any other setting of the request changes them."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """Token id and log-probability of the best alternatives, best first; the chosen token is among them where it is."""


def measure(scores: Tensor, tokens: Sequence[int], samplings: Sequence[Sampling]) -> list[Logprob]:
    """The `Logprob` of one chosen token a row.

    Args:
        scores: The model's own, float32 `(R, V)`.
        tokens: R chosen ids.
        samplings: R settings; `logprobs` says how many alternatives.
    """
    logprobs = scores.log_softmax(dim=-1)
    own = logprobs.gather(1, torch.tensor(tokens, device=scores.device)[:, None])[:, 0].tolist()
    most = max((sampling.logprobs or 0 for sampling in samplings), default=0)
    if not most:  # answers that are learned from: nothing but the tokens themselves
        return [Logprob(token, value) for token, value in zip(tokens, own, strict=True)]
    best, ids = logprobs.topk(min(most, logprobs.size(-1)))  # (R, most)
    rows = zip(tokens, samplings, own, ids.tolist(), best.tolist(), strict=True)
    return [
        Logprob(token, value, tuple(zip(found, values, strict=True))[: sampling.logprobs])
        for token, sampling, value, found, values in rows
    ]


def penalize(logits: Tensor, sampling: Sampling, prompt: Sequence[int], output: Sequence[int]) -> Tensor:
    """The scores `(V,)` of one row after its penalties and its `logit_bias`."""
    logits = logits.clone()
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt, *output}), device=logits.device)
        scores, penalty = logits[seen], sampling.repetition_penalty
        logits[seen] = torch.where(scores > 0, scores / penalty, scores * penalty)
    if output:
        ids, counts = torch.tensor(output, device=logits.device).unique(return_counts=True)
        logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * counts.to(logits.dtype)
    if sampling.logit_bias:
        biased = torch.tensor(list(sampling.logit_bias), device=logits.device)
        logits[biased] += torch.tensor(list(sampling.logit_bias.values()), device=logits.device, dtype=logits.dtype)
    return logits


def choose(logits: Tensor, samplings: Sequence[Sampling], draws: Sequence[float]) -> Tensor:
    """One token a row; a row's choice depends on nothing but that row.

    Args:
        logits: Float32 scores `(R, V)`, penalties applied.
        samplings: R settings.
        draws: R numbers from 0 up to, not including, 1, uniformly drawn: the only source of chance.

    Returns:
        Token ids `(R,)`, int64.
    """
    chosen = logits.argmax(dim=-1)
    random = [row for row, sampling in enumerate(samplings) if not sampling.greedy]
    # Sorting a large vocabulary costs more than the rest of the drawing; only rows that need the order pay for it.
    few = [row for row in random if samplings[row].top_k is not None]
    ranked = [row for row in random if samplings[row].top_k is None and samplings[row].top_p < 1]
    plain = [row for row in random if samplings[row].top_k is None and samplings[row].top_p == 1]
    for rows in filter(None, (few, ranked, plain)):
        settings = [samplings[row] for row in rows]
        scores, ids = logits if len(rows) == len(samplings) else logits[rows], None  # (R', V)
        if rows is few:
            widest = max(setting.top_k or 0 for setting in settings)
            scores, ids = scores.topk(min(widest, logits.size(-1)))  # (R', K), best first
        elif rows is ranked:
            scores, ids = scores.sort(descending=True)
        picked = _draw(scores, settings, [draws[row] for row in rows], ranked=ids is not None)
        chosen[rows] = picked if ids is None else ids.gather(1, picked[:, None])[:, 0]
    return chosen


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """What `choose` draws a token with, its settings being `sampling`, which is not greedy: `(R, V)` → `(R, V)`."""
    scores, ids = logits.topk(min(sampling.top_k or logits.size(-1), logits.size(-1)))
    p = _shares(scores, [sampling] * len(logits), ranked=True)
    return torch.zeros_like(logits).scatter(1, ids, p / p.sum(dim=-1, keepdim=True))


def _draw(scores: Tensor, settings: Sequence[Sampling], draws: Sequence[float], ranked: bool) -> Tensor:
    """The column of `scores` `(R, K)` that each row draws, `(R,)`; `ranked`: columns go from best to worst."""
    return pick(_shares(scores, settings, ranked), draws)


def pick(p: Tensor, draws: Sequence[float]) -> Tensor:
    """The column `(R,)` that a number from 0 up to 1 a row draws, by weights `(R, K)` of any sum."""
    upto = p.cumsum(dim=-1)
    at = torch.tensor(draws, device=p.device, dtype=p.dtype)[:, None] * upto[:, -1:]
    picked = (upto <= at).sum(dim=-1).clamp(max=p.size(1) - 1)
    # A draw next to 1 can round up to the whole mass; it must not land on a token that was left out.
    return torch.where(p.gather(1, picked[:, None])[:, 0] > 0, picked, p.argmax(dim=-1))


def _shares(scores: Tensor, settings: Sequence[Sampling], ranked: bool) -> Tensor:
    """The weight of each column of `scores` `(R, K)`; `ranked`: columns go from best to worst."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=scores.device, dtype=scores.dtype)[:, None]

    K = scores.size(1)
    if ranked:
        ranks = torch.arange(K, device=scores.device)
        scores = scores.masked_fill(ranks >= column([min(setting.top_k or K, K) for setting in settings]), -math.inf)
    best = scores.max(dim=-1, keepdim=True).values
    # The best score becomes 0 first, so that no temperature overflows; a very small one must not round to 0.
    temperature = column([setting.temperature for setting in settings]).clamp(min=SMALLEST)
    p = ((scores - best) / temperature).softmax(dim=-1)  # (R, K)
    top = p.max(dim=-1, keepdim=True).values
    dropped = p < top * column([setting.min_p for setting in settings])
    if ranked:
        before = p.cumsum(dim=-1) - p  # probability of everything better
        mass = column([setting.top_p if setting.top_p < 1 else math.inf for setting in settings])
        dropped |= (before >= mass) & (ranks > 0)
    return p.masked_fill(dropped, 0.0)

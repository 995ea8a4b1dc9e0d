"""Answers by the very model that trains: the engine runs on its weights as they are, updates and all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from litgpt.engine.engine import Engine
from litgpt.engine.inference_model import MAX_CONCURRENT_REQUESTS
from litgpt.engine.request import Request
from litgpt.engine.sampling import Sampling
from litgpt.model import GPT
from litgpt.model.sharding import is_sharded
from litgpt.runtime import product_dtype

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True)
class Answer:
    """What the model said to a prompt, the token that ended it included."""

    ids: list[int]
    log_probs: list[float]
    """The engine's, of each token."""
    truncated: bool
    """Whether it was cut off, at `max_new_tokens` or at the end of the context."""

    @classmethod
    def of(cls, request: Request) -> Answer:
        """From a request that is done."""
        ids = [*request.result(), *request.ending]
        return cls(ids, [noted.logprob for noted in request.noted], request.finish_reason == "length")


class Sampler:
    """Samples answers, each rank its share of the prompts.

    Args:
        model: On its device; need not be in evaluation mode.
        fabric: Whose ranks share the work, and whose precision counts.
        stops: Token ids and sequences that end an answer.
        max_new_tokens: Of an answer.
        slots: Answers at the same time.
        deterministic: Whether an answer depends, to the bit, on nothing but its prompt and its seed.
    """

    def __init__(
        self,
        model: GPT,
        fabric: Fabric,
        stops: Sequence[int | Sequence[int]],
        max_new_tokens: int,
        slots: int = MAX_CONCURRENT_REQUESTS,
        deterministic: bool = False,
    ) -> None:
        self.model, self.fabric, self.stops, self.deterministic = model, fabric, list(stops), deterministic
        self.max_new_tokens, self.slots = max_new_tokens, slots
        self.dtype = product_dtype(fabric.strategy.precision.precision)

    def fits(self, prompt: Sequence[int]) -> bool:
        """Whether there is room for an answer."""
        return len(prompt) < self.model.max_seq_length

    def answers(self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]) -> list[Answer]:
        """An answer to each prompt; the same on every rank, which all call this together.

        The engine is made anew each time: so it knows nothing of earlier weights, a run that was resumed computes what
        one that never stopped does, and its cache takes no memory while the model learns. Ranks that share out one
        model go through it together: each draws all answers.
        """
        return self._shared_out(
            len(prompts),
            lambda engine, at: engine.submit(prompts[at], samplings[at], self.stops, self.max_new_tokens),
            max(map(len, prompts), default=0) + self.max_new_tokens,
        )

    def replayed(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[list[float]]:
        """The log-probability of each token of given answers, computed as if they were drawn now: where the sampler is
        deterministic and the weights are the same, to the bit what was noted when they were drawn. Called as
        `answers`."""
        noted = Sampling(logprobs=0, seed=0)
        found = self._shared_out(
            len(prompts),
            lambda engine, at: engine.submit(prompts[at], noted, forced=answers[at]),
            max((len(one) + len(other) for one, other in zip(prompts, answers, strict=True)), default=0),
        )
        return [answer.log_probs for answer in found]

    def _shared_out(self, count: int, submit: Callable[[Engine, int], Request], longest: int) -> list[Answer]:
        """Answers of so many requests, the longest of so many tokens with its prompt; each rank makes its share."""
        rank, ranks = (0, 1) if is_sharded(self.model) else (self.fabric.global_rank, self.fabric.world_size)
        own = range(rank, count, ranks)
        found: dict[int, Answer] = {}
        if own:
            length, slots = min(longest, self.model.max_seq_length), min(len(own), self.slots)
            engine = Engine(self.model, slots, length, self.dtype, deterministic=self.deterministic)
            training = self.model.training
            self.model.eval()  # once, where each step would ask every module twice
            try:
                requests = [submit(engine, at) for at in own]
                found = {at: Answer.of(request) for at, request in zip(own, requests, strict=True)}
            finally:
                self.model.train(training)
        if ranks > 1:
            parts: list[dict[int, Answer]] = [{}] * ranks
            torch.distributed.all_gather_object(parts, found)
            found = {at: answer for part in parts for at, answer in part.items()}
        return [found[at] for at in range(count)]

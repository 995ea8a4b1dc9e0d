"""One prompt on its way through the engine, and where its tokens come out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import index
from time import perf_counter
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from litgpt.engine.sampling import Logprob, Sampling
from litgpt.errors import LitGPTError, UnsupportedError, check_token_ids, quoted

if TYPE_CHECKING:
    from litgpt.model import GPT

FinishReason = Literal["stop", "length", "cancelled", "error"]


def check_tokens(
    prompt: Sequence[int] | Tensor, sampling: Sampling, model: GPT, length: int | None = None
) -> list[int]:
    """The prompt as a list.

    Raises:
        LitGPTError: It is empty, longer than `length` (None: the model's context), or not of the model's vocabulary; or
            `logit_bias` is not.
    """
    length = model.max_seq_length if length is None else length
    try:
        tokens = [index(token) for token in (prompt.tolist() if isinstance(prompt, Tensor) else prompt)]
    except TypeError:
        raise LitGPTError("A prompt is token ids, whole numbers in one row; a tokenizer makes them of text.") from None
    if not tokens:
        raise LitGPTError("The prompt is empty; give at least one token.")
    if len(tokens) > length:
        raise UnsupportedError(
            f"The prompt has {len(tokens)} tokens and the context only {length}; shorten the prompt."
        )
    rows = model.transformer.wte.num_embeddings
    check_token_ids(tokens, rows, "The prompt")
    if wrong := [token for token in sampling.logit_bias if not 0 <= token < rows]:
        raise LitGPTError(f"logit_bias has the token id {wrong[0]}, which is outside 0 ... {rows - 1}.")
    return tokens


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many first elements are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@dataclass
class Timing:
    """When things happened to a request, in seconds of `time.perf_counter`; None: not yet."""

    submitted: float = field(default_factory=perf_counter)
    admitted: float | None = None
    """It got a slot."""
    first: float | None = None
    """Its first token came out."""
    finished: float | None = None


class StopMatcher:
    """Finds stop sequences at the end of a growing list of tokens, overlapping ones too.

    Raises:
        LitGPTError: A stop is neither a token id nor a sequence of token ids.
    """

    def __init__(self, stops: Sequence[int | Sequence[int]]) -> None:
        if not isinstance(stops, Sequence) or isinstance(stops, str):
            raise LitGPTError(f"Stops are a list of token ids and of lists of token ids, not {quoted(stops)}.")
        found = [[stop] if isinstance(stop, int) else stop for stop in stops]
        for stop in found:
            is_list = isinstance(stop, Sequence) and not isinstance(stop, str)
            if not (is_list and stop and all(isinstance(token, int) for token in stop)):
                raise LitGPTError(f"A stop is a token id or a list of token ids, not {quoted(stop)}.")
        self.ids = {stop[0] for stop in found if len(stop) == 1}
        self.sequences = [list(stop) for stop in found if len(stop) > 1]

    def matched(self, tokens: list[int]) -> int:
        """How many of the last tokens are a whole stop sequence; 0: none."""
        if tokens[-1] in self.ids:
            return 1
        return max((len(stop) for stop in self.sequences if tokens[-len(stop) :] == stop), default=0)

    def partial_match(self, tokens: list[int]) -> int:
        """How many of the last tokens may still turn out to begin a stop sequence."""
        return max((n for stop in self.sequences for n in range(1, len(stop)) if tokens[-n:] == stop[:n]), default=0)


class Request:
    """A prompt and its growing answer, made by `Engine.submit`; iterate over it for tokens, or call `result`.

    The engine writes and one client reads; both may be different threads.

    Args:
        prompt: Token ids.
        sampling: How tokens are drawn.
        stops: The stop sequences, which are no part of the answer.
        limit: The most tokens it may generate, stop sequences included.
        advance: Returns when the request has an update; drives the engine if no thread does.
        wake: Lets the threads that wait for the engine, its own too, look again.
        on_update: Called when the request got its slot, has new tokens or is done.
        ranks: Processes that compute the model together; they draw the same numbers.
    """

    def __init__(
        self,
        prompt: list[int],
        sampling: Sampling,
        stops: StopMatcher,
        limit: int,
        advance: Callable[[Request], None],
        wake: Callable[[], None],
        on_update: Callable[[], None] | None = None,
        ranks: int = 1,
    ) -> None:
        self.prompt = prompt
        self.sampling = sampling
        self.limit = limit
        self.on_update = on_update
        self._advance = advance
        self._wake = wake
        self.output: list[int] = []
        """Tokens generated so far; the last of them may still turn out to be a stop sequence, which is cut off."""
        self.logprobs: list[Logprob] = []
        """One for each token of `output`, where `sampling.logprobs` asks for them; stop sequences have none."""
        self.n_generated = 0
        """Tokens generated, stop sequences included."""
        self.ending: list[int] = []
        """The stop sequence that ended it."""
        self.noted: list[Logprob] = []
        """As `logprobs`, the stop sequence's too."""
        self.n_shared = 0
        """Tokens of the prompt whose keys and values were there already."""
        self.finish_reason: FinishReason | None = None
        self.error: BaseException | None = None
        self.at_fault = False
        """Whether it failed by what it asks for, and not by the model."""
        self.forced: Sequence[int] = ()
        """Tokens that it says whatever it would have chosen, all that it generates; none: it chooses."""
        self.adapter: str | None = None
        """The adapter that it is computed with; None: the model alone."""
        self.timing = Timing()
        self._stops = stops
        self._ready = self._taken = 0
        # Greedy requests leave torch's random state alone: training runs take samples and must stay repeatable.
        drawn = sampling.seed is None and not sampling.greedy
        self._random = random.Random(_fresh_seed(ranks) if drawn else sampling.seed)
        self._match = None if sampling.grammar is None else sampling.grammar.start()

    @property
    def done(self) -> bool:
        """Whether no further token will come."""
        return self.finish_reason is not None

    @property
    def has_update(self) -> bool:
        """Whether `take` would return something, or the request is done."""
        return self.done or self._ready > self._taken

    def take(self) -> list[int]:
        """The tokens that came out since the last call; never waits."""
        tokens = self.output[self._taken : self._ready]
        self._taken += len(tokens)
        return tokens

    def __iter__(self) -> Iterator[int]:
        while True:
            done = self.done
            yield from self.take()
            if done:
                break
            self._advance(self)
        if self.error is not None:
            raise self.error

    def result(self) -> list[int]:
        """All tokens, without the stop sequence, once the request is done."""
        for _ in self:
            pass
        return self.output

    def cancel(self) -> None:
        """Stops the request; its slot is free from the engine's next step on. Does nothing when it is done."""
        if not self.done:
            self.finish("cancelled")
            self._wake()

    # -- the engine's side

    def draw(self) -> float:
        """The request's next random number, from 0 up to, not including, 1."""
        return 0.0 if self.sampling.greedy else self._random.random()

    def restrict(self, scores: Tensor) -> None:
        """Takes the tokens that the grammar forbids out of the scores `(V,)`, in place."""
        if self._match is not None:
            self._match.restrict(scores)

    def accept(self, token: int, logprob: Logprob | None = None) -> None:
        """Takes in a generated token, and what was noted of it."""
        if self.done:
            return
        self.timing.first = self.timing.first or perf_counter()
        self.n_generated += 1
        self.output.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
            self.noted.append(logprob)
        is_text = self._match is None or self._match.accept(token)
        stopped = self._stops.matched(self.output) or int(not is_text)
        if stopped:
            self.ending = self.output[-stopped:]
            del self.output[-stopped:]
            del self.logprobs[len(self.output) :]
            self.finish("stop")
        elif self._match is not None and self._match.complete:
            self.finish("stop")
        elif self.n_generated >= self.limit:
            self.finish("length")
        else:
            self._ready = len(self.output) - self._stops.partial_match(self.output)

    def refuse(self, error: LitGPTError) -> None:
        """Ends the request, because what it asks for can't be done."""
        self.at_fault = True
        self.finish("error", error)

    def finish(self, reason: FinishReason, error: BaseException | None = None) -> None:
        """Ends the request."""
        self.timing.finished = perf_counter()
        self._ready = len(self.output)
        self.error = error
        self.finish_reason = reason  # last: a reader that sees it set sees everything else
        if self.on_update is not None:
            self.on_update()


def _fresh_seed(ranks: int) -> int:
    """A number from torch's random state; processes that share a model take the first one's, or they would draw
    different tokens."""
    seed = int(torch.randint(2**62, ()))
    if ranks > 1:
        agreed = [seed]
        torch.distributed.broadcast_object_list(agreed, src=0)
        (seed,) = agreed
    return seed

"""What evaluation asks of a model, how likely it holds texts and what it answers; and a checkpoint asked so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from litgpt.engine.detokenizer import TextStream
from litgpt.engine.engine import Engine
from litgpt.engine.inference_model import InferenceModel
from litgpt.engine.memory import longest_fit
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError, UnsupportedError, progress
from litgpt.eval.scoring import ROWS, Score, Scorer
from litgpt.prompts.base import Message

TELL_EVERY = 10.0
"""Seconds between two lines about how far it is."""


@dataclass(frozen=True)
class Likelihood:
    """How likely a model holds a text, all its tokens after each other."""

    logprob: float
    """Nats."""
    greedy: bool
    """Whether each token is the one that the model holds most likely."""
    n_tokens: int
    """That were predicted."""


@dataclass(frozen=True)
class Windows:
    """How a text that is longer than the model's context is cut; each token is predicted once."""

    size: int | None = None
    """Tokens that go through the model together; None: its context."""
    stride: int | None = None
    """Tokens that each window after the first predicts: its last ones. None: all, after one token of context."""

    def over(self, tokens: Sequence[int], prefix: int, context: int) -> list[tuple[Sequence[int], Sequence[int]]]:
        """Contexts and the tokens that follow them.

        Args:
            tokens: Of the text.
            prefix: What stands before the first of them.
            context: The most tokens that go through the model together.

        Raises:
            LitGPTError: The sizes make no sense.
        """
        size = context if self.size is None else self.size
        stride = size if self.stride is None else self.stride
        if not 1 <= stride <= size <= context:
            raise LitGPTError(
                f"Windows of {size} tokens that predict {stride} each can't be had: the model's context is {context}"
                " tokens, and a stride is 1 to the window."
            )
        whole = [prefix, *tokens]
        found: list[tuple[Sequence[int], Sequence[int]]] = []
        begin = 1
        while begin < len(whole):
            end = min(len(whole), begin + (stride if begin > 1 else size))
            found.append((whole[max(0, end - 1 - size) : begin], whole[begin:end]))
            begin = end
        return found


@dataclass(frozen=True)
class Answering:
    """How answers are generated."""

    max_new_tokens: int = 256
    stop: tuple[str, ...] = ()
    """Texts that end an answer and are not part of it."""
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0.0))


class EvaluatedModel(Protocol):
    """What tasks ask, and lm-eval asks the same."""

    @property
    def name(self) -> str:
        """For results."""
        ...

    @property
    def context(self) -> int | None:
        """Tokens that it takes at once; None: nobody tells."""
        ...

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """How likely continuations are, each after its context; an empty context is the beginning of a text."""
        ...

    def rolling(self, texts: Sequence[str], windows: Windows) -> list[Likelihood]:
        """How likely whole texts are, of any length."""
        ...

    def answer(self, prompts: Sequence[str], how: Sequence[Answering]) -> list[str]:
        """What follows prompts, each in its own way."""
        ...

    def chat_prompt(self, messages: Sequence[Message]) -> str:
        """A conversation up to where the next answer begins, in the model's prompt style."""
        ...


class Progress:
    """Tells on stderr how far something is, every ten seconds."""

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.told = perf_counter()

    def __call__(self, more: int) -> None:
        self.done += more
        if perf_counter() - self.told >= TELL_EVERY:
            self.told = perf_counter()
            progress(f"{self.what}: {self.done:,} of {self.total:,}")


def quiet(what: str, total: int) -> Callable[[int], None]:
    """In the place of `Progress`, where something else tells."""
    return lambda more: None


class LocalModel:
    """A checkpoint in this process.

    Args:
        inference_model: The model, its tokenizer and prompt style.
        name: For results.
        rows: Texts that are computed together, at most.
        progress: Makes what is called with how much more is done.
    """

    def __init__(
        self,
        inference_model: InferenceModel,
        name: str,
        rows: int = ROWS,
        progress: Callable[[str, int], Callable[[int], None]] = Progress,
    ) -> None:
        self.inference_model, self.name, self.rows, self._progress = inference_model, name, rows, progress
        self.tokenizer = inference_model.tokenizer
        self.scorer = Scorer(inference_model.model, inference_model.dtype, rows)
        self.context = inference_model.model.max_seq_length

    @property
    def prefix(self) -> int:
        """The token before a text: BOS, or where there is none EOS.

        Raises:
            LitGPTError: The tokenizer has neither.
        """
        found = self.tokenizer.bos_id if self.tokenizer.bos_id is not None else self.tokenizer.eos_id
        if found is None:
            raise UnsupportedError(
                "The tokenizer has neither BOS nor EOS for a text to begin with, so its first token can't be predicted;"
                " name one in tokenizer_config.json."
            )
        return found

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of both, as lm-eval cuts them: spaces at the end of the context belong to the continuation, and
        that is what the ids of both together have beyond those of the context."""
        if not context:
            ids = self.tokenizer.encode_ids(continuation, bos=False)
            return ([self.prefix], ids) if ids[:1] != [self.prefix] else (ids[:1], ids[1:])
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        whole, before = self.tokenizer.encode_batch([stripped + continuation, stripped])
        return before or [self.prefix], whole[len(before) :]

    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], what: str) -> list[Score]:
        """`Scorer.score`, telling how far it is."""
        return self.scorer.score(pairs, self._progress(what, len(pairs)))

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        encoded = [self.encode_pair(*pair) for pair in pairs]
        asked = [pair for pair in encoded if pair[1]]
        found = iter(self.score(asked, "Continuations"))
        none = Score(0.0, True)  # of no tokens
        scores = [next(found) if continuation else none for _, continuation in encoded]
        return [
            Likelihood(score.logprob, score.greedy, len(continuation))
            for score, (_, continuation) in zip(scores, encoded, strict=True)
        ]

    def rolling(self, texts: Sequence[str], windows: Windows) -> list[Likelihood]:
        rows = [windows.over(ids, self.prefix, self.context) for ids in self.tokenizer.encode_batch(texts)]
        found = iter(self.score([window for row in rows for window in row], "Windows"))
        result = []
        for row in rows:
            scores = [next(found) for _ in row]
            n_tokens = sum(len(tokens) for _, tokens in row)
            logprob = sum(score.logprob for score in scores)
            result.append(Likelihood(logprob, all(score.greedy for score in scores), n_tokens))
        return result

    def answer(self, prompts: Sequence[str], how: Sequence[Answering]) -> list[str]:
        encoded = []
        for ids, one in zip(self.tokenizer.encode_batch(prompts), how, strict=True):
            room = self.context - one.max_new_tokens
            if room < 1:
                raise LitGPTError(
                    f"Answers of {one.max_new_tokens} tokens leave no room for a question in the model's context of"
                    f" {self.context}; ask for fewer."
                )
            encoded.append((ids or [self.prefix])[-room:])
        if not encoded:
            return []
        engine = self._engine(max(len(ids) + one.max_new_tokens for ids, one in zip(encoded, how, strict=True)))
        progress = self._progress("Answers", len(prompts))
        order = sorted(range(len(encoded)), key=lambda number: encoded[number])  # what begins alike follows each other
        streams = {
            number: TextStream(
                engine.submit(
                    encoded[number], how[number].sampling, self.inference_model.stops, how[number].max_new_tokens
                ),
                self.tokenizer.stream(),
                how[number].stop,
            )
            for number in order
        }
        texts = {}
        for number in order:
            texts[number] = "".join(streams[number])
            progress(1)
        return [texts[number] for number in range(len(encoded))]

    def _engine(self, length: int) -> Engine:
        """With as many slots as there is memory for, 16 at most."""
        model, slots = self.inference_model, min(self.rows, 16)
        while slots > 1 and self._fitting(slots, length) < length:
            slots //= 2
        return model.engine(slots, length)

    def _fitting(self, slots: int, length: int) -> int:
        model = self.inference_model
        try:
            return longest_fit(
                lambda length: model.cache_nbytes(slots, length), length, slots, model.model.layer_devices
            )
        except LitGPTError:
            return 0

    def chat_prompt(self, messages: Sequence[Message]) -> str:
        return self.inference_model.style.apply_messages(list(messages))

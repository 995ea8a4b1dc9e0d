"""What the routes ask of a backend and what it returns: plain values that go between processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

from litgpt.deploy.served_models import ServedModel
from litgpt.engine.detokenizer import TextStream
from litgpt.engine.request import FinishReason, Request
from litgpt.engine.sampling import Logprob, Sampling
from litgpt.engine.structured import Grammar
from litgpt.errors import LitGPTError
from litgpt.tokenizer import Tokenizer
from litgpt.tokenizer.stream import StreamDecoder


@dataclass(frozen=True)
class GenerationTask:
    """One answer to be generated."""

    model: str
    """The name it is asked under."""
    prompt: list[int]
    sampling: Sampling
    """Without a grammar: that one is made of `json_schema`, where the model is."""
    limit: int | None = None
    """The most tokens to generate; None: the room left."""
    stops: tuple[str, ...] = ()
    json_schema: str | None = None
    """The JSON schema that the answer keeps to, as text."""
    shown: tuple[str, ...] = ()
    """Special tokens that stay in the text, because they mark something."""
    ignore_end: bool = False
    """Go on after the model's own end tokens."""
    continues: bool = False
    """The answer goes on with the prompt's text, from the middle of a word or a character if need be."""


@dataclass(frozen=True)
class TokenLogprob(Logprob):
    """A token's log-probability, and how long its text is."""

    length: int = 0
    """Characters that became certain with it; none inside a character of several tokens."""


@dataclass(frozen=True)
class Counts:
    """What an answer took."""

    prompt: int = 0
    shared: int = 0
    """Tokens of the prompt that were computed before."""
    generated: int = 0
    waited: float = 0.0
    """Seconds until it got a slot."""


@dataclass(frozen=True)
class Delta:
    """What came out of one answer since its last delta."""

    choice: int
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    """Not None in the last delta of an answer."""
    stopped_by: str | None = None
    """The stop string that ended the answer, in its last delta."""
    counts: Counts = field(default_factory=Counts)
    error: str | None = None
    """What the model failed with; the finish reason is `error`."""
    fault: Literal["request", "server"] = "server"
    """Whose fault the error is."""


class ResponseStream(ABC):
    """The answers to one HTTP request, as they come."""

    @abstractmethod
    async def change(self) -> None:
        """Returns when `take` may have something to return, or an answer got its slot."""

    @abstractmethod
    def take(self) -> list[Delta]:
        """What happened since the last call; never waits."""

    @property
    @abstractmethod
    def begun(self) -> bool:
        """Whether an answer got its slot."""

    @abstractmethod
    def cancel(self) -> None:
        """Ends all of them; their slots are free from the next step on."""


class Backend(ABC):
    """What runs the model."""

    slots: int
    """Answers that are worked on at the same time."""
    length: int
    """Tokens that a prompt and its answer may have together."""

    @abstractmethod
    async def open(self, tasks: Sequence[GenerationTask]) -> ResponseStream:
        """Submits tasks.

        Raises:
            LitGPTError: A task makes no sense.
        """

    @abstractmethod
    async def embed(self, model: str, tokens: list[int], pooling: Literal["mean", "last"]) -> list[float]:
        """See `litgpt.deploy.backends.embeddings.embed`."""

    @abstractmethod
    async def score(self, model: str, tokens: list[int], top: int) -> list[Logprob]:
        """See `litgpt.deploy.backends.embeddings.score`."""

    @abstractmethod
    async def start(self) -> None:
        """Makes it ready."""

    @abstractmethod
    async def stop(self) -> None:
        """Cancels what is left."""

    @abstractmethod
    def gauges(self) -> dict[str, float]:
        """What is going on right now, by the names in `litgpt.deploy.metrics.GAUGES`."""

    @abstractmethod
    async def trouble(self) -> str | None:
        """Why the model doesn't answer; None: it does."""


LEAST_LOGPROB = -9999.0
"""What OpenAI's answers have where a token is impossible: JSON knows no infinity."""
MEMORY = 64
"""Tokens back that may say how the text of the next one looks."""


class OutputDecoder(StreamDecoder):
    """A decoder that shows some special tokens, and remembers how long each token's text is.

    Args:
        tokenizer: The model's.
        shown: The special tokens.
        after: What the text goes on with.
    """

    def __init__(self, tokenizer: Tokenizer, shown: Sequence[str] = (), after: Sequence[int] = ()) -> None:
        self._inner = tokenizer.stream(shown=_ids(tokenizer, shown))
        self.lengths: list[int] = []
        for token in after[-MEMORY:]:
            self._inner.push(token)

    def push(self, token_id: int) -> str:
        text = self._inner.push(token_id)
        self.lengths.append(len(text))
        return text

    def flush(self) -> str:
        return self._inner.flush()


def _ids(tokenizer: Tokenizer, tokens: Sequence[str]) -> set[int]:
    """The ids of those that this vocabulary has; the others are ordinary text in it."""
    found = set()
    for token in tokens:
        try:
            found.add(tokenizer.token_to_id(token))
        except LitGPTError:
            continue
    return found


class OutputStream(TextStream):
    """One answer of an engine, as deltas."""

    def __init__(self, choice: int, request: Request, decoder: OutputDecoder, stops: Sequence[str]) -> None:
        super().__init__(request, decoder, stops)
        self.closed = False
        """Whether the last delta has been returned."""
        self._choice, self._lengths = choice, decoder.lengths
        self._n_logprobs = self._n_characters = self._n_measured = 0
        """In the deltas so far: log-probabilities, characters, and the characters of the tokens of the former."""

    def delta(self) -> Delta | None:
        """What happened since the last call; None: nothing, or the last delta has been returned."""
        if self.closed:
            return None
        request = self.request
        done = request.done  # looked at first: what comes out after this is in the next delta
        text = "".join(self.push([token]) for token in request.take())
        stopped = self.finish_reason == "stop" and not done
        if done or stopped:
            text += self.close()
        self._n_characters += len(text)
        logprobs = self._logprobs(done)
        if not (text or logprobs or done or stopped):
            return None
        self.closed = done or stopped
        error, timing = request.error, request.timing
        waited = 0.0 if timing.admitted is None else timing.admitted - timing.submitted
        return Delta(
            self._choice,
            text,
            logprobs,
            self.finish_reason if self.closed else None,
            self.stopped_by,
            Counts(len(request.prompt), request.n_shared, request.n_generated, waited),
            None if error is None else str(error),
            "request" if request.at_fault else "server",
        )

    def _logprobs(self, done: bool) -> tuple[TokenLogprob, ...]:
        """The log-probabilities of tokens whose text is in a delta; none for tokens behind a stop string."""
        logprobs, lengths = self.request.logprobs, self._lengths
        if self.request.sampling.logprobs is None:
            return ()
        found = []
        cut = self.finish_reason == "stop" and self.request.finish_reason != "stop"
        while (at := self._n_logprobs) < min(len(lengths), len(logprobs)):
            if self._n_measured >= self._n_characters and (cut or (not done and lengths[at])):
                break
            found.append(TokenLogprob(logprobs[at].token, logprobs[at].logprob, logprobs[at].top, lengths[at]))
            self._n_measured += lengths[at]
            self._n_logprobs += 1
        return tuple(found)


def submit(
    served_model: ServedModel, choice: int, task: GenerationTask, on_update: Callable[[], None] | None = None
) -> OutputStream:
    """Submits a task to the engine of a served model.

    Raises:
        LitGPTError: It makes no sense.
    """
    sampling = task.sampling
    tokenizer = served_model.inference_model.tokenizer
    if task.json_schema is not None:
        sampling = replace(sampling, grammar=json_schema_grammar(task.json_schema, tokenizer))
    ends = [] if task.ignore_end else served_model.inference_model.stops
    decoder = OutputDecoder(tokenizer, task.shown, task.prompt if task.continues else ())
    request = served_model.engine.submit(
        task.prompt, sampling, ends, task.limit, on_update, adapter=served_model.adapter
    )
    return OutputStream(choice, request, decoder, task.stops)


json_schema_grammar = lru_cache(maxsize=8)(Grammar.json_schema)  # one may take 20 MB
"""`Grammar.json_schema` of a schema as text."""


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token by itself, special ones too; one that is no whole character as OpenAI writes it: `bytes:\\xe2\\x9c`."""
    content = tokenizer.token_bytes(token)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

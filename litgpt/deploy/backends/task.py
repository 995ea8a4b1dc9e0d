"""What the routes ask of whoever runs the model, and what comes back: plain values that go between processes."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

from litgpt.deploy.served_models import ServedModel
from litgpt.engine.request import FinishReason, Request
from litgpt.engine.sampling import Sampling
from litgpt.engine.structured import Grammar
from litgpt.engine.text import Reply
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
class TokenLogprob:
    """A token, with its log-probability and its best alternatives' where they were asked for."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
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
    """What came out of one answer since the last news of it."""

    choice: int
    text: str = ""
    notes: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    """Not None in the last news of an answer."""
    counts: Counts = field(default_factory=Counts)
    error: str | None = None
    """What the model failed with; the finish reason is `error`."""
    fault: Literal["request", "server"] = "server"
    """Whose fault the error is."""


class ResponseStream(ABC):
    """The answers to one HTTP request, on their way."""

    @abstractmethod
    async def change(self) -> None:
        """Returns when something happened that `take` may tell of, the turn's coming too."""

    @abstractmethod
    def take(self) -> list[Delta]:
        """What happened since the last call; never waits."""

    @property
    @abstractmethod
    def begun(self) -> bool:
        """Whether an answer got its turn."""

    @abstractmethod
    def cancel(self) -> None:
        """Ends all of them; their slots are free from the next step on."""


class Backend(ABC):
    """Whoever runs the model."""

    slots: int
    """Answers that are worked on at the same time."""
    length: int
    """Tokens that a prompt and its answer may have together."""

    @abstractmethod
    async def open(self, tasks: Sequence[GenerationTask]) -> ResponseStream:
        """Puts works in line.

        Raises:
            LitGPTError: A task makes no sense.
        """

    @abstractmethod
    async def compute(self, kind: Literal["embed", "score"], model: str, tokens: list[int], **options: Any) -> Any:
        """Something other than an answer: see `litgpt.deploy.backends.embeddings`."""

    @abstractmethod
    async def start(self) -> None:
        """Makes it ready."""

    @abstractmethod
    async def stop(self) -> None:
        """Cancels what is left."""

    @abstractmethod
    def gauges(self) -> dict[str, float]:
        """What there is to measure: `running`, `waiting`, `cache_tokens`, `cache_capacity` …"""

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
        self._inner = tokenizer.stream()
        self._shown = _ids(tokenizer, tuple(shown))
        self.lengths: list[int] = []
        for token in after[-MEMORY:]:
            self._inner.push(token)

    def push(self, token_id: int) -> str:
        if token_id in self._shown:
            text = self._inner.flush() + self._shown[token_id]
        else:
            text = self._inner.push(token_id)
        self.lengths.append(len(text))
        return text

    def flush(self) -> str:
        return self._inner.flush()


def _ids(tokenizer: Tokenizer, shown: tuple[str, ...]) -> dict[int, str]:
    found = {}
    for text in shown:
        try:
            found[tokenizer.token_to_id(text)] = text
        except LitGPTError:  # in this vocabulary it is ordinary text
            continue
    return found


class OutputStream:
    """One answer of an engine, told as news."""

    def __init__(self, choice: int, reply: Reply, decoder: OutputDecoder) -> None:
        self.reply = reply
        self._choice, self._decoder = choice, decoder
        self._measured = self._sent = self._read = 0
        self._closed = False

    @property
    def request(self) -> Request:
        """The engine's side of it."""
        return self.reply.request

    @property
    def closed(self) -> bool:
        """Whether all of it is told."""
        return self._closed

    def delta(self) -> Delta | None:
        """What happened since the last call; None: nothing to tell, or all is told."""
        if self._closed:
            return None
        request = self.request
        done = request.done  # looked at first: what comes out after this is told next time
        text = "".join(self.reply.push([token]) for token in request.take())
        stopped = self.reply.finish_reason == "stop" and not done
        if done or stopped:
            text += self.reply.close()
        self._sent += len(text)
        notes = self._notes(done)
        if not (text or notes or done or stopped):
            return None
        self._closed = done or stopped
        error = request.error
        return Delta(
            self._choice,
            text,
            notes,
            self.reply.finish_reason if self._closed else None,
            Counts(len(request.prompt), request.n_shared, request.n_generated, self._waited()),
            None if error is None else str(error),
            "request" if request.at_fault else "server",
        )

    def _waited(self) -> float:
        timing = self.request.timing
        return 0.0 if timing.admitted is None else timing.admitted - timing.submitted

    def _notes(self, done: bool) -> tuple[TokenLogprob, ...]:
        """The log-probabilities of tokens whose text is told; none for tokens behind a stop string."""
        if self.request.sampling.logprobs is None:
            return ()
        found = []
        cut = self.reply.finish_reason == "stop" and self.reply.request.finish_reason != "stop"
        while self._measured < len(self._decoder.lengths) and self._measured < len(self.request.logprobs):
            if self._read >= self._sent and (cut or not done) and (cut or self._decoder.lengths[self._measured]):
                break
            note, length = self.request.logprobs[self._measured], self._decoder.lengths[self._measured]
            found.append(TokenLogprob(note.token, note.logprob, note.top, length))
            self._read += length
            self._measured += 1
        return tuple(found)


def submit(served_model: ServedModel, choice: int, task: GenerationTask, watch: Any = None) -> OutputStream:
    """Puts a task in line at the engine of a voice.

    Raises:
        LitGPTError: It makes no sense.
    """
    sampling = task.sampling
    tokenizer = served_model.inference_model.tokenizer
    if task.json_schema is not None:
        sampling = replace(sampling, grammar=json_schema_grammar(task.json_schema, tokenizer))
    ends = [] if task.ignore_end else served_model.inference_model.stops
    decoder = OutputDecoder(tokenizer, task.shown, task.prompt if task.continues else ())
    request = served_model.engine.submit(task.prompt, sampling, ends, task.limit, watch, adapter=served_model.adapter)
    return OutputStream(choice, Reply(request, decoder, task.stops), decoder)


@lru_cache(maxsize=8)  # one may take 20 MB
def json_schema_grammar(json_schema: str, tokenizer: Tokenizer) -> Grammar:
    """What a JSON schema, as text, lets an answer be.

    Raises:
        LitGPTError: It can't be enforced.
    """
    return Grammar.json_schema(json.loads(json_schema), tokenizer)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token by itself, special ones too; one that is no whole character as OpenAI writes it: `bytes:\\xe2\\x9c`."""
    content = tokenizer.token_bytes(token)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

"""What the routes ask of whoever runs the model, and what comes back: plain values that go between processes."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

from litgpt.deploy.served_models import Voice
from litgpt.engine.detokenizer import TextStream
from litgpt.engine.request import FinishReason, Request
from litgpt.engine.sampling import Sampling
from litgpt.engine.structured import Grammar
from litgpt.errors import LitGPTError
from litgpt.tokenizer import Tokenizer
from litgpt.tokenizer.stream import StreamDecoder


@dataclass(frozen=True)
class Work:
    """One answer to be generated."""

    model: str
    """The name it is asked under."""
    prompt: list[int]
    sampling: Sampling
    """Without a grammar: that one is made of `form`, where the model is."""
    limit: int | None = None
    """The most tokens to generate; None: the room left."""
    stops: tuple[str, ...] = ()
    form: str | None = None
    """The JSON schema that the answer keeps to, as text."""
    shown: tuple[str, ...] = ()
    """Special tokens that stay in the text, because they mark something."""
    ignore_end: bool = False
    """Go on after the model's own end tokens."""
    continues: bool = False
    """The answer goes on with the prompt's text, from the middle of a word or a character if need be."""


@dataclass(frozen=True)
class TokenNote:
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
class News:
    """What came out of one answer since the last news of it."""

    choice: int
    text: str = ""
    notes: tuple[TokenNote, ...] = ()
    finish_reason: FinishReason | None = None
    """Not None in the last news of an answer."""
    counts: Counts = field(default_factory=Counts)
    error: str | None = None
    """What the model failed with; the finish reason is `error`."""
    fault: Literal["request", "server"] = "server"
    """Whose fault the error is."""


class Answers(ABC):
    """The answers to one HTTP request, on their way."""

    @abstractmethod
    async def change(self) -> None:
        """Returns when something happened that `take` may tell of, the turn's coming too."""

    @abstractmethod
    def take(self) -> list[News]:
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
    async def open(self, works: Sequence[Work]) -> Answers:
        """Puts works in line.

        Raises:
            LitGPTError: A work makes no sense.
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


class NotedStream(StreamDecoder):
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


class Following:
    """One answer of an engine, told as news."""

    def __init__(self, choice: int, reply: TextStream, decoder: NotedStream) -> None:
        self.reply = reply
        self._choice, self._decoder = choice, decoder
        self._noted = self._told = self._read = 0
        self._closed = False

    @property
    def request(self) -> Request:
        """The engine's side of it."""
        return self.reply.request

    @property
    def closed(self) -> bool:
        """Whether all of it is told."""
        return self._closed

    def news(self) -> News | None:
        """What happened since the last call; None: nothing to tell, or all is told."""
        if self._closed:
            return None
        request = self.request
        done = request.done  # looked at first: what comes out after this is told next time
        text = "".join(self.reply.push([token]) for token in request.take())
        stopped = self.reply.finish_reason == "stop" and not done
        if done or stopped:
            text += self.reply.close()
        self._told += len(text)
        notes = self._notes(done)
        if not (text or notes or done or stopped):
            return None
        self._closed = done or stopped
        error = request.error
        return News(
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

    def _notes(self, done: bool) -> tuple[TokenNote, ...]:
        """The log-probabilities of tokens whose text is told; none for tokens behind a stop string."""
        if self.request.sampling.logprobs is None:
            return ()
        found = []
        cut = self.reply.finish_reason == "stop" and self.reply.request.finish_reason != "stop"
        while self._noted < len(self._decoder.lengths) and self._noted < len(self.request.logprobs):
            if self._read >= self._told and (cut or not done) and (cut or self._decoder.lengths[self._noted]):
                break
            note, length = self.request.logprobs[self._noted], self._decoder.lengths[self._noted]
            found.append(TokenNote(note.token, note.logprob, note.top, length))
            self._read += length
            self._noted += 1
        return tuple(found)


def follow(voice: Voice, choice: int, work: Work, on_update: Any = None) -> Following:
    """Puts a work in line at the engine of a voice.

    Raises:
        LitGPTError: It makes no sense.
    """
    sampling = work.sampling
    tokenizer = voice.inference_model.tokenizer
    if work.form is not None:
        sampling = replace(sampling, grammar=grammar_of(work.form, tokenizer))
    ends = [] if work.ignore_end else voice.inference_model.stops
    decoder = NotedStream(tokenizer, work.shown, work.prompt if work.continues else ())
    request = voice.engine.submit(work.prompt, sampling, ends, work.limit, on_update, adapter=voice.adapter)
    return Following(choice, TextStream(request, decoder, work.stops), decoder)


@lru_cache(maxsize=8)  # one may take 20 MB
def grammar_of(form: str, tokenizer: Tokenizer) -> Grammar:
    """What a JSON schema, as text, lets an answer be.

    Raises:
        LitGPTError: It can't be enforced.
    """
    return Grammar.json_schema(json.loads(form), tokenizer)


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """A token by itself, special ones too; one that is no whole character as OpenAI writes it: `bytes:\\xe2\\x9c`."""
    content = tokenizer.token_bytes(token)
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)

"""What the routes have in common when they answer, whole or as server-sent events."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from litgpt.deploy.backends.task import Delta, GenerationTask
from litgpt.deploy.protocol.errors import APIError, JSONAnswer, dumps
from litgpt.deploy.protocol.schemas import CompletionFields
from litgpt.deploy.request_log import RequestRecord
from litgpt.deploy.served_models import ServedModel
from litgpt.deploy.service import InFlightRequest, Service

KEEP_ALIVE_SECONDS = 10.0
"""After so long a silence, while a long prompt is computed say, a stream says that it is alive."""


STREAMABLE: dict[int | str, dict[str, Any]] = {
    200: {"description": "Whole, or as it comes", "content": {"application/json": {}, "text/event-stream": {}}}
}
"""What the description of a route says of its answers."""


class Choice(ABC):
    """One answer of a response, as it comes."""

    @abstractmethod
    def push(self, delta: Delta) -> Any:
        """Takes a delta in."""


class ChunkedChoice(Choice):
    """One answer, as the APIs have it that number several answers to one request."""

    @abstractmethod
    def opening(self) -> Iterator[dict[str, Any]]:
        """What a stream has of it before the first delta."""

    @abstractmethod
    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """Takes a delta in; what a stream has of it."""

    @abstractmethod
    def format(self) -> dict[str, Any]:
        """All of it."""


class EventStream(ABC):
    """A response as server-sent events, in the words of one protocol."""

    keep_alive: ClassVar[bytes] = b": keep-alive\n\n"
    """What is sent while nothing happens, so that no proxy takes the connection for dead."""

    @abstractmethod
    def opening(self) -> Iterator[bytes]:
        """What is sent before the first delta."""

    @abstractmethod
    def push(self, delta: Delta) -> Iterator[bytes]:
        """Takes a delta in; what is sent of it."""

    @abstractmethod
    def closing(self) -> Iterator[bytes]:
        """What is sent after the last delta."""

    @abstractmethod
    def failure(self, error: APIError) -> bytes:
        """What is sent where an answer fails, for the status has long been sent."""


@dataclass
class ParsedRequest(ABC):
    """A request, parsed."""

    id_prefix: ClassVar[str]

    body: CompletionFields
    served_model: ServedModel
    tasks: list[GenerationTask]
    n: int
    """Answers to one prompt."""
    id: str = field(default="", init=False)
    warnings: tuple[str, ...] = field(default=(), init=False)
    """What the client should know of the answer; the response, or the first piece of a stream, has them."""
    created: int = field(default_factory=lambda: int(time.time()), init=False)

    @abstractmethod
    def choices(self) -> Sequence[Choice]:
        """The answers, before anything has come of them."""

    @abstractmethod
    def whole(self, choices: Sequence[Any], usage: Usage) -> dict[str, Any]:
        """The response, once its answers are complete."""

    @abstractmethod
    def stream(self) -> EventStream:
        """The response as events."""

    def identify(self, record: RequestRecord) -> None:
        """Takes the request's id, and notes whether it streams."""
        self.id = self.id_prefix + record.id
        record.stream = bool(self.body.stream)


class ParsedChunked(ParsedRequest):
    """A request to an API that numbers several answers, and streams them in chunks of one kind."""

    kind: ClassVar[str]
    """What OpenAI calls the response."""
    chunk_kind: ClassVar[str]
    """What OpenAI calls a piece of it in a stream."""

    @abstractmethod
    def choices(self) -> Sequence[ChunkedChoice]: ...

    def whole(self, choices: Sequence[ChunkedChoice], usage: Usage) -> dict[str, Any]:
        formatted = [choice.format() for choice in choices]
        return {**self.head(self.kind), "choices": formatted, "usage": usage.format(), **self.notes()}

    def stream(self) -> EventStream:
        return ChunkStream(self)

    def head(self, kind: str) -> dict[str, Any]:
        """What every response, and every piece of one, begins with."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.body.model}

    def notes(self) -> dict[str, Any]:
        """What OpenAI's API has no field for."""
        return {"warnings": list(self.warnings)} if self.warnings else {}


class Usage:
    """Tokens in and out; a prompt that several answers share counts once.

    Args:
        n: How many answers share a prompt.
    """

    def __init__(self, n: int) -> None:
        self._n = n
        self._prompts: dict[int, tuple[int, int]] = {}
        self.generated = 0

    def push(self, delta: Delta) -> None:
        """Counts an answer that is done."""
        if delta.finish_reason is not None:
            prompt = delta.choice // self._n
            if prompt not in self._prompts or delta.choice % self._n == 0:
                self._prompts[prompt] = (delta.counts.prompt, delta.counts.shared)
            self.generated += delta.counts.generated

    @property
    def prompt(self) -> int:
        """Tokens of the prompts."""
        return sum(n for n, _ in self._prompts.values())

    @property
    def shared(self) -> int:
        """Those that were computed before."""
        return sum(n for _, n in self._prompts.values())

    def format(self) -> dict[str, Any]:
        """As OpenAI's API has it."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": {"cached_tokens": self.shared},
        }


def finish_reason(reason: str | None) -> str:
    """OpenAI's word for why an answer ended."""
    return "length" if reason == "length" else "stop"


class ChunkStream(EventStream):
    """The chunks of a response of several answers."""

    def __init__(self, parsed: ParsedChunked) -> None:
        options = parsed.body.stream_options
        self._wants_usage = options is not None and options.include_usage
        self._head = parsed.head(parsed.chunk_kind) | ({"usage": None} if self._wants_usage else {})
        self._choices, self._usage, self._notes = parsed.choices(), Usage(parsed.n), parsed.notes()

    def opening(self) -> Iterator[bytes]:
        for choice in self._choices:
            for chunk in choice.opening():
                yield event({**self._head, "choices": [chunk], **self._notes})
                self._notes = {}

    def push(self, delta: Delta) -> Iterator[bytes]:
        self._usage.push(delta)
        for chunk in self._choices[delta.choice].chunks(delta):
            yield event({**self._head, "choices": [chunk]})

    def closing(self) -> Iterator[bytes]:
        if self._wants_usage:
            yield event({**self._head, "choices": [], "usage": self._usage.format()})
        yield b"data: [DONE]\n\n"

    def failure(self, error: APIError) -> bytes:
        return event(error.body())


async def respond(service: Service, http: Request, parsed: ParsedRequest) -> Response:
    """Generates the answers to a request and returns the response, or a stream of it.

    Raises:
        APIError: There is no room, the model failed, or it takes too long.
        LitGPTError: A task makes no sense.
    """
    request = InFlightRequest(service, http)
    await request.begin(parsed.tasks)
    if not parsed.body.stream:
        return JSONAnswer(await _whole(parsed, request))
    # Proxies must not hold the events back.
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(parsed.stream(), request), media_type="text/event-stream", headers=headers)


async def _whole(parsed: ParsedRequest, request: InFlightRequest) -> dict[str, Any]:
    """The response once it is complete."""
    choices, usage = parsed.choices(), Usage(parsed.n)
    async for delta in request.deltas():
        choices[delta.choice].push(delta)
        usage.push(delta)
    return parsed.whole(choices, usage)


async def _events(stream: EventStream, request: InFlightRequest) -> AsyncIterator[bytes]:
    """The response as it comes; a failure is an event too, because the status has long been sent."""
    try:
        for piece in stream.opening():
            yield piece
        async for delta in request.deltas_or_silence(KEEP_ALIVE_SECONDS):
            if delta is None:
                yield stream.keep_alive
                continue
            for piece in stream.push(delta):
                yield piece
        for piece in stream.closing():
            yield piece
    except APIError as error:
        yield stream.failure(error)
    finally:
        request.end()


def event(content: dict[str, Any], name: str | None = None) -> bytes:
    """A server-sent event."""
    return (b"" if name is None else b"event: " + name.encode() + b"\n") + b"data: " + dumps(content) + b"\n\n"

"""What chat and completions have in common when they answer, whole or as server-sent events."""

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
from litgpt.deploy.protocol.schemas import SamplingFields
from litgpt.deploy.request_log import RequestRecord
from litgpt.deploy.served_models import ServedModel
from litgpt.deploy.service import InFlightRequest, Service


class Choice(ABC):
    """One answer of a response, as it comes."""

    @abstractmethod
    def opening(self) -> Iterator[dict[str, Any]]:
        """What a stream has of it before the first delta."""

    @abstractmethod
    def push(self, delta: Delta) -> Any:
        """Takes a delta in."""

    @abstractmethod
    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """Takes a delta in; what a stream has of it."""

    @abstractmethod
    def format(self) -> dict[str, Any]:
        """All of it."""


@dataclass
class ParsedRequest(ABC):
    """A request, parsed."""

    id_prefix: ClassVar[str]
    kind: ClassVar[str]
    """What OpenAI calls the response."""
    chunk_kind: ClassVar[str]
    """What OpenAI calls a piece of it in a stream."""

    body: SamplingFields
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

    def identify(self, record: RequestRecord) -> None:
        """Takes the request's id, and notes whether it streams."""
        self.id = self.id_prefix + record.id
        record.stream = bool(self.body.stream)

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
        self._generated = 0

    def push(self, delta: Delta) -> None:
        """Counts an answer that is done."""
        if delta.finish_reason is not None:
            prompt = delta.choice // self._n
            if prompt not in self._prompts or delta.choice % self._n == 0:
                self._prompts[prompt] = (delta.counts.prompt, delta.counts.shared)
            self._generated += delta.counts.generated

    def format(self) -> dict[str, Any]:
        """As OpenAI's API has it."""
        prompt = sum(n for n, _ in self._prompts.values())
        shared = sum(n for _, n in self._prompts.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._generated,
            "total_tokens": prompt + self._generated,
            "prompt_tokens_details": {"cached_tokens": shared},
        }


def finish_reason(reason: str) -> str:
    """OpenAI's word for why an answer ended."""
    return "length" if reason == "length" else "stop"


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
    return StreamingResponse(_events(parsed, request), media_type="text/event-stream", headers=headers)


async def _whole(parsed: ParsedRequest, request: InFlightRequest) -> dict[str, Any]:
    """The response once it is complete."""
    choices, usage = parsed.choices(), Usage(parsed.n)
    async for delta in request.deltas():
        choices[delta.choice].push(delta)
        usage.push(delta)
    formatted = [choice.format() for choice in choices]
    return {**parsed.head(parsed.kind), "choices": formatted, "usage": usage.format(), **parsed.notes()}


async def _events(parsed: ParsedRequest, request: InFlightRequest) -> AsyncIterator[bytes]:
    """The response as it comes; a failure is an event too, because the status has long been sent."""
    options = parsed.body.stream_options
    wants_usage = options is not None and options.include_usage
    head = parsed.head(parsed.chunk_kind) | ({"usage": None} if wants_usage else {})
    choices, usage, notes = parsed.choices(), Usage(parsed.n), parsed.notes()
    try:
        for choice in choices:
            for chunk in choice.opening():
                yield _event({**head, "choices": [chunk], **notes})
                notes = {}
        async for delta in request.deltas():
            usage.push(delta)
            for chunk in choices[delta.choice].chunks(delta):
                yield _event({**head, "choices": [chunk]})
        if wants_usage:
            yield _event({**head, "choices": [], "usage": usage.format()})
        yield b"data: [DONE]\n\n"
    except APIError as error:
        yield _event(error.body())
    finally:
        request.end()


def _event(content: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + dumps(content) + b"\n\n"

"""`POST /v1/messages` and `/v1/messages/count_tokens`: a conversation's next message, as Anthropic's API has it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response

from litgpt.deploy.backends.task import Delta
from litgpt.deploy.protocol.conversation import MessageChoice, ParsedChat, parse
from litgpt.deploy.protocol.errors import APIError, JSONAnswer
from litgpt.deploy.protocol.messages import CountRequest, MessagesRequest, chat_request, thinking_warnings
from litgpt.deploy.protocol.notations import Call
from litgpt.deploy.protocol.parsing import template_source
from litgpt.deploy.protocol.responses import STREAMABLE, EventStream, Usage, event, respond
from litgpt.deploy.protocol.tool_calls import Text
from litgpt.deploy.service import Service


@dataclass
class ParsedMessages(ParsedChat):
    """A request for a message, parsed."""

    id_prefix = "msg_"

    def choices(self) -> list[MessageChoice]:
        return [MessageChoice(self)]

    def whole(self, choices: Sequence[MessageChoice], usage: Usage) -> dict[str, Any]:
        (choice,) = choices
        content = [_block(part, self.id) for part in choice.message.parts]
        return self.head() | {"content": content, **_end(self, choice), "usage": _usage(usage)}

    def stream(self) -> EventStream:
        return MessageEvents(self)

    def head(self) -> dict[str, Any]:
        """The message before anything has come of it."""
        notes = {"warnings": list(self.warnings)} if self.warnings else {}
        blank: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        return {"id": self.id, "type": "message", "role": "assistant", "model": self.body.model, **blank, **notes}


class MessageEvents(EventStream):
    """A message as it comes: one block after another."""

    keep_alive = event({"type": "ping"}, "ping")

    def __init__(self, parsed: ParsedMessages) -> None:
        self._parsed, self._choice, self._usage = parsed, MessageChoice(parsed), Usage(1)
        self._n_blocks = 0
        self._kind: str | None = None
        """Of the text block that is open; None: none is."""

    def opening(self) -> Iterator[bytes]:
        usage = {"input_tokens": len(self._parsed.tasks[0].prompt), "output_tokens": 0}
        yield _event("message_start", message=self._parsed.head() | {"usage": usage})

    def push(self, delta: Delta) -> Iterator[bytes]:
        self._usage.push(delta)
        for part in self._choice.push(delta).parts:
            if isinstance(part, Call):
                yield from self._close()
                yield self._open(_block(part, "") | {"input": {}})
                yield self._delta("input_json_delta", partial_json=part.arguments)
                yield self._end_block()
                continue
            if part.kind != self._kind:
                yield from self._close()
                yield self._open(_block(Text(part.kind, ""), ""))
                self._kind = part.kind
            if part.kind == "reasoning":
                yield self._delta("thinking_delta", thinking=part.text)
            else:
                yield self._delta("text_delta", text=part.text)

    def closing(self) -> Iterator[bytes]:
        yield from self._close()
        yield _event("message_delta", delta=_end(self._parsed, self._choice), usage=_usage(self._usage))
        yield _event("message_stop")

    def failure(self, error: APIError) -> bytes:
        return event(error.anthropic_body(), "error")

    def _open(self, block: dict[str, Any]) -> bytes:
        self._n_blocks += 1
        return _event("content_block_start", index=self._n_blocks - 1, content_block=block)

    def _delta(self, kind: str, **content: str) -> bytes:
        return _event("content_block_delta", index=self._n_blocks - 1, delta={"type": kind, **content})

    def _close(self) -> Iterator[bytes]:
        """Ends a block of text that is open."""
        if self._kind == "reasoning":
            yield self._delta("signature_delta", signature=self._parsed.id)
        if self._kind is not None:
            yield self._end_block()
        self._kind = None

    def _end_block(self) -> bytes:
        return _event("content_block_stop", index=self._n_blocks - 1)


def make_router(service: Service) -> APIRouter:
    """The routes."""
    router = APIRouter()

    @router.post("/v1/messages", responses=STREAMABLE)
    async def messages(body: MessagesRequest, http: Request) -> Response:
        """The next message of a conversation, as Anthropic's clients ask for it."""
        parsed = await service.prepare(parse_messages, service, body)
        parsed.identify(http.state.record)
        return await respond(service, http, parsed)

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(body: CountRequest) -> Response:
        """How many tokens the prompt of such a request has."""
        parsed = await service.prepare(parse_messages, service, body)
        return JSONAnswer({"input_tokens": len(parsed.tasks[0].prompt)})

    return router


def parse_messages(service: Service, body: CountRequest) -> ParsedMessages:
    """From the body to the task.

    Raises:
        APIError: Something in it can't be done.
    """
    template = template_source(service.served_model(body.model), "tool_use" if body.tools else "default")
    parsed = parse(service, chat_request(body, template), ParsedMessages)
    parsed.warnings += tuple(thinking_warnings(body.thinking, template, parsed.in_channels))
    return parsed


def _block(part: Text | Call, signature: str) -> dict[str, Any]:
    if isinstance(part, Call):
        return {"type": "tool_use", "id": part.id, "name": part.name, "input": json.loads(part.arguments)}
    if part.kind == "reasoning":
        return {"type": "thinking", "thinking": part.text, "signature": signature}
    return {"type": "text", "text": part.text}


def _end(parsed: ParsedMessages, choice: MessageChoice) -> dict[str, Any]:
    """Why the answer ended."""
    last, sequence = choice.last, None
    assert last is not None
    if choice.reason == "tool_calls":
        reason = "tool_use"
    elif choice.reason == "length":
        limit = parsed.tasks[0].limit
        reason = "max_tokens" if limit is not None and last.counts.generated >= limit else _NO_ROOM
    elif last.stopped_by is not None:
        reason, sequence = "stop_sequence", last.stopped_by
    else:
        reason = "end_turn"
    return {"stop_reason": reason, "stop_sequence": sequence}


_NO_ROOM = "model_context_window_exceeded"


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt - usage.shared,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.shared,
        "output_tokens": usage.generated,
    }


def _event(kind: str, **content: Any) -> bytes:
    return event({"type": kind, **content}, kind)

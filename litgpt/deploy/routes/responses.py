"""`POST /v1/responses`, and what becomes of its responses: a conversation's next message, in items."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from litgpt.deploy.backends.task import Delta
from litgpt.deploy.protocol.conversation import MessageChoice, ParsedChat, parse
from litgpt.deploy.protocol.errors import APIError, JSONAnswer
from litgpt.deploy.protocol.items import InputTokensRequest, ResponsesRequest, chat_request
from litgpt.deploy.protocol.notations import Call
from litgpt.deploy.protocol.responses import STREAMABLE, EventStream, Usage, event, respond
from litgpt.deploy.protocol.schemas import ChatMessage, FunctionCall, ToolCall
from litgpt.deploy.protocol.tool_calls import Text
from litgpt.deploy.service import Service
from litgpt.deploy.stored_responses import StoredResponses

FIELDS = {"messages": "input", "response_format": "text.format", "reasoning_effort": "reasoning.effort"}
"""What fields of a chat request are called here."""


@dataclass
class ParsedResponse(ParsedChat):
    """A request for a response, parsed."""

    id_prefix = "resp_"

    asked: ResponsesRequest = field(init=False)
    store: StoredResponses | None = field(default=None, init=False)
    """Where the response is kept; None: it isn't."""

    def choices(self) -> list[MessageChoice]:
        return [MessageChoice(self)]

    def whole(self, choices: Sequence[MessageChoice], usage: Usage) -> dict[str, Any]:
        (choice,) = choices
        cut = choice.reason == "length"
        output = [self.item(part, at, "completed") for at, part in enumerate(choice.message.parts)]
        if cut and output and output[-1]["type"] != "function_call":
            output[-1]["status"] = "incomplete"
        response = self.head("incomplete" if cut else "completed") | {
            "output": output,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "completed_at": None if cut else int(time.time()),
            "usage": self._usage(choice, usage),
        }
        if self.store is not None:
            answer = _message(choice)
            own = self.body.messages if self.asked.instructions is None else self.body.messages[1:]
            self.store.add(response, [*own, answer])
        return response

    def stream(self) -> EventStream:
        return ResponseEvents(self)

    def head(self, status: str) -> dict[str, Any]:
        """The response before anything has come of it."""
        asked, sampling = self.asked, self.tasks[0].sampling
        format_ = None if asked.text is None else asked.text.format
        reasoning = {} if asked.reasoning is None else _plain(asked.reasoning)
        tools = [{"parameters": None, "strict": None} | _plain(tool) for tool in asked.tools or ()]
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "model": asked.model,
            "output": [],
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "reasoning": {"effort": None, "summary": None} | reasoning,
            "store": self.store is not None,
            "temperature": sampling.temperature,
            "text": {"format": {"type": "text"} if format_ is None else _plain(format_)},
            "tool_choice": "auto" if self.asked.tool_choice is None else _plain(self.asked.tool_choice),
            "tools": tools,
            "top_p": sampling.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": asked.user,
            **({"warnings": list(self.warnings)} if self.warnings else {}),
        }

    def item(self, part: Text | Call, at: int, status: str) -> dict[str, Any]:
        """A part of the answer as an item of the output."""
        name = f"{self.id.removeprefix(self.id_prefix)}_{at}"
        if isinstance(part, Call):
            called = {"call_id": part.id, "name": part.name, "arguments": part.arguments}
            return {"id": f"fc_{name}", "type": "function_call", **called, "status": status}
        content = [] if status == "in_progress" else [content_of(part)]
        if part.kind == "reasoning":
            empty: dict[str, Any] = {"summary": [], "encrypted_content": None}
            return {"id": f"rs_{name}", "type": "reasoning", **empty, "content": content, "status": status}
        return {"id": f"msg_{name}", "type": "message", "role": "assistant", "content": content, "status": status}

    def _usage(self, choice: MessageChoice, usage: Usage) -> dict[str, Any]:
        tokenizer, thought = self.served_model.inference_model.tokenizer, choice.message.reasoning
        n = min(len(tokenizer.encode_ids(thought, bos=False)), usage.generated) if thought else 0
        return {
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.shared, "cache_write_tokens": 0},
            "output_tokens": usage.generated,
            "output_tokens_details": {"reasoning_tokens": n},
            "total_tokens": usage.prompt + usage.generated,
        }


class ResponseEvents(EventStream):
    """A response as it comes: one item after another."""

    def __init__(self, parsed: ParsedResponse) -> None:
        self._parsed, self._choice, self._usage = parsed, MessageChoice(parsed), Usage(1)
        self._n_events = self._n_items = 0
        self._text: Text | None = None
        """The text of the item that is open; None: none is."""

    def opening(self) -> Iterator[bytes]:
        yield self._event("response.created", response=self._parsed.head("in_progress"))
        yield self._event("response.in_progress", response=self._parsed.head("in_progress"))

    def push(self, delta: Delta) -> Iterator[bytes]:
        self._usage.push(delta)
        for part in self._choice.push(delta).parts:
            if isinstance(part, Call):
                yield from self._close("completed")
                yield from self._call(part)
                continue
            if self._text is not None and part.kind != self._text.kind:
                yield from self._close("completed")
            if self._text is None:
                self._text = Text(part.kind, "")
                yield self._item_event("added", "in_progress", self._text)
                yield self._content_event("response.content_part.added", part=content_of(self._text))
            self._text = Text(part.kind, self._text.text + part.text)
            logprobs: dict[str, Any] = {} if part.kind == "reasoning" else {"logprobs": []}
            yield self._content_event(f"response.{_names(part)}.delta", delta=part.text, **logprobs)

    def closing(self) -> Iterator[bytes]:
        yield from self._close("incomplete" if self._choice.reason == "length" else "completed")
        response = self._parsed.whole([self._choice], self._usage)
        yield self._event(f"response.{response['status']}", response=response)

    def failure(self, error: APIError) -> bytes:
        told = {"code": "server_error" if error.status >= 500 else "invalid_prompt", "message": error.message}
        return self._event("response.failed", response=self._parsed.head("failed") | {"error": told})

    def _call(self, call: Call) -> Iterator[bytes]:
        item = self._parsed.item(call, self._n_items, "in_progress")
        place = {"item_id": item["id"], "output_index": self._n_items}
        yield self._event("response.output_item.added", output_index=self._n_items, item=item | {"arguments": ""})
        yield self._event("response.function_call_arguments.delta", **place, delta=call.arguments)
        done = {"name": call.name, "arguments": call.arguments}
        yield self._event("response.function_call_arguments.done", **place, **done)
        yield self._item_event("done", "completed", call)
        self._n_items += 1

    def _close(self, status: str) -> Iterator[bytes]:
        """Ends an item of text that is open."""
        if (text := self._text) is None:
            return
        logprobs: dict[str, Any] = {} if text.kind == "reasoning" else {"logprobs": []}
        yield self._content_event(f"response.{_names(text)}.done", text=text.text, **logprobs)
        yield self._content_event("response.content_part.done", part=content_of(text))
        yield self._item_event("done", status, text)
        self._n_items += 1
        self._text = None

    def _content_event(self, kind: str, **content: Any) -> bytes:
        assert self._text is not None
        item = self._parsed.item(self._text, self._n_items, "in_progress")
        return self._event(kind, item_id=item["id"], output_index=self._n_items, content_index=0, **content)

    def _item_event(self, what: str, status: str, part: Text | Call) -> bytes:
        item = self._parsed.item(part, self._n_items, status)
        return self._event(f"response.output_item.{what}", output_index=self._n_items, item=item)

    def _event(self, kind: str, **content: Any) -> bytes:
        self._n_events += 1
        return event({"type": kind, "sequence_number": self._n_events - 1, **content}, kind)


def make_router(service: Service) -> APIRouter:
    """The routes."""
    router, stored = APIRouter(), StoredResponses()

    @router.post("/v1/responses", responses=STREAMABLE)
    async def responses(body: ResponsesRequest, http: Request) -> Response:
        """The next message of a conversation, as a response of items."""
        parsed = await service.prepare(parse_response, service, body, stored)
        parsed.asked, parsed.store = body, None if body.store is False else stored
        parsed.identify(http.state.record)
        return await respond(service, http, parsed)

    @router.post("/v1/responses/input_tokens")
    async def input_tokens(body: InputTokensRequest) -> Response:
        """How many tokens the prompt of such a request has."""
        parsed = await service.prepare(parse_response, service, body, stored)
        return JSONAnswer({"object": "response.input_tokens", "input_tokens": len(parsed.tasks[0].prompt)})

    @router.get("/v1/responses/{name}")
    async def response(name: str) -> Response:
        """A response that is kept."""
        return JSONAnswer(stored.get(name).response)

    @router.delete("/v1/responses/{name}")
    async def delete(name: str) -> Response:
        """Forgets a response that is kept."""
        stored.delete(name)
        return JSONAnswer({"id": name, "object": "response", "deleted": True})

    return router


def parse_response(service: Service, body: InputTokensRequest, stored: StoredResponses) -> ParsedResponse:
    """From the body to the task.

    Raises:
        APIError: Something in it can't be done.
    """
    last = body.previous_response_id
    before = () if last is None else stored.get(last, "previous_response_id").messages
    try:
        return parse(service, chat_request(body, before), ParsedResponse)
    except APIError as error:
        error.param = FIELDS.get(error.param or "", error.param)
        raise


def content_of(text: Text) -> dict[str, Any]:
    """A text as the content of an item."""
    if text.kind == "reasoning":
        return {"type": "reasoning_text", "text": text.text}
    return {"type": "output_text", "text": text.text, "annotations": [], "logprobs": []}


def _names(text: Text) -> str:
    return "reasoning_text" if text.kind == "reasoning" else "output_text"


def _message(choice: MessageChoice) -> ChatMessage:
    """An answer as a message of the conversation that goes on with it."""
    said = choice.message
    calls = [
        ToolCall(id=call.id, function=FunctionCall(name=call.name, arguments=call.arguments)) for call in said.calls
    ]
    return ChatMessage(
        role="assistant",
        content=said.content or None,
        reasoning_content=said.reasoning or None,
        tool_calls=calls or None,
    )


def _plain(value: Any) -> Any:
    """A part of a request as it was given."""
    return value if isinstance(value, str) else value.model_dump(by_alias=True, exclude_none=True)

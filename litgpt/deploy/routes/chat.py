"""`POST /v1/chat/completions`: a conversation's next message, whole or as it comes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter, Request, Response

from litgpt.deploy.backends.task import LEAST_LOGPROB, Delta, GenerationTask, TokenLogprob, token_text
from litgpt.deploy.protocol import channels
from litgpt.deploy.protocol.channels import ChannelParser
from litgpt.deploy.protocol.errors import JSON, APIError
from litgpt.deploy.protocol.events import Usage, events, finish_reason, stream_response
from litgpt.deploy.protocol.parsing import (
    characters,
    checked_schema,
    choices_of,
    encode,
    render,
    response_format_schema,
    sampling_of,
    stops_of,
)
from litgpt.deploy.protocol.schemas import ChatRequest, Tool, ToolChoice
from litgpt.deploy.protocol.tool_calls import Call, DeltaMessage, ToolCallParser, ToolFormat, forced_schema, format_of
from litgpt.deploy.served_models import ServedModel
from litgpt.deploy.service import InFlightRequest, Service
from litgpt.prompts import ChatTemplate


@dataclass
class ParsedChat:
    """A request, understood."""

    body: ChatRequest
    served_model: ServedModel
    tasks: list[GenerationTask]
    notation: ToolFormat | None = None
    """How calls are written, where there are tools."""
    names: frozenset[str] = frozenset()
    forced: str | None = None
    """What the answer begins with that has to be a call."""
    in_channels: bool = False
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def head(self, kind: str) -> dict[str, Any]:
        """What every answer, and every piece of one, begins with."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.body.model}

    def reader(self) -> ToolCallParser | ChannelParser | None:
        """What parts an answer; None: all of it is said."""
        if self.in_channels:
            return ChannelParser(self.names)
        if self.notation is None:
            return None
        reader = ToolCallParser(self.notation, self.names)
        if self.forced:
            reader.push(self.forced)
        return reader


class Choice:
    """One answer as it comes: what is said, called and thought, and how likely each token was."""

    def __init__(self, parsed: ParsedChat) -> None:
        self._reader = parsed.reader()
        self._only_one = parsed.body.parallel_tool_calls is False or parsed.forced is not None
        self.text = self.reasoning = ""
        self.calls: list[Call] = []
        self.notes: list[TokenLogprob] = []
        self.reason: str | None = None
        self.begun = False

    def take(self, delta: Delta) -> DeltaMessage:
        """What is new in it."""
        message = DeltaMessage(delta.text) if self._reader is None else self._reader.push(delta.text)
        if delta.finish_reason is not None and self._reader is not None:
            message += self._reader.close()
        if self._only_one:
            message = replace(message, calls=message.calls[: 1 - len(self.calls)])
        self.text += message.content
        self.reasoning += message.reasoning
        self.calls += message.calls
        self.notes += delta.notes
        if delta.finish_reason is not None:
            reason = finish_reason(delta.finish_reason)
            self.reason = "tool_calls" if self.calls and reason == "stop" else reason
        return message

    def message(self) -> dict[str, Any]:
        """It as a whole."""
        more: dict[str, Any] = {"tool_calls": [call.format() for call in self.calls]} if self.calls else {}
        if self.reasoning:
            more["reasoning_content"] = self.reasoning
        return {"role": "assistant", "content": self.text or (None if self.calls else ""), "refusal": None, **more}


def make_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(body: ChatRequest, http: Request) -> Response:
        """The next message of a conversation."""
        parsed = await service.prepare(lambda: parse(service, body))
        request = service.request(http)
        parsed.id = f"chatcmpl-{request.record.id}"
        request.record.stream = bool(body.stream)
        await request.begin(parsed.tasks)
        if body.stream:
            return stream_response(events(pieces(parsed, request), request))
        return JSON(await whole(parsed, request))

    return router


def parse(service: Service, body: ChatRequest) -> ParsedChat:
    """From the body to the task.

    Raises:
        Problem: Something in it can't be done.
    """
    served_model = service.served_model(body.model)
    if body.top_logprobs and not body.logprobs:
        raise APIError(400, "top_logprobs needs logprobs to be true.", "top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise APIError(400, "stream_options needs stream to be true.", "stream_options")
    service.check_length(characters(body.messages), "messages")
    sampling = sampling_of(body, served_model, service.sampling, (body.top_logprobs or 0) if body.logprobs else None)
    tools = [] if body.tool_choice == "none" else body.tools or []
    text = render(served_model, body.messages, tools, variables_of(body, served_model))
    parsed = ParsedChat(body, served_model, [])
    json_schema = response_format_schema(body.response_format, served_model)
    if tools:
        parsed.notation, parsed.names = notation_of(served_model), frozenset(tool.function.name for tool in tools)
        json_schema = _force(parsed, tools, json_schema)
    elif isinstance(body.tool_choice, ToolChoice) or body.tool_choice == "required":
        raise APIError(400, "tool_choice asks for a tool, and there are no tools.", "tool_choice")
    prompt = encode(service, served_model, text + (parsed.forced or ""), "messages")
    parsed.in_channels = _template_has(served_model, channels.SIGN)
    shown = channels.MARKS if parsed.in_channels else parsed.notation.shown if parsed.notation is not None else ()
    limit = body.max_completion_tokens or body.max_tokens
    stops = stops_of(body, service)
    task = GenerationTask(served_model.name, prompt, sampling, limit, stops, json_schema, shown, bool(body.ignore_eos))
    parsed.tasks = tasks_of(task, choices_of(body, service))
    return parsed


def tasks_of(task: GenerationTask, n: int) -> list[GenerationTask]:
    """The same task `n` times; seeds count up."""
    return [replace(task, sampling=task.sampling.of_sample(i)) for i in range(n)]


def variables_of(body: ChatRequest, served_model: ServedModel) -> dict[str, Any]:
    """What else a chat template reads."""
    given = dict(body.chat_template_kwargs or {})
    taken = {"messages", "tools", "add_generation_prompt"} & given.keys()
    if taken:
        name = sorted(taken)[0]
        raise APIError(400, f"chat_template_kwargs has no place for {name}.", f"chat_template_kwargs.{name}")
    if body.reasoning_effort is not None:
        style = served_model.inference_model.style
        source = style.template().source if isinstance(style, ChatTemplate) else ""
        if "reasoning_effort" not in source and "enable_thinking" in source:  # on or off is all that it knows
            given.setdefault("enable_thinking", body.reasoning_effort != "none")
        else:
            given.setdefault("reasoning_effort", body.reasoning_effort)
    return given


def notation_of(served_model: ServedModel) -> ToolFormat | None:
    """How this model writes calls; None: nobody knows, and they stay text."""
    style = served_model.inference_model.style
    return format_of(style.template("tool_use").source) if isinstance(style, ChatTemplate) else None


def _template_has(served_model: ServedModel, sign: str) -> bool:
    style = served_model.inference_model.style
    return isinstance(style, ChatTemplate) and sign in style.template().source


def _force(parsed: ParsedChat, tools: Sequence[Tool], json_schema: str | None) -> str | None:
    """Sets up an answer that has to be a call; the schema of the answer."""
    choice = parsed.body.tool_choice
    if choice in (None, "auto"):
        return json_schema
    wanted = [tool.function for tool in tools]
    if isinstance(choice, ToolChoice):
        wanted = [function for function in wanted if function.name == choice.function.name]
        if not wanted:
            raise APIError(400, f"There is no tool {choice.function.name[:64]!r} to choose.", "tool_choice")
    if json_schema is not None:
        raise APIError(400, "tool_choice and response_format can't both say what the answer is.", "tool_choice")
    if parsed.notation is None or parsed.notation.forced is None:
        raise APIError(
            400, "How this model writes calls is not known well enough to ask for one; use auto.", "tool_choice"
        )
    parsed.forced = parsed.notation.forced
    parsed.notation = _open_ended(parsed.notation)
    schema = forced_schema(parsed.notation, [function.model_dump(exclude_none=True) for function in wanted])
    return checked_schema(schema, parsed.served_model, "tools")


def _open_ended(notation: ToolFormat) -> ToolFormat:
    """A call that goes to the answer's end: its grammar ends it, not a mark."""
    return replace(notation, end=None)


async def whole(parsed: ParsedChat, request: InFlightRequest) -> dict[str, Any]:
    """The answer once it is complete."""
    choices = [Choice(parsed) for _ in parsed.tasks]
    usage = Usage(len(parsed.tasks))
    async for delta in request.deltas():
        choices[delta.choice].take(delta)
        usage.take(delta)
    formatted = [
        {
            "index": index,
            "message": choice.message(),
            "logprobs": _logprobs(parsed, choice.notes) if parsed.body.logprobs else None,
            "finish_reason": choice.reason,
        }
        for index, choice in enumerate(choices)
    ]
    return {**parsed.head("chat.completion"), "choices": formatted, "usage": usage.format()}


async def pieces(parsed: ParsedChat, request: InFlightRequest) -> AsyncIterator[dict[str, Any]]:
    """The answer as it comes."""
    head = parsed.head("chat.completion.chunk")
    wants_usage = parsed.body.stream_options is not None and parsed.body.stream_options.include_usage
    if wants_usage:
        head["usage"] = None
    choices = [Choice(parsed) for _ in parsed.tasks]
    usage = Usage(len(parsed.tasks))

    def piece(index: int, delta: dict[str, Any], reason: str | None = None, notes: Any = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": notes, "finish_reason": reason}
        return {**head, "choices": [choice]}

    for index in range(len(choices)):
        yield piece(index, {"role": "assistant", "content": "", "refusal": None})
    async for delta in request.deltas():
        choice = choices[delta.choice]
        n_called = len(choice.calls)
        message = choice.take(delta)
        usage.take(delta)
        notes = _logprobs(parsed, delta.notes) if parsed.body.logprobs and delta.notes else None
        if message.reasoning:
            yield piece(delta.choice, {"reasoning_content": message.reasoning})
        if message.content or notes:
            yield piece(delta.choice, {"content": message.content}, notes=notes)
        for at, call in enumerate(message.calls):
            yield piece(delta.choice, {"tool_calls": [call.format(n_called + at)]})
        if choice.reason is not None:
            yield piece(delta.choice, {}, choice.reason)
    if wants_usage:
        yield {**head, "choices": [], "usage": usage.format()}


def _logprobs(parsed: ParsedChat, notes: Sequence[TokenLogprob]) -> dict[str, Any]:
    """How likely the tokens were."""
    tokenizer = parsed.served_model.inference_model.tokenizer

    def formatted(token: int, logprob: float) -> dict[str, Any]:
        text, content = token_text(tokenizer, token), list(tokenizer.token_bytes(token))
        return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": content}

    content = [
        {
            **formatted(note.token, note.logprob),
            "top_logprobs": [formatted(token, logprob) for token, logprob in note.top],
        }
        for note in notes
    ]
    return {"content": content, "refusal": None}

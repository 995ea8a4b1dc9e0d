"""`POST /v1/chat/completions`: a conversation's next message, whole or as it comes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import APIRouter, Request, Response

from litgpt.deploy.backends.task import LEAST_LOGPROB, Delta, GenerationTask, TokenLogprob, token_text
from litgpt.deploy.protocol import channels
from litgpt.deploy.protocol.channels import ChannelParser
from litgpt.deploy.protocol.errors import APIError
from litgpt.deploy.protocol.notations import Call, ToolFormat, format_of
from litgpt.deploy.protocol.parsing import (
    characters,
    checked_schema,
    choices_of,
    encode,
    plain_tools,
    render,
    response_format_schema,
    sampling_of,
    stops_of,
    tasks_of,
    template_source,
)
from litgpt.deploy.protocol.responses import Choice, ParsedRequest, finish_reason, respond
from litgpt.deploy.protocol.schemas import ChatRequest, Tool, ToolChoice
from litgpt.deploy.protocol.tool_calls import DeltaMessage, ToolCallParser, forced_schema
from litgpt.deploy.served_models import ServedModel
from litgpt.deploy.service import Service
from litgpt.errors import quoted

log = logging.getLogger("uvicorn.error")

UNKNOWN_NOTATION = (
    "How this model writes tool calls is not known, so what it calls stands in the text as it wrote it and not in "
    "tool_calls."
)


@dataclass
class ParsedChat(ParsedRequest):
    """A chat request, parsed."""

    id_prefix = "chatcmpl-"
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    body: ChatRequest
    tool_format: ToolFormat | None = None
    """How calls are written, where there are tools."""
    tools: Mapping[str, Any] = field(default_factory=dict)
    """What each takes, as a JSON schema, by its name."""
    forced: str | None = None
    """What the answer begins with that has to be a call."""
    in_channels: bool = False

    def choices(self) -> list[Choice]:
        return [ChatChoice(self, index) for index in range(self.n)]

    def parser(self) -> ToolCallParser | ChannelParser | None:
        """What separates the kinds of text in an answer; None: all of it is content."""
        if self.in_channels:
            return ChannelParser(self.tools)
        if self.tool_format is None:
            return None
        parser = ToolCallParser(self.tool_format, self.tools)
        if self.forced:
            parser.push(self.forced)
        return parser


class ChatChoice(Choice):
    """One answer as it comes: its content, calls and reasoning, and how likely each token was."""

    def __init__(self, parsed: ParsedChat, index: int) -> None:
        self._parsed, self._index, self._parser = parsed, index, parsed.parser()
        self._only_one = parsed.body.parallel_tool_calls is False or parsed.forced is not None
        self._content = self._reasoning = ""
        self._calls: list[Call] = []
        self._logprobs: list[TokenLogprob] = []
        self._reason: str | None = None

    def push(self, delta: Delta) -> DeltaMessage:
        """Takes a delta in; its kinds of text, separated."""
        message = DeltaMessage(delta.text) if self._parser is None else self._parser.push(delta.text)
        if delta.finish_reason is not None and self._parser is not None:
            message += self._parser.close()
        if self._only_one:
            message = replace(message, calls=message.calls[: 1 - len(self._calls)])
        self._content += message.content
        self._reasoning += message.reasoning
        self._calls += message.calls
        self._logprobs += delta.logprobs
        if delta.finish_reason is not None:
            reason = finish_reason(delta.finish_reason)
            self._reason = "tool_calls" if self._calls and reason == "stop" else reason
        return message

    def opening(self) -> Iterator[dict[str, Any]]:
        yield self._chunk({"role": "assistant", "content": "", "refusal": None})

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        n_calls = len(self._calls)
        message = self.push(delta)
        logprobs = _format_logprobs(self._parsed, delta.logprobs) if delta.logprobs else None
        if message.reasoning:
            yield self._chunk({"reasoning_content": message.reasoning})
        if message.content or logprobs:
            yield self._chunk({"content": message.content}, logprobs)
        for at, call in enumerate(message.calls):
            yield self._chunk({"tool_calls": [call.format(n_calls + at)]})
        if self._reason is not None:
            yield self._chunk({}, reason=self._reason)

    def _chunk(self, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def format(self) -> dict[str, Any]:
        content = self._content or (None if self._calls else "")
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if self._calls:
            message["tool_calls"] = [call.format() for call in self._calls]
        if self._reasoning:
            message["reasoning_content"] = self._reasoning
        return {
            "index": self._index,
            "message": message,
            "logprobs": _format_logprobs(self._parsed, self._logprobs),
            "finish_reason": self._reason,
        }


def make_router(service: Service) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(body: ChatRequest, http: Request) -> Response:
        """The next message of a conversation."""
        parsed = await service.prepare(parse, service, body)
        parsed.identify(http.state.record)
        return await respond(service, http, parsed)

    return router


def parse(service: Service, body: ChatRequest) -> ParsedChat:
    """From the body to the tasks.

    Raises:
        APIError: Something in it can't be done.
    """
    served_model = service.served_model(body.model)
    if body.top_logprobs and not body.logprobs:
        raise APIError(400, "top_logprobs needs logprobs to be true.", "top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise APIError(400, "stream_options needs stream to be true.", "stream_options")
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    sampling = sampling_of(body, served_model, service.settings.sampling, logprobs)
    tools = [] if body.tool_choice == "none" else body.tools or []
    variables = variables_of(body, served_model)
    service.check_length(characters(body.messages, plain_tools(tools), variables), "messages")
    text = render(served_model, body.messages, tools, variables)
    parsed = ParsedChat(body, served_model, [], 0)
    json_schema = response_format_schema(body.response_format, served_model)
    if tools:
        parsed.tool_format = format_of(template_source(served_model, "tool_use"))
        parsed.tools = {tool.function.name: tool.function.parameters for tool in tools}
        json_schema = _force(parsed, tools, json_schema)
    elif isinstance(body.tool_choice, ToolChoice) or body.tool_choice == "required":
        raise APIError(400, "tool_choice asks for a tool, and there are no tools.", "tool_choice")
    prompt = encode(service, served_model, text + (parsed.forced or ""), "messages")
    parsed.in_channels = channels.SIGN in template_source(served_model)
    parsed.warnings = tuple(warnings_of(parsed, tools))
    for warning in parsed.warnings:
        log.warning("%s: %s", served_model.name, warning)
    shown = channels.MARKS if parsed.in_channels else parsed.tool_format.shown if parsed.tool_format is not None else ()
    limit = body.max_completion_tokens or body.max_tokens
    stops = stops_of(body.stop, service)
    task = GenerationTask(served_model.name, prompt, sampling, limit, stops, json_schema, shown, bool(body.ignore_eos))
    parsed.n = choices_of(body, service)
    parsed.tasks = tasks_of(task, parsed.n)
    return parsed


def warnings_of(parsed: ParsedChat, tools: Sequence[Tool]) -> Iterator[str]:
    """What a request asks for and the model can't have or do."""
    inference_model = parsed.served_model.inference_model
    has_system = any(message.role in ("system", "developer") and message.content for message in parsed.body.messages)
    if has_system and not inference_model.places_system_prompt:
        yield f"{inference_model.no_place}: it is left out."
    if tools and parsed.tool_format is None and not parsed.in_channels:
        yield UNKNOWN_NOTATION


def variables_of(body: ChatRequest, served_model: ServedModel) -> dict[str, Any]:
    """What else a chat template reads."""
    given = dict(body.chat_template_kwargs or {})
    taken = {"messages", "tools", "add_generation_prompt"} & given.keys()
    if taken:
        name = sorted(taken)[0]
        raise APIError(400, f"chat_template_kwargs has no place for {name}.", f"chat_template_kwargs.{name}")
    if body.reasoning_effort is not None:
        source = template_source(served_model)
        if "reasoning_effort" not in source and "enable_thinking" in source:  # on or off is all that it knows
            given.setdefault("enable_thinking", body.reasoning_effort != "none")
        else:
            given.setdefault("reasoning_effort", body.reasoning_effort)
    return given


def _force(parsed: ParsedChat, tools: Sequence[Tool], json_schema: str | None) -> str | None:
    """Sets up an answer that has to be a call; the schema of the answer."""
    choice, tool_format = parsed.body.tool_choice, parsed.tool_format
    if choice in (None, "auto"):
        return json_schema
    wanted = [tool.function for tool in tools]
    if isinstance(choice, ToolChoice):
        wanted = [function for function in wanted if function.name == choice.function.name]
        if not wanted:
            raise APIError(400, f"There is no tool {quoted(choice.function.name)} to choose.", "tool_choice")
    if json_schema is not None:
        raise APIError(400, "tool_choice and response_format can't both say what the answer is.", "tool_choice")
    if tool_format is None or tool_format.forced is None:
        raise APIError(
            400, "How this model writes calls is not known well enough to ask for one; use auto.", "tool_choice"
        )
    parsed.forced = tool_format.forced
    parsed.tool_format = replace(tool_format, end=None)  # the grammar ends the call, not a mark
    schema = forced_schema(tool_format, [function.model_dump(exclude_none=True) for function in wanted])
    return checked_schema(schema, parsed.served_model, "tools")


def _format_logprobs(parsed: ParsedChat, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """The log-probabilities, where they are asked for."""
    if not parsed.body.logprobs:
        return None
    tokenizer = parsed.served_model.inference_model.tokenizer

    def entry(token: int, logprob: float) -> dict[str, Any]:
        text, content = token_text(tokenizer, token), list(tokenizer.token_bytes(token))
        return {"token": text, "logprob": max(logprob, LEAST_LOGPROB), "bytes": content}

    content = [
        {**entry(each.token, each.logprob), "top_logprobs": [entry(token, logprob) for token, logprob in each.top]}
        for each in logprobs
    ]
    return {"content": content, "refusal": None}

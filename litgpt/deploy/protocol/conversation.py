"""A conversation's next message: from a chat request to its tasks, and from what comes out to the message.

All routes that speak of messages go through here, whatever their protocol.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from litgpt.deploy.backends.task import Delta, GenerationTask, TokenLogprob
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
from litgpt.deploy.protocol.responses import Choice, ParsedRequest, finish_reason
from litgpt.deploy.protocol.schemas import ChatRequest, Tool, ToolChoice
from litgpt.deploy.protocol.thinking import ContentParser, Parser, Tags, ThoughtParser, tags_of
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
    """A conversation to be continued, parsed."""

    body: ChatRequest
    tool_format: ToolFormat | None = None
    """How calls are written, where there are tools."""
    tools: Mapping[str, Any] = field(default_factory=dict)
    """What each takes, as a JSON schema, by its name."""
    forced: str | None = None
    """What the answer begins with that has to be a call."""
    in_channels: bool = False
    thought_tags: Tags | None = None
    """What a thought stands between; None: the model writes none, or may not."""
    opens_thought: bool = False
    """Whether the prompt ends with the tag that opens one."""

    def parser(self) -> Parser:
        """What separates the kinds of text in an answer."""
        if self.in_channels:
            return ChannelParser(self.tools)
        rest: Parser = ContentParser()
        if self.tool_format is not None:
            rest = ToolCallParser(self.tool_format, self.tools)
            if self.forced:
                rest.push(self.forced)
        return rest if self.thought_tags is None else ThoughtParser(self.thought_tags, self.opens_thought, rest)


P = TypeVar("P", bound=ParsedChat)


class MessageChoice(Choice):
    """One answer as it comes: what is said, thought and called, and how likely each token was."""

    def __init__(self, parsed: ParsedChat, index: int = 0) -> None:
        self._parsed, self._index, self._parser = parsed, index, parsed.parser()
        self._only_one = parsed.body.parallel_tool_calls is False or parsed.forced is not None
        self._logprobs: list[TokenLogprob] = []
        self.message = DeltaMessage()
        """All of it so far."""
        self.last: Delta | None = None
        """The delta that it ended with."""

    @property
    def reason(self) -> str | None:
        """OpenAI's word for why it ended; None: it hasn't."""
        if self.last is None:
            return None
        reason = finish_reason(self.last.finish_reason)
        return "tool_calls" if self.message.calls and reason == "stop" else reason

    def push(self, delta: Delta) -> DeltaMessage:
        """Takes a delta in; its kinds of text, separated."""
        message = self._parser.push(delta.text)
        if delta.finish_reason is not None:
            message += self._parser.close()
            self.last = delta
        left = DeltaMessage()
        for part in message.parts:
            if not (isinstance(part, Call) and self._only_one and self.message.calls):
                self.message.put(part)
                left.put(part)
        self._logprobs += delta.logprobs
        return left


def parse(service: Service, body: ChatRequest, kind: type[P]) -> P:
    """From the body to the tasks.

    Args:
        service: What serves it.
        body: The request, as OpenAI's chat API has it.
        kind: What becomes of it.

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
    parsed = kind(body, served_model, [], 0)
    json_schema = response_format_schema(body.response_format, served_model)
    if tools:
        parsed.tool_format = format_of(template_source(served_model, "tool_use"))
        parsed.tools = {tool.function.name: tool.function.parameters for tool in tools}
        json_schema = _force(parsed, tools, json_schema)
    elif isinstance(body.tool_choice, ToolChoice) or body.tool_choice == "required":
        raise APIError(400, "tool_choice asks for a tool, and there are no tools.", "tool_choice")
    prompt = encode(service, served_model, text + (parsed.forced or ""), "messages")
    parsed.in_channels = channels.SIGN in template_source(served_model)
    if json_schema is None:  # else its grammar leaves no place for a thought
        parsed.thought_tags = tags_of(template_source(served_model, "tool_use" if tools else "default"))
        parsed.opens_thought = parsed.thought_tags is not None and text.rstrip().endswith(parsed.thought_tags[0])
    parsed.warnings = tuple(warnings_of(parsed, tools))
    for warning in parsed.warnings:
        log.warning("%s: %s", served_model.name, warning)
    limit = body.max_completion_tokens or body.max_tokens
    stops = stops_of(body.stop, service)
    shown, ignore_end = shown_by(parsed), bool(body.ignore_eos)
    task = GenerationTask(served_model.name, prompt, sampling, limit, stops, json_schema, shown, ignore_end)
    parsed.n = choices_of(body, service)
    parsed.tasks = tasks_of(task, parsed.n)
    return parsed


def shown_by(parsed: ParsedChat) -> tuple[str, ...]:
    """The special tokens that stay in the text, because its parser reads them."""
    if parsed.in_channels:
        return channels.MARKS
    calls = () if parsed.tool_format is None else parsed.tool_format.shown
    return (*calls, *(parsed.thought_tags or ()))


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
        raise APIError(400, "tool_choice and a JSON schema can't both say what the answer is.", "tool_choice")
    if tool_format is None or tool_format.forced is None:
        raise APIError(
            400, "How this model writes calls is not known well enough to ask for one; use auto.", "tool_choice"
        )
    parsed.forced = tool_format.forced
    parsed.tool_format = replace(tool_format, end=None)  # the grammar ends the call, not a mark
    schema = forced_schema(tool_format, [function.model_dump(exclude_none=True) for function in wanted])
    return checked_schema(schema, parsed.served_model, "tools")

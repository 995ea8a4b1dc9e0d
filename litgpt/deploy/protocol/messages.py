"""What Anthropic's requests may hold (https://docs.claude.com/en/api/messages), and the chat requests they come to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from litgpt.deploy.protocol.errors import APIError
from litgpt.deploy.protocol.schemas import (
    FUNCTION_NAME,
    MANY_PARTS,
    MANY_STOPS,
    MESSAGES,
    NAME,
    OBJECT,
    READ,
    TOOLS,
    Body,
    ChatMessage,
    ChatRequest,
    Function,
    FunctionCall,
    FunctionName,
    JSONSchema,
    NamedSchema,
    SamplingFields,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
    by_type,
)
from litgpt.deploy.protocol.thinking import tags_of

SIGNATURE = 100_000
"""Characters of a thought's signature, which is taken back and means nothing here."""


class Cached(Body):
    """What may say how long it is to be cached; here, beginnings that prompts share always are."""

    cache_control: OBJECT | None = None


class TextBlock(Cached):
    """A piece of text."""

    type: Literal["text"]
    text: str
    citations: Annotated[list[Any], Field(max_length=0)] | None = None


class ThinkingBlock(Body):
    """What the model thought in an earlier answer."""

    type: Literal["thinking"]
    thinking: str
    signature: Annotated[str, Field(max_length=SIGNATURE)] | None = None


class ToolUseBlock(Cached):
    """A call that an earlier answer made."""

    type: Literal["tool_use"]
    id: NAME
    name: NAME
    input: OBJECT
    caller: OBJECT | None = None


class ToolResultBlock(Cached):
    """What a tool answered."""

    type: Literal["tool_result"]
    tool_use_id: NAME
    content: str | MANY_PARTS[Annotated[TextBlock, READ]] | None = None
    is_error: bool | None = None


Block = Annotated[
    Annotated[TextBlock, Tag("Text")]
    | Annotated[ThinkingBlock, Tag("Thinking")]
    | Annotated[ToolUseBlock, Tag("Tool_Use")]
    | Annotated[ToolResultBlock, Tag("Tool_Result")],
    by_type("text, thinking, tool_use and tool_result"),
    READ,
]
PROMPT = str | MANY_PARTS[Annotated[TextBlock, READ]]


class Message(Body):
    """A message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | MANY_PARTS[Block]


class CustomTool(Cached):
    """A function that the model may call, and the client runs."""

    type: Literal["custom"] | None = None
    name: FUNCTION_NAME
    description: str | None = None
    input_schema: OBJECT
    strict: bool | None = None
    eager_input_streaming: bool | None = None


class Choosing(Body):
    """Whether the model calls a tool, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: NAME | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Body):
    """Whether the model thinks before it answers."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[int, Field(ge=1)] | None = None
    display: Literal["summarized"] | None = None


class OutputFormat(Body):
    """The JSON schema that the answer keeps to."""

    type: Literal["json_schema"]
    schema_: Annotated[OBJECT, Field(alias="schema")]


class OutputConfig(Body):
    """How much goes into an answer, and its form."""

    effort: Literal["low", "medium", "high", "xhigh"] | None = None
    format: OutputFormat | None = None


class CountRequest(Cached):
    """The body of `/v1/messages/count_tokens`."""

    model: NAME
    messages: Annotated[list[Message], Field(min_length=1, max_length=MESSAGES, fail_fast=True)]
    system: PROMPT | None = None
    tools: Annotated[list[CustomTool], Field(max_length=TOOLS, fail_fast=True)] | None = None
    tool_choice: Choosing | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest, SamplingFields):
    """The body of `/v1/messages`."""

    max_tokens: Annotated[int, Field(ge=1)]
    stop_sequences: MANY_STOPS | None = None
    stream: bool | None = None
    metadata: OBJECT | None = None
    service_tier: NAME | None = None


def chat_request(body: CountRequest, template: str) -> ChatRequest:
    """The same request, as OpenAI's chat API has it.

    Args:
        body: The request.
        template: The model's chat template.

    Raises:
        APIError: It can't be had here.
    """
    fields: dict[str, Any] = {}
    if isinstance(body, MessagesRequest):
        fields = {"max_tokens": body.max_tokens, "stop": body.stop_sequences, "stream": body.stream}
        fields |= body.sampling_fields()
    if body.tools is not None:
        fields["tools"] = [_tool(tool) for tool in body.tools]
    if body.tool_choice is not None:
        fields["tool_choice"] = _tool_choice(body.tool_choice)
        fields["parallel_tool_calls"] = body.tool_choice.disable_parallel_tool_use is not True
    if body.output_config is not None:
        fields["reasoning_effort"] = body.output_config.effort
        wanted = body.output_config.format
        if wanted is not None:
            named = NamedSchema.model_validate({"name": "answer", "schema": wanted.schema_})
            fields["response_format"] = JSONSchema(type="json_schema", json_schema=named)
    if body.thinking is not None and body.thinking.type != "adaptive" and "enable_thinking" in template:
        fields["chat_template_kwargs"] = {"enable_thinking": body.thinking.type == "enabled"}
    return ChatRequest(model=body.model, messages=_conversation(body), **fields)


def thinking_warnings(thinking: Thinking | None, template: str, in_channels: bool) -> Iterator[str]:
    """What a request asks for of the model's thoughts and can't have."""
    switch, thinks = "enable_thinking" in template, in_channels or tags_of(template) is not None
    if thinking is None or thinking.type == "adaptive":
        return
    if thinking.type == "disabled" and thinks and not switch:
        yield "This model's chat template can't turn its thinking off."
    if thinking.type == "enabled" and not thinks:
        yield "This model's chat template has no thinking to turn on."
    elif thinking.budget_tokens is not None:
        yield "thinking.budget_tokens doesn't bound what this model thinks; max_tokens bounds all of an answer."


def _conversation(body: CountRequest) -> list[ChatMessage]:
    """All messages, the system prompt first, each tool's result one of its own.

    Raises:
        APIError: There are too many, or the model would have to go on with a message.
    """
    found = [] if body.system is None else [ChatMessage(role="system", content=_text(body.system))]
    for at, message in enumerate(body.messages):
        if isinstance(message.content, str):
            found.append(ChatMessage(role=message.role, content=message.content))
        elif message.role == "assistant":
            found.append(_answer(message.content, f"messages[{at}]"))
        else:
            found += _question(message.role, message.content, f"messages[{at}]")
    if body.messages[-1].role == "assistant":
        raise APIError(400, "The last message is the assistant's, and going on with it is not offered here.")
    if len(found) > MESSAGES:
        raise APIError(400, f"The messages hold {len(found)} texts and results of tools; at most {MESSAGES} are taken.")
    return found


def _question(role: Literal["user", "system"], blocks: list[Any], where: str) -> Iterator[ChatMessage]:
    texts: list[TextPart] = []
    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(TextPart(type="text", text=block.text))
            continue
        if role != "user" or not isinstance(block, ToolResultBlock):
            raise APIError(400, f"{where} is the {role}'s and has a block of the type {block.type}, which it can't.")
        if texts:
            yield ChatMessage(role=role, content=texts)
            texts = []
        yield ChatMessage(role="tool", tool_call_id=block.tool_use_id, content=_result(block))
    if texts or not blocks:
        yield ChatMessage(role=role, content=texts)


def _answer(blocks: list[Any], where: str) -> ChatMessage:
    texts, thoughts, calls = list[TextPart](), list[str](), list[ToolCall]()
    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(TextPart(type="text", text=block.text))
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        elif isinstance(block, ToolUseBlock):
            called = FunctionCall(name=block.name, arguments=json.dumps(block.input, ensure_ascii=False))
            calls.append(ToolCall(id=block.id, function=called))
        else:
            raise APIError(400, f"{where} is the assistant's and has a block of the type {block.type}, which it can't.")
    reasoning = "".join(thoughts) or None
    return ChatMessage(role="assistant", content=texts or None, tool_calls=calls or None, reasoning_content=reasoning)


def _text(given: str | list[TextBlock] | None) -> str | list[TextPart]:
    if isinstance(given, list):
        return [TextPart(type="text", text=block.text) for block in given]
    return given or ""


def _result(block: ToolResultBlock) -> str | list[TextPart]:
    """A tool's answer; that it failed stands before it, for templates have no other place for that."""
    content = _text(block.content)
    if not block.is_error:
        return content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return text if text.lower().startswith("error") else f"Error: {text}"


def _tool(tool: CustomTool) -> Tool:
    function = Function(name=tool.name, description=tool.description, parameters=tool.input_schema)
    return Tool(type="function", function=function)


def _tool_choice(given: Choosing) -> str | ToolChoice:
    if (given.type == "tool") != (given.name is not None):
        raise APIError(400, 'tool_choice names a tool where its type is "tool", and there alone.')
    if given.name is not None:
        return ToolChoice(type="function", function=FunctionName(name=given.name))
    return {"any": "required"}.get(given.type, given.type)

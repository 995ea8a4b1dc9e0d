"""What requests to OpenAI's responses API may hold (https://platform.openai.com/docs/api-reference/responses), and the
chat requests they come to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from litgpt.deploy.protocol.errors import APIError
from litgpt.deploy.protocol.schemas import (
    FUNCTION_NAME,
    MANY_PARTS,
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
    IgnoredFields,
    JSONObject,
    JSONSchema,
    NamedSchema,
    PlainText,
    SamplingFields,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
    by_type,
)

STATUS = Literal["in_progress", "completed", "incomplete"]


class ItemText(Body):
    """A piece of a message's text."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    logprobs: Annotated[list[Any], Field(max_length=0)] | None = None


class MessageItem(Body):
    """A message; an answer's own fields are taken back as they were given."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | MANY_PARTS[Annotated[ItemText, READ]]
    id: NAME | None = None
    status: STATUS | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class CallItem(Body):
    """A call that an earlier answer made."""

    type: Literal["function_call"]
    call_id: NAME
    name: NAME
    arguments: str
    id: NAME | None = None
    status: STATUS | None = None


class CallOutputItem(Body):
    """What a function returned."""

    type: Literal["function_call_output"]
    call_id: NAME
    output: str | MANY_PARTS[Annotated[ItemText, READ]]
    id: NAME | None = None
    status: STATUS | None = None


class ThoughtText(Body):
    """A piece of what the model thought."""

    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(Body):
    """What the model thought in an earlier answer; where it isn't given itself, its summary stands for it."""

    type: Literal["reasoning"]
    summary: MANY_PARTS[ThoughtText] | None = None
    content: MANY_PARTS[ThoughtText] | None = None
    encrypted_content: None = None
    id: NAME | None = None
    status: STATUS | None = None


Item = Annotated[
    Annotated[MessageItem, Tag("Message")]
    | Annotated[CallItem, Tag("Function_Call")]
    | Annotated[CallOutputItem, Tag("Function_Call_Output")]
    | Annotated[ReasoningItem, Tag("Reasoning")],
    by_type("message, function_call, function_call_output and reasoning", default="message"),
    READ,
]


class FunctionTool(Body):
    """A function that the model may call, and the client runs."""

    type: Literal["function"]
    name: FUNCTION_NAME
    description: str | None = None
    parameters: OBJECT | None = None
    strict: bool | None = None


class FunctionChoice(Body):
    """The one function to call."""

    type: Literal["function"]
    name: NAME


class SchemaFormat(Body):
    """JSON that keeps to a schema."""

    type: Literal["json_schema"]
    name: NAME
    description: str | None = None
    schema_: Annotated[OBJECT, Field(alias="schema")]
    strict: bool | None = None


class TextConfig(Body):
    """The form of the answer's text."""

    format: Annotated[PlainText | JSONObject | SchemaFormat, Field(discriminator="type")] | None = None


class Reasoning(Body):
    """How much the model thinks before it answers."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto"] | None = None


class InputTokensRequest(Body):
    """The body of `/v1/responses/input_tokens`."""

    model: NAME
    input: str | Annotated[list[Item], Field(max_length=MESSAGES, fail_fast=True)]
    instructions: str | None = None
    previous_response_id: NAME | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["disabled"] | None = None


class EventOptions(Body):
    """What a stream has besides its events."""

    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(InputTokensRequest, SamplingFields, IgnoredFields):
    """The body of `/v1/responses`."""

    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    stream: bool | None = None
    stream_options: EventOptions | None = None
    include: MANY_PARTS[Literal["reasoning.encrypted_content"]] | None = None
    """Asks for thoughts in a form that can be given back; here they are given as they are."""
    background: Literal[False] | None = None


def chat_request(body: InputTokensRequest, before: Sequence[ChatMessage]) -> ChatRequest:
    """The same request, as OpenAI's chat API has it.

    Args:
        body: The request.
        before: The conversation that it goes on with.

    Raises:
        APIError: It can't be had here.
    """
    fields: dict[str, Any] = {}
    if isinstance(body, ResponsesRequest):
        fields = {"max_completion_tokens": body.max_output_tokens, "stream": body.stream, **body.sampling_fields()}
    if body.tools is not None:
        fields["tools"] = [_tool(tool) for tool in body.tools]
    if isinstance(body.tool_choice, FunctionChoice):
        fields["tool_choice"] = ToolChoice(type="function", function=FunctionName(name=body.tool_choice.name))
    else:
        fields["tool_choice"] = body.tool_choice
    wanted = None if body.text is None else body.text.format
    if isinstance(wanted, SchemaFormat):
        named = NamedSchema.model_validate({"name": wanted.name, "schema": wanted.schema_})
        fields["response_format"] = JSONSchema(type="json_schema", json_schema=named)
    else:
        fields["response_format"] = wanted
    effort = None if body.reasoning is None else body.reasoning.effort
    system = [] if body.instructions is None else [ChatMessage(role="system", content=body.instructions)]
    messages = [*system, *before, *messages_of(body.input)]
    if not messages:
        raise APIError(400, "The conversation has no message; give a text or at least one item.", "input")
    if len(messages) > MESSAGES:
        raise APIError(400, f"The conversation has {len(messages)} messages; at most {MESSAGES} are taken.", "input")
    return ChatRequest(
        model=body.model,
        messages=messages,
        parallel_tool_calls=body.parallel_tool_calls,
        reasoning_effort=effort,
        **fields,
    )


def messages_of(given: str | Iterable[Any]) -> list[ChatMessage]:
    """The messages that a text or items come to; what one answer was made of becomes one message again."""
    if isinstance(given, str):
        return [ChatMessage(role="user", content=given)]
    found: list[ChatMessage] = []
    last: Any = None
    for item in given:
        if isinstance(item, CallOutputItem):
            found.append(ChatMessage(role="tool", tool_call_id=item.call_id, content=_text(item.output)))
        elif isinstance(item, MessageItem) and item.role != "assistant":
            found.append(ChatMessage(role=item.role, content=_text(item.content)))
        else:
            if not found or found[-1].role != "assistant" or _starts_anew(item, last):
                found.append(ChatMessage(role="assistant"))
            _add(found[-1], item)
        last = item
    return found


def _starts_anew(item: Any, last: Any) -> bool:
    """Whether a part of an answer is of another answer than the one before it."""
    if isinstance(item, ReasoningItem):
        return not isinstance(last, ReasoningItem)
    return isinstance(item, MessageItem) and isinstance(last, MessageItem)


def _add(answer: ChatMessage, item: Any) -> None:
    if isinstance(item, CallItem):
        called = FunctionCall(name=item.name, arguments=item.arguments)
        answer.tool_calls = [*(answer.tool_calls or ()), ToolCall(id=item.call_id, function=called)]
    elif isinstance(item, ReasoningItem):
        thought = "".join(part.text for part in item.content or item.summary or ())
        answer.reasoning_content = (answer.reasoning_content or "") + thought or None
    else:
        said = "".join(part.text for part in _parts(item.content))
        answer.content = "".join(part.text for part in _parts(answer.content)) + said


def _parts(content: str | list[Any] | None) -> list[Any]:
    return content if isinstance(content, list) else [TextPart(type="text", text=content or "")]


def _text(given: str | list[ItemText]) -> str | list[TextPart]:
    return given if isinstance(given, str) else [TextPart(type="text", text=part.text) for part in given]


def _tool(tool: FunctionTool) -> Tool:
    function = Function(name=tool.name, description=tool.description, parameters=tool.parameters)
    return Tool(type="function", function=function)

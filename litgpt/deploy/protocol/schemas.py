"""What the bodies of OpenAI's requests may hold (https://platform.openai.com/docs/api-reference).

Every field that is here works. Fields that change nothing about an answer are taken and left alone; all others are
refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

NUMBER = Annotated[float, Field(allow_inf_nan=False)]
BIASES = 1024
"""Entries that `logit_bias` may have."""
TOOLS = 128


class Body(BaseModel):
    """A JSON object with these fields and no others, each of its own kind."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """A field that isn't known and is null asks for nothing; clients fill in those that they know."""
        if not isinstance(given, dict):
            return given
        known = {field.alias or name for name, field in cls.model_fields.items()}
        return {name: value for name, value in given.items() if value is not None or name in known}


class IgnoredFields(Body):
    """Fields that say something about the request and nothing about the answer: taken and left alone."""

    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None


class StreamOptions(Body):
    """What a stream has besides the text."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class SamplingFields(IgnoredFields):
    """What chat and completions share."""

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: NUMBER | None = None
    top_p: NUMBER | None = None
    top_k: int | None = None
    min_p: NUMBER | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    presence_penalty: Annotated[NUMBER, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[NUMBER, Field(ge=-2, le=2)] | None = None
    repetition_penalty: NUMBER | None = None
    logit_bias: dict[str, Annotated[NUMBER, Field(ge=-100, le=100)]] | None = None
    ignore_eos: bool | None = None

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, given: dict[str, float] | None) -> dict[str, float] | None:
        if given is not None and not all(key.isascii() and key.isdigit() and len(key) < 10 for key in given):
            raise ValueError("its keys are token ids")
        if given is not None and len(given) > BIASES:
            raise ValueError(f"it has more than {BIASES} entries")
        return given


class TextPart(Body):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class FunctionCall(Body):
    """What a tool is called with."""

    name: str
    arguments: str


class ToolCall(Body):
    """A call that an assistant's message makes."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class ChatMessage(Body):
    """A message of a conversation; an answer's own fields are taken back as they were given."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    audio: None = None
    function_call: None = None


class Function(Body):
    """What a tool is for and what it takes."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """A function by name."""

    name: str


class ToolChoice(Body):
    """The one function to call."""

    type: Literal["function"]
    function: FunctionName


class PlainText(Body):
    """Any text."""

    type: Literal["text"]


class JSONObject(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Body):
    """A JSON schema."""

    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class JSONSchema(Body):
    """JSON that keeps to a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class ChatRequest(SamplingFields):
    """The body of `/v1/chat/completions`."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Annotated[PlainText | JSONObject | JSONSchema, Field(discriminator="type")] | None = None
    tools: Annotated[list[Tool], Field(max_length=TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    modalities: list[Literal["text"]] | None = None


class CompletionRequest(SamplingFields):
    """The body of `/v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    best_of: int | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Annotated[PlainText | JSONObject | JSONSchema, Field(discriminator="type")] | None = None
    suffix: Literal[""] | None = None


class EmbeddingRequest(IgnoredFields):
    """The body of `/v1/embeddings`."""

    model: str
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class TokenizeRequest(Body):
    """The body of `/tokenize`: a text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None
    tools: Annotated[list[Tool], Field(max_length=TOOLS)] | None = None
    add_special_tokens: bool | None = None
    """Of a text: whether it opens as the tokenizer's files say."""
    add_generation_prompt: bool | None = None
    """Of a conversation: whether it ends where the next answer begins."""


class DetokenizeRequest(Body):
    """The body of `/detokenize`."""

    model: str | None = None
    tokens: list[int]

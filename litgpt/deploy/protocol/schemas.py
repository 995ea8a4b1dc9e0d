"""What the bodies of OpenAI's requests may hold (https://platform.openai.com/docs/api-reference).

Every field that is here works. Fields that change nothing about an answer are taken and left alone; all others are
refused by name.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, field_validator, model_validator

NUMBER = Annotated[float, Field(allow_inf_nan=False)]
BIASES = 1024
"""Entries that `logit_bias` may have."""
TOOLS = 128
MESSAGES = 4096
PARTS = 1000
"""Of a message: pieces of text, or calls."""
TEXTS = 1024
TOKENS = 1_000_000
STOPS = 1024
STOP_CHARACTERS = 1000
"""Of a stop string; what may become one is looked for again after each token."""
VALUES = 10_000
"""In a value of any shape: numbers, texts, lists and objects."""
LEVELS = 64
"""Of lists and objects inside each other."""
T = TypeVar("T")


def _few(given: Any) -> Any:
    """Refuses a value of any shape with too much in it, after looking at so much."""
    level, count = [given], 1
    for _ in range(LEVELS):
        inside: list[Any] = []
        for value in level:
            parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            count += len(parts)
            if count > VALUES:
                raise ValueError(f"it has more than {VALUES} values")
            inside += parts
        if not inside:
            return given
        level = inside
    raise ValueError(f"it has more than {LEVELS} lists and objects inside each other")


NAME = Annotated[str, Field(max_length=1024)]
FUNCTION_NAME = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
STOP = Annotated[str, Field(max_length=STOP_CHARACTERS)]
BIAS = Annotated[NUMBER, Field(ge=-100, le=100)]
BIAS_BY_TOKEN = Annotated[dict[NAME, BIAS], Field(max_length=BIASES), BeforeValidator(_few)]
OBJECT = Annotated[dict[str, Any], Field(max_length=VALUES), BeforeValidator(_few)]
MANY_PARTS = Annotated[list[T], Field(max_length=PARTS, fail_fast=True)]
MANY_TEXTS = Annotated[list[T], Field(max_length=TEXTS, fail_fast=True)]
MANY_TOKENS = Annotated[list[int], Field(max_length=TOKENS, fail_fast=True)]
MANY_STOPS = Annotated[list[STOP], Field(max_length=STOPS, fail_fast=True)]
MANY_MESSAGES = Annotated[list["ChatMessage"], Field(min_length=1, max_length=MESSAGES, fail_fast=True)]
MANY_TOOLS = Annotated[list["Tool"], Field(max_length=TOOLS, fail_fast=True)]


class Body(BaseModel):
    """A JSON object with these fields and no others, each of its own kind."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """A field that isn't known and is null asks for nothing; clients fill in those that they know."""
        if not isinstance(given, dict):
            return given
        known = _names(cls)
        if given.keys() <= known:
            return given
        strange = (name for name, value in given.items() if value is not None and name not in known)
        first = next(strange, None)  # of a million that aren't known, one is enough to say so
        return {name: given[name] for name in given.keys() & known | ({first} if first is not None else set())}


@cache
def _names(body: type[Body]) -> frozenset[str]:
    """What a body's fields are called in JSON."""
    return frozenset(field.alias or name for name, field in body.model_fields.items())


class IgnoredFields(Body):
    """Fields that say something about the request and nothing about the answer: taken and left alone."""

    user: NAME | None = None
    metadata: OBJECT | None = None
    store: bool | None = None
    service_tier: NAME | None = None
    safety_identifier: NAME | None = None
    prompt_cache_key: NAME | None = None
    prompt_cache_retention: NAME | None = None
    prompt_cache_options: OBJECT | None = None


class StreamOptions(Body):
    """What a stream has besides the text."""

    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class SamplingFields(Body):
    """How tokens are drawn, in the words that all routes take."""

    temperature: NUMBER | None = None
    top_p: NUMBER | None = None
    top_k: int | None = None
    min_p: NUMBER | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    presence_penalty: Annotated[NUMBER, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[NUMBER, Field(ge=-2, le=2)] | None = None
    repetition_penalty: NUMBER | None = None
    logit_bias: BIAS_BY_TOKEN | None = None
    ignore_eos: bool | None = None

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, given: dict[str, float] | None) -> dict[str, float] | None:
        if given is not None and not all(key.isascii() and key.isdigit() and len(key) < 10 for key in given):
            raise ValueError("its keys are token ids")
        return given

    def sampling_fields(self) -> dict[str, Any]:
        """Those of them that were given."""
        return {name: getattr(self, name) for name in SamplingFields.model_fields if name in self.model_fields_set}


class CompletionFields(SamplingFields, IgnoredFields):
    """What chat and completions share."""

    model: NAME
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: STOP | MANY_STOPS | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


def _no_media(given: Any) -> Any:
    """Refuses what is no text, in words that say so."""
    if isinstance(given, dict) and isinstance(kind := given.get("type"), str) and MEDIA.search(kind):
        raise ValueError("pictures, files, audio and video are not read here; send text")
    return given


MEDIA = re.compile("image|audio|video|file|document|container_upload")
"""In the types of parts of messages that are no text."""
READ = BeforeValidator(_no_media)
"""Of a part of a message."""


class TextPart(Body):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class FunctionCall(Body):
    """What a tool is called with."""

    name: NAME
    arguments: str


class ToolCall(Body):
    """A call that an assistant's message makes."""

    id: NAME
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class ChatMessage(Body):
    """A message of a conversation; an answer's own fields are taken back as they were given."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | MANY_PARTS[Annotated[TextPart, READ]] | None = None
    name: NAME | None = None
    tool_calls: MANY_PARTS[ToolCall] | None = None
    tool_call_id: NAME | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    annotations: Annotated[MANY_PARTS[Any], BeforeValidator(_few)] | None = None
    audio: None = None
    function_call: None = None


class Function(Body):
    """What a tool is for and what it takes."""

    name: FUNCTION_NAME
    description: str | None = None
    parameters: OBJECT | None = None
    strict: bool | None = None


class Tool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    function: Function


class FunctionName(Body):
    """A function by name."""

    name: NAME


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

    name: NAME
    description: str | None = None
    schema_: Annotated[OBJECT, Field(alias="schema")]
    strict: bool | None = None


class JSONSchema(Body):
    """JSON that keeps to a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class ChatRequest(CompletionFields):
    """The body of `/v1/chat/completions`."""

    messages: MANY_MESSAGES
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Annotated[PlainText | JSONObject | JSONSchema, Field(discriminator="type")] | None = None
    tools: MANY_TOOLS | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    chat_template_kwargs: OBJECT | None = None
    modalities: MANY_PARTS[Literal["text"]] | None = None


class CompletionRequest(CompletionFields):
    """The body of `/v1/completions`."""

    prompt: str | MANY_TEXTS[str] | MANY_TOKENS | MANY_TEXTS[MANY_TOKENS]
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    best_of: int | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Annotated[PlainText | JSONObject | JSONSchema, Field(discriminator="type")] | None = None
    return_tokens_as_token_ids: bool | None = None
    """vLLM's: write the tokens of `logprobs` as `token_id:N`, which tells all apart."""
    suffix: Literal[""] | None = None


class EmbeddingRequest(IgnoredFields):
    """The body of `/v1/embeddings`."""

    model: NAME
    input: str | MANY_TEXTS[str] | MANY_TOKENS | MANY_TEXTS[MANY_TOKENS]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class TokenizeRequest(Body):
    """The body of `/tokenize`: a text, or a conversation."""

    model: NAME | None = None
    prompt: str | None = None
    messages: MANY_MESSAGES | None = None
    tools: MANY_TOOLS | None = None
    add_special_tokens: bool | None = None
    """Of a text: whether it opens as the tokenizer's files say."""
    add_generation_prompt: bool | None = None
    """Of a conversation: whether it ends where the next answer begins."""


class DetokenizeRequest(Body):
    """The body of `/detokenize`."""

    model: NAME | None = None
    tokens: MANY_TOKENS


def by_type(known: str, default: str | None = None) -> Discriminator:
    """Chooses among the tagged members of a union by the `type` that is given; a tag is the type as a title.

    Args:
        known: The types, in words, for the refusal of others.
        default: What stands for a type that is left out.
    """

    def tag(given: Any) -> str | None:
        kind = (given.get("type") or default) if isinstance(given, dict) else getattr(given, "type", None)
        return kind.title() if isinstance(kind, str) else None

    return Discriminator(tag, custom_error_type="unknown_type", custom_error_message=f"its type is none of {known}")

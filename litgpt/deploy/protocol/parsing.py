"""From a request's fields to the tasks it asks for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from litgpt.data.sft.formats import as_object
from litgpt.deploy.backends.task import GenerationTask, json_schema_grammar
from litgpt.deploy.protocol.errors import APIError
from litgpt.deploy.protocol.schemas import (
    ChatMessage,
    CompletionFields,
    JSONObject,
    JSONSchema,
    PlainText,
    SamplingFields,
    Tool,
)
from litgpt.deploy.served_models import ServedModel
from litgpt.deploy.service import Service
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError
from litgpt.prompts import ChatTemplate

MAX_SCHEMA_CHARACTERS = 120_000
"""Characters of a JSON schema; OpenAI takes about as many."""


def sampling_of(body: SamplingFields, served_model: ServedModel, base: Sampling, logprobs: int | None) -> Sampling:
    """The server's settings with this request's in their place.

    Raises:
        APIError: A value is out of its range.
    """
    names = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    given = {name: getattr(body, name) for name in names}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if "top_k" in body.model_fields_set:
        # -1 and 0 mean all tokens to other servers' clients.
        changes["top_k"] = None if body.top_k in (None, -1, 0) else body.top_k
    if body.seed is not None:
        changes["seed"] = body.seed % 2**64
    if body.logit_bias:
        biases = changes["logit_bias"] = {int(token): bias for token, bias in body.logit_bias.items()}
        rows = served_model.inference_model.model.transformer.wte.num_embeddings
        if max(biases) >= rows:
            raise APIError(400, f"logit_bias has a token id outside 0 ... {rows - 1}.", "logit_bias")
    try:
        return replace(base, logprobs=logprobs, **changes)
    except LitGPTError as error:
        name = str(error).partition(" ")[0]
        raise APIError(400, str(error), name if name in type(body).model_fields else None) from None


def stops_of(given: str | list[str] | None, service: Service) -> tuple[str, ...]:
    """The stop strings.

    Raises:
        APIError: Too many, or an empty one.
    """
    stops = [given] if isinstance(given, str) else given or []
    if len(stops) > service.limits.stops:
        raise APIError(400, f"There are {len(stops)} stop strings; at most {service.limits.stops} are taken.", "stop")
    if not all(stops):
        raise APIError(400, "A stop string is empty; leave it out or give at least one character.", "stop")
    return tuple(stops)


def choices_of(body: CompletionFields, service: Service) -> int:
    """How many answers are asked for.

    Raises:
        APIError: Too many.
    """
    n = body.n or 1
    if n > service.limits.choices:
        raise APIError(400, f"n is {n}; at most {service.limits.choices} answers to one prompt are given.", "n")
    return n


def response_format_schema(wanted: PlainText | JSONObject | JSONSchema | None, served_model: ServedModel) -> str | None:
    """The JSON schema that a `response_format` asks for, as text; None: any text.

    Raises:
        APIError: It can't be enforced.
    """
    if isinstance(wanted, JSONObject):
        return '{"type":"object"}'
    if isinstance(wanted, JSONSchema):
        return checked_schema(wanted.json_schema.schema_, served_model, "response_format")
    return None


def checked_schema(schema: dict[str, Any], served_model: ServedModel, field: str) -> str:
    """A JSON schema as text.

    Raises:
        APIError: It can't be enforced; `field` is where it stands in the request.
    """
    json_schema = json.dumps(schema)
    if len(json_schema) > MAX_SCHEMA_CHARACTERS:
        message = f"The JSON schema has {len(json_schema)} characters; at most {MAX_SCHEMA_CHARACTERS} are taken."
        raise APIError(400, message, field)
    try:
        json_schema_grammar(json_schema, served_model.inference_model.tokenizer)
    except LitGPTError as error:
        raise APIError(400, str(error), field) from None
    return json_schema


def plain_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The conversation as chat templates read it.

    Raises:
        APIError: A message lacks what its role needs.
    """
    plain = []
    for at, message in enumerate(messages):
        content = message.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        if content is None and not message.tool_calls and message.role != "assistant":
            raise APIError(
                400, f"The message has no content, which a {message.role}'s needs.", f"messages[{at}].content"
            )
        entry: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
        entry["content"] = content or ""
        if message.tool_calls:
            entry["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.function.name, "arguments": _given(call.function.arguments)},
                }
                for call in message.tool_calls
            ]
        given = {"name": message.name, "tool_call_id": message.tool_call_id}
        given["reasoning_content"] = message.reasoning_content
        plain.append(entry | {key: value for key, value in given.items() if value is not None})
    return plain


def _given(arguments: str) -> Any:
    """A call's arguments as an object; an empty text and null are one without any."""
    return as_object("{}" if arguments.strip() in ("", "null") else arguments)


def plain_tools(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools as chat templates read them."""
    return [
        {"type": "function", "function": {**tool.function.model_dump(exclude_none=True, exclude={"strict"})}}
        for tool in tools
    ]


def render(
    served_model: ServedModel,
    messages: Sequence[ChatMessage],
    tools: Sequence[Tool],
    variables: dict[str, Any],
    opening: bool = True,
) -> str:
    """The text of a conversation.

    Args:
        served_model: Whose style writes it.
        messages: The conversation.
        tools: What the model may call.
        variables: What else the chat template reads.
        opening: Whether it ends where the next answer begins.

    Raises:
        APIError: The model's style cannot write it.
    """
    style = served_model.inference_model.style
    if isinstance(style, ChatTemplate):
        if unread := [name for name in variables if name not in style.template("tool_use").source]:
            message = f"This model's chat template doesn't read {unread[0][:50]}; leave it out."
            raise APIError(400, message, unread[0][:50])
    elif variables:
        name = next(iter(variables))
        raise APIError(400, f"The prompt style {type(style).__name__} takes no {name}.", name)
    if tools and "tools" not in template_source(served_model, "tool_use"):
        raise APIError(400, "This model's chat template has no place for tools; leave them out.", "tools")
    plain = [served_model.inference_model.protected(message) for message in plain_messages(messages)]
    try:
        if isinstance(style, ChatTemplate):
            return style.apply_messages(plain, opening, tools=plain_tools(tools) or None, **variables)
        return style.apply_messages(plain, opening)
    except LitGPTError as error:
        raise APIError(422, unplaced(served_model, error)[:500], "messages", "template_refused") from None


def unplaced(served_model: ServedModel, error: LitGPTError) -> str:
    """What is wrong, without where the server keeps its files."""
    return str(error).replace(f" in {served_model.inference_model.tokenizer.checkpoint_dir}", "")


def template_source(served_model: ServedModel, name: str = "default") -> str:
    """The source of the model's chat template called `name`; empty where its prompt style is another."""
    style = served_model.inference_model.style
    return style.template(name).source if isinstance(style, ChatTemplate) else ""


def characters(messages: Sequence[ChatMessage], *others: Any) -> int:
    """How many characters a conversation has, with what else a chat template writes."""
    found = sum(len(json.dumps(other)) for other in others if other)
    for message in messages:
        content = message.content or ""
        found += len(content) if isinstance(content, str) else sum(len(part.text) for part in content)
        found += len(message.name or "") + len(message.reasoning_content or "")
        found += sum(len(call.function.name) + len(call.function.arguments) for call in message.tool_calls or ())
    return found


def encode(service: Service, served_model: ServedModel, text: str, field: str, raw: bool = False) -> list[int]:
    """The tokens of a prompt.

    Args:
        service: Whose limits hold.
        served_model: Whose tokenizer.
        text: The prompt.
        field: Where it stands in the request.
        raw: A plain text; else one that the model's style has written.

    Raises:
        APIError: It is empty, too long, or no text.
    """
    service.check_length(len(text), field)
    inference_model = served_model.inference_model
    try:
        tokens = inference_model.tokenizer.encode_ids(text) if raw else inference_model.encode_text(text)
    except LitGPTError as error:
        raise APIError(400, unplaced(served_model, error), field) from None
    service.check_tokens(tokens, field, served_model)
    return tokens


def prompts_of(
    service: Service, served_model: ServedModel, given: str | list[Any], field: str = "prompt"
) -> list[list[int]]:
    """The tokens of each prompt: a text, several, or token ids.

    Raises:
        APIError: One of them can't be.
    """
    if isinstance(given, str):
        return [encode(service, served_model, given, field, raw=True)]
    if not given:
        raise APIError(400, "The list is empty; give at least one text.", field)
    if isinstance(given[0], int):
        given = [given]
    if len(given) > service.room:
        raise APIError(400, f"There are {len(given)} texts, and there is room for {service.room}; split them.", field)
    prompts = []
    for at, text in enumerate(given):
        if isinstance(text, str):
            prompts.append(encode(service, served_model, text, f"{field}[{at}]", raw=True))
            continue
        service.check_tokens(text, f"{field}[{at}]", served_model)
        prompts.append(text)
    return prompts


def tasks_of(task: GenerationTask, n: int) -> list[GenerationTask]:
    """The same task `n` times; seeds count up."""
    return [replace(task, sampling=task.sampling.of_sample(i)) for i in range(n)]

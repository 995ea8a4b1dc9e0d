"""How a row of a data file becomes a conversation: the formats in use are recognised by their keys.

| format | keys |
|---|---|
| messages | `messages`: a list of `role`, `content`, perhaps `tool_calls`, `reasoning_content` … |
| ShareGPT | `conversations`: a list of `from`, `value` (or of texts, the user's and the assistant's in turn) |
| Alpaca | `instruction`, `output`, perhaps `input`, `system`, `history` |
| prompt and completion | `prompt` (or `question`), `completion` (or `response`, `answer`): texts or lists of messages |
| pairs of answers | `chosen`, with `prompt` or `conversations`, or a whole conversation; `rejected` is ignored |
| text | `text` |
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from litgpt.errors import LitGPTError
from litgpt.prompts.base import Message, join_text, protected_message

Row = Mapping[str, Any]
"""One entry of a data file."""

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "assistant",
}
"""`from` in a ShareGPT conversation -> the role in a template."""
ROLE_ALIASES = {name: SHAREGPT_ROLES[name] for name in ("human", "gpt", "model")} | {"developer": "system"}
"""Other names of roles in messages -> the role in a template."""
PROMPT_KEYS = ("prompt", "question")
COMPLETION_KEYS = ("completion", "response", "answer")
TRAIN_KEYS = ("weight", "train")
"""Keys of a message that say whether it is a target; no template sees them."""
MEDIA_TYPES = ("image", "image_url", "input_image", "audio", "input_audio", "video")
"""Parts of a message's content that no model here takes."""
RESERVED_VARIABLES = ("messages", "add_generation_prompt", "self")
"""Variables that every template is given."""
KNOWN_FORMATS = "messages, conversations, instruction and output, prompt and completion, or text"


@dataclass(frozen=True, slots=True)
class Conversation:
    """One sample, before it is rendered."""

    messages: Sequence[Message] = ()
    """Each with `role` and `content`, and whatever else its template reads."""
    tools: Sequence[Any] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    """What else a chat template reads: `documents`, `enable_thinking` …"""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What else a prompt style reads of an instruction: `input` …"""
    masked: frozenset[int] = frozenset()
    """Indices of the assistant's messages that are no targets."""
    text: str | None = None
    """Plain text instead of messages."""

    def protected(self, protect: Callable[[str], str]) -> Conversation:
        """The conversation in which what looks like a special token is text, as `Tokenizer.protect` marks it; what the
        assistant says, and plain text, stay as they are."""
        return replace(
            self,
            messages=[protected_message(message, protect) for message in self.messages],
            fields={key: protect(value) if isinstance(value, str) else value for key, value in self.fields.items()},
        )


def parse_conversation(row: Row) -> Conversation:
    """The conversation in a row of any known format.

    Raises:
        LitGPTError: The keys are of no format, or a value is not of the type that belongs there.
    """
    given = {key: value for key, value in row.items() if value is not None}  # tables have cells for every format
    if "chosen" in given:
        return _of_messages(given, _preferred_messages(given))
    if "messages" in given:
        return _of_messages(given, _list(given, "messages"))
    if "conversations" in given:
        return _of_messages(given, _sharegpt_messages(given))
    if "instruction" in given:
        return parse_instruction(given)
    prompt = next((key for key in PROMPT_KEYS if key in given), None)
    completion = next((key for key in COMPLETION_KEYS if key in given), None)
    if prompt and completion:
        return _of_messages(given, [*_messages_at(given, prompt, "user"), *_messages_at(given, completion)])
    if "text" in given:
        return Conversation(text=_text(given, "text"))
    found = ", ".join(f"{key!r}{'' if key in given else ' (null)'}" for key in row) or "none"
    raise LitGPTError(
        f"no known format (its keys: {found}); a sample has {KNOWN_FORMATS}, and data.columns renames keys."
    )


def _sharegpt_messages(row: Row) -> list[Any]:
    """The turns under `conversations` as messages."""
    turns = _list(row, "conversations")
    if all(isinstance(turn, str) for turn in turns):
        return alternating_messages(turns)
    return [turn if isinstance(turn, Mapping) and "role" in turn else sharegpt_message(turn) for turn in turns]


def _preferred_messages(row: Row) -> list[Any]:
    """The prompt, and the better of two answers."""
    one = row["chosen"]
    answer = (
        [sharegpt_message(one) if "from" in one else one] if isinstance(one, Mapping) else _messages_at(row, "chosen")
    )
    if answer and isinstance(answer[0], Mapping) and answer[0].get("role") != "assistant":
        return answer  # it begins with the question
    if "conversations" in row:
        return [*_sharegpt_messages(row), *answer]
    prompt = next((key for key in PROMPT_KEYS if key in row), None)
    if prompt is None:
        raise LitGPTError("`chosen` answers `prompt` or `conversations`, of which there is none.")
    return [*_messages_at(row, prompt, "user"), *answer]


def parse_instruction(row: Row) -> Conversation:
    """An instruction with its answer; further keys are the prompt style's to read.

    Raises:
        LitGPTError: No text under `instruction` or `output`.
    """
    for key in ("instruction", "output"):
        if key not in row:
            raise LitGPTError(f"the sample has no key {key!r} (its keys: {', '.join(map(repr, row)) or 'none'}).")
    messages: list[Message] = []
    system = row.get("sys_prompt") or row.get("system")
    if system:
        messages.append({"role": "system", "content": str(system)})
    for turn in _list(row, "history") if row.get("history") else ():
        messages += alternating_messages(turn)
    messages.append({"role": "user", "content": _text(row, "instruction")})
    messages.append({"role": "assistant", "content": _text(row, "output")})
    used = ("instruction", "output", "sys_prompt", "system", "history", "prompt", "self")
    return Conversation(messages, fields={key: value for key, value in row.items() if key not in used})


def alternating_messages(texts: Sequence[Any]) -> list[Message]:
    """Texts of the user and the assistant in turn, as messages.

    Raises:
        LitGPTError: They are not texts.
    """
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise LitGPTError("a conversation without roles is a list of texts, the user's and the assistant's in turn.")
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def sharegpt_message(turn: Any) -> Message:
    """One turn of a ShareGPT conversation as a message.

    Raises:
        LitGPTError: It lacks `from` or `value`, or the role is unknown.
    """
    if not isinstance(turn, Mapping) or not isinstance(turn.get("from"), str) or not isinstance(turn.get("value"), str):
        raise LitGPTError(
            f"a turn of `conversations` has `from` and `value`, which are texts; this one is {turn!r:.80}."
        )
    role = SHAREGPT_ROLES.get(turn["from"].lower())
    if role is None:
        raise LitGPTError(f"{turn['from']!r} speaks in `conversations`; known are {', '.join(SHAREGPT_ROLES)}.")
    others = {key: value for key, value in turn.items() if key not in ("from", "value")}
    if turn["from"].lower() != "function_call":
        return {"role": role, "content": turn["value"], **others}
    try:
        calls = json.loads(turn["value"])
    except ValueError:
        raise LitGPTError(f"the value of a function_call is JSON, not {turn['value']!r:.80}.") from None
    return {"role": role, "content": "", "tool_calls": calls if isinstance(calls, list) else [calls], **others}


def _of_messages(row: Row, messages: Sequence[Any]) -> Conversation:
    """A conversation, with whatever else a row holds for its template."""
    if not messages:
        raise LitGPTError("the conversation is empty.")
    plain: list[Message] = []
    masked = set()
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise LitGPTError(f"a message has `role` and `content`; this one is {message!r:.80}.")
        _check_content(message)
        if not _is_target(message):
            masked.add(index)
        plain.append(_plain(message))
    if row.get("system") and plain[0]["role"] != "system":
        plain.insert(0, {"role": "system", "content": _text(row, "system")})
        masked = {index + 1 for index in masked}
    variables = row.get("chat_template_kwargs") or {}
    if not isinstance(variables, Mapping):
        raise LitGPTError("`chat_template_kwargs` is an object with what the chat template reads.")
    if taken := [name for name in RESERVED_VARIABLES if name in variables]:
        raise LitGPTError(f"`chat_template_kwargs` has {taken[0]!r}, which is not for the data to say.")
    documents = {"documents": row["documents"]} if row.get("documents") else {}
    return Conversation(plain, _tools(row), {**documents, **variables}, masked=frozenset(masked))


def _plain(message: Message) -> Message:
    """A message as templates expect it, and as the server gives it to them: standard roles, content as one text,
    arguments of calls as objects."""
    plain = {key: value for key, value in message.items() if key not in TRAIN_KEYS and value is not None}
    plain["role"] = ROLE_ALIASES.get(plain["role"], plain["role"])
    content, calls = plain.setdefault("content", ""), plain.get("tool_calls")
    if isinstance(content, list):
        plain["content"] = _one_text(content, plain["role"])
    if calls and not isinstance(calls, list):
        raise LitGPTError(f"`tool_calls` is a list, not {calls!r:.80}.")
    return {**plain, "tool_calls": [_with_arguments(_call(call), as_object) for call in calls]} if calls else plain


def _one_text(parts: list[Any], role: str) -> Any:
    """The parts of a content as one text, where they are texts; other ones are for the template.

    Raises:
        LitGPTError: One is an image, audio or video.
    """
    kinds = [part.get("type", "text") if isinstance(part, Mapping) else None for part in parts]
    if media := [kind for kind in kinds if kind in MEDIA_TYPES]:
        raise LitGPTError(f"the {role} message has a part of type {media[0]!r}; only text can be learned.")
    text = join_text(parts)
    return parts if text is None else text


def _call(call: Any) -> Mapping[str, Any]:
    """A function call under `function`, where all but a few have it.

    Raises:
        LitGPTError: It is none, or has no name.
    """
    call = call if not isinstance(call, Mapping) or "function" in call else {"type": "function", "function": call}
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise LitGPTError(f"a call has the `name` of a function, and perhaps `arguments`; this one is {call!r:.80}.")
    return call


def with_arguments_as_texts(messages: Sequence[Message]) -> Sequence[Message]:
    """Messages whose calls have their arguments as JSON texts."""
    return [
        {**message, "tool_calls": [_with_arguments(call, _text_of) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else message
        for message in messages
    ]


def _with_arguments(call: Mapping[str, Any], change: Callable[[Any], Any]) -> Mapping[str, Any]:
    function = call["function"]
    if "arguments" not in function:
        return call
    return {**call, "function": {**function, "arguments": change(function["arguments"])}}


def as_object(arguments: Any) -> Any:
    """A call's arguments as an object, which templates expect, where they are one as JSON text."""
    try:
        found = json.loads(arguments)
    except (TypeError, ValueError, RecursionError):
        return arguments
    return found if isinstance(found, dict) else arguments


def _text_of(arguments: Any) -> Any:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _check_content(message: Message) -> None:
    content = message.get("content")
    if content is None and (message.get("tool_calls") or message.get("reasoning_content") or message.get("thinking")):
        return
    if not isinstance(content, str | list):
        raise LitGPTError(f"the {message['role']} message has no text under `content`.")


def _is_target(message: Message) -> bool:
    """Whether neither `weight` is 0 nor `train` false."""
    value = next((message[key] for key in TRAIN_KEYS if message.get(key) is not None), 1)
    if value not in (0, 1):
        raise LitGPTError(f"a message's `weight` is 0 or 1 (or `train` true or false), not {value!r}.")
    return bool(value)


def _tools(row: Row) -> Sequence[Any] | None:
    tools = row.get("tools") or row.get("functions")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError:
            raise LitGPTError(f"`tools` is no JSON: {tools!r:.80}.") from None
    if not tools:
        return None
    if not isinstance(tools, list):
        raise LitGPTError(f"`tools` is {json_type(tools)}, not a list.")
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise LitGPTError(f"`tools` is a list of objects, not {tools!r:.80}.")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def _messages_at(row: Row, key: str, role: str = "assistant") -> list[Message]:
    """One side of a prompt–completion pair: a text, or messages."""
    if isinstance(row[key], str):
        return [{"role": role, "content": row[key]}]
    if not isinstance(row[key], list):
        raise LitGPTError(f"{key!r} is {json_type(row[key])}, neither text nor a list of messages.")
    return row[key]


def _list(row: Row, key: str) -> list[Any]:
    """A list under `key`, perhaps written as JSON (a cell of a CSV file)."""
    value = row[key]
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise LitGPTError(f"{key!r} is a text that is no JSON: {value!r:.80}.") from None
    if not isinstance(value, list):
        raise LitGPTError(f"{key!r} is {json_type(value)}, not a list.")
    return value


def _text(row: Row, key: str) -> str:
    if not isinstance(row[key], str):
        raise LitGPTError(f"{key!r} is {json_type(row[key])}, not text.")
    return row[key]


def json_type(value: Any) -> str:
    """What a value is called in JSON."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)

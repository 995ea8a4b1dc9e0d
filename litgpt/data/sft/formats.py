"""How a row of a data file becomes a conversation: the formats in use are recognised by their keys.

| format | keys |
|---|---|
| messages | `messages`: a list of `role`, `content`, perhaps `tool_calls`, `reasoning_content` … |
| ShareGPT | `conversations`: a list of `from`, `value` (or of texts, the user's and the assistant's in turn) |
| Alpaca | `instruction`, `output`, perhaps `input`, `system`, `history` |
| prompt and completion | `prompt` (`question`, `query`), `completion` (`response`, `answer`): texts or messages |
| pairs of answers | `chosen`, with `prompt` or `conversations`, or a whole conversation; `rejected` is ignored |
| text | `text` |

All but text may have `system` (`system_prompt` …), `tools`, `documents`, `chat_template_kwargs`; a question with one
answer also `input` (`context`, `passage`) and `history`. Keys and roles are told by their letters and digits alone:
`System Prompt` is `system_prompt`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from litgpt.errors import LitGPTError, closest, quoted
from litgpt.prompts.base import Message, join_text, protected_message
from litgpt.prompts.chat_template import REASONING, check_variables

Row = Mapping[str, Any]
"""One entry of a data file."""

ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "ipython": "ipython",
    "tool_results": "tool_results",
    "function_call": "assistant",
}
"""The name of a role in the data -> the role in a template."""
CALLING_ROLE = "functioncall"
"""A role whose text is the JSON of the functions that the assistant calls."""
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
CONVERSATION_KEYS = ("messages", "conversations", "conversation")
PROMPT_KEYS = ("prompt", "question", "query")
COMPLETION_KEYS = ("completion", "response", "answer")
SYSTEM_KEYS = ("system", "sys_prompt", "system_prompt", "system_message", "system_instruction")
CONTEXT_KEYS = ("input", "context", "passage")
TRAIN_KEYS = ("weight", "train")
"""Keys of a message that say whether it is a target; no template sees them."""
MEDIA_TYPES = ("image", "image_url", "input_image", "audio", "input_audio", "video")
"""Parts of a message's content that no model here takes."""
EMPTY: tuple[Any, ...] = (None, "", [], {})
"""What a cell of a table holds that is for rows of another format."""
RESERVED_FIELDS = ("prompt", "self", "sys_prompt")
"""Parameters of a prompt style's `apply` that are no key of a sample."""
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
    """What else a prompt style may read of an instruction, or of a prompt with its completion."""
    context: tuple[str, str] | None = None
    """What the last question is about (`input`): its key in the row, and the text."""
    masked: frozenset[int] = frozenset()
    """Indices of the assistant's messages that are no targets."""
    text: str | None = None
    """Plain text instead of messages."""
    unread: Sequence[str] = ()
    """Keys of the row that its format has no use for."""

    def protected(self, protect: Callable[[str], str]) -> Conversation:
        """The conversation in which what looks like a special token is text, as `Tokenizer.protect` marks it; what the
        assistant says, and plain text, stay as they are."""
        return replace(
            self,
            messages=[protected_message(message, protect) for message in self.messages],
            fields={key: protect(value) if isinstance(value, str) else value for key, value in self.fields.items()},
            context=self.context and (self.context[0], protect(self.context[1])),
        )


class RowKeys:
    """The keys of a row by what they mean, and those that nothing has read yet."""

    def __init__(self, row: Row) -> None:
        self.row = {key: value for key, value in row.items() if value is not None}  # tables have cells for every format
        self._read: set[str] = set()
        self._spelled: dict[str, list[str]] = {}
        for key in self.row:
            self._spelled.setdefault(folded(key), []).append(key)

    def filled(self, *names: str) -> bool:
        """Whether one of the names has a value that is not empty."""
        return any(self.row[key] not in EMPTY for key in self._keys(names))

    def present(self, *names: str) -> bool:
        """Whether the row has one of the names."""
        return bool(self._keys(names))

    def _keys(self, names: Sequence[str]) -> list[str]:
        return [key for name in names for key in self._spelled.get(folded(name), ())]

    def take(self, *names: str) -> str | None:
        """The key that is spelled like one of the names; it counts as read.

        Raises:
            LitGPTError: Two are, with different values.
        """
        found = self._keys(names)
        found = [key for key in found if self.row[key] not in EMPTY] or found[:1]
        if not found:
            return None
        for other in found[1:]:
            if self.row[other] != self.row[found[0]]:
                raise LitGPTError(
                    f"{quoted(found[0])} and {quoted(other)} mean the same and differ; give one of them another name "
                    "by data.columns, or leave it out."
                )
        self._read.update(found)
        return found[0]

    @property
    def unread(self) -> list[str]:
        """The keys that were not taken and hold something."""
        return [key for key, value in self.row.items() if key not in self._read and value not in EMPTY]

    @property
    def shown(self) -> str:
        return ", ".join(map(quoted, self.row)) or "none"


def folded(name: str) -> str:
    """A key or role by its letters and digits, in lower case."""
    return "".join(filter(str.isalnum, str(name).casefold()))


ROLES_BY_LETTERS = {folded(name): role for name, role in ROLES.items()}


def parse_conversation(row: Row) -> Conversation:
    """The conversation in a row of any known format.

    Raises:
        LitGPTError: The keys are of no format, or a value is not of the type that belongs there.
    """
    keys = RowKeys(row)
    for has in (keys.filled, keys.present):  # what is empty is a cell of another format, if one is filled
        if has("chosen"):
            return conversation_of(keys, _preferred_messages(keys))
        if has(*CONVERSATION_KEYS):
            return conversation_of(keys, messages_of(keys))
        if has("instruction"):
            outputs = ("output", *COMPLETION_KEYS)
            there = (key for is_there in (keys.filled, keys.present) for key in outputs if is_there(key))
            return _pair(keys, ("instruction",), (next(there, "output"),))
        completions = COMPLETION_KEYS if has(*COMPLETION_KEYS) else ("output",)
        prompts = PROMPT_KEYS if has(*PROMPT_KEYS) else ("input",)
        if has(*prompts) and has(*completions):
            return _pair(keys, prompts, completions)
        if has("text"):
            text = _text(keys.row, keys.take("text"))
            return Conversation(text=text, unread=keys.unread)
    found = ", ".join(f"{quoted(key)}{'' if key in keys.row else ' (null)'}" for key in row) or "none"
    raise LitGPTError(
        f"no known format (its keys: {found}); a sample has {KNOWN_FORMATS}, and data.columns renames keys."
    )


def parse_instruction(row: Row) -> Conversation:
    """An instruction with its answer; further keys are the prompt style's to read.

    Raises:
        LitGPTError: No text under `instruction` or `output`.
    """
    return _pair(RowKeys(row), ("instruction",), ("output",))


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """A row with other names for some of its keys.

    Raises:
        LitGPTError: It has two keys of one name then.
    """
    found: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, value in row.items():
        name = columns.get(key, key)
        if value in EMPTY:
            found.setdefault(name, value)
            continue
        other = origins.setdefault(folded(name), key)
        if other != key and (key in columns or other in columns):
            raise LitGPTError(
                f"by data.columns both {quoted(other)} and {quoted(key)} are {quoted(name)}; give one of them another "
                "name there."
            )
        found[name] = value
    return found


def _pair(keys: RowKeys, prompts: Sequence[str], completions: Sequence[str]) -> Conversation:
    """A question and its answer, with all that may stand beside them."""
    prompt, completion = keys.take(*prompts), keys.take(*completions)
    for key, names in ((prompt, prompts), (completion, completions)):
        if key is None:
            raise LitGPTError(f"the sample has no key {quoted(names[0])} (its keys: {keys.shown}).")
    asked, context = question_at(keys, str(prompt), prompts)
    return conversation_of(keys, [*asked, *messages_at(keys.row, completion)], context, with_fields=True)


def question_at(keys: RowKeys, prompt: str, prompts: Sequence[str]) -> tuple[list[Any], tuple[str, str] | None]:
    """The messages of the prompt under a key, those of the history before it, and what it is about; `prompts` are all
    names of such a key."""
    context = keys.take(*(name for name in CONTEXT_KEYS if name not in prompts))
    history = keys.take("history")
    messages: list[Any] = []
    for turn in _list(keys.row, history) if history is not None and keys.row[history] else ():
        messages += alternating_messages(turn)
    about = _text(keys.row, context) if context is not None else ""
    return [*messages, *messages_at(keys.row, prompt, "user")], (str(context), about) if about else None


def messages_of(keys: RowKeys) -> list[Any]:
    """The messages of a conversation."""
    turns = _list(keys.row, keys.take(*CONVERSATION_KEYS))
    return [*alternating_messages(turns)] if len(turns) > 1 and all(isinstance(turn, str) for turn in turns) else turns


def _preferred_messages(keys: RowKeys) -> list[Any]:
    """The prompt, and the better of two answers."""
    chosen = keys.take("chosen")
    keys.take("rejected")
    answer = messages_at(keys.row, chosen)
    if answer and isinstance(answer[0], Mapping) and _message(answer[0])["role"] != "assistant":
        keys.take("prompt")  # which it begins with
        return answer
    if keys.present(*CONVERSATION_KEYS):
        return [*messages_of(keys), *answer]
    prompt = keys.take(*PROMPT_KEYS)
    if prompt is None:
        raise LitGPTError("`chosen` answers `prompt` or `conversations`, of which there is none.")
    return [*messages_at(keys.row, prompt, "user"), *answer]


def alternating_messages(texts: Sequence[Any]) -> list[Message]:
    """Texts of the user and the assistant in turn, as messages.

    Raises:
        LitGPTError: They are not texts.
    """
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise LitGPTError("a conversation without roles is a list of texts, the user's and the assistant's in turn.")
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def conversation_of(
    keys: RowKeys, turns: Sequence[Any], context: tuple[str, str] | None = None, with_fields: bool = False
) -> Conversation:
    """A conversation, with whatever else a row holds for its template."""
    if not turns:
        raise LitGPTError("the conversation is empty.")
    messages = list(map(_message, turns))
    masked = {index for index, message in enumerate(messages) if not _is_target(message)}
    plain = list(map(_plain, messages))
    system = keys.take(*SYSTEM_KEYS)
    text = _text(keys.row, system) if system is not None else ""
    if text and plain[0]["role"] != "system":
        plain.insert(0, {"role": "system", "content": text})
        masked = {index + 1 for index in masked}
    elif text and plain[0]["content"] != text:
        raise LitGPTError(f"{quoted(system)} and the conversation's own system message differ; give one of them.")
    tools, variables = _tools(keys), _variables(keys)
    unread = keys.unread
    own = {key: keys.row[key] for key in keys.row if key not in RESERVED_FIELDS} if with_fields else {}
    fields = {key: value for key, value in own.items() if key in unread or not value}
    unread = [key for key in unread if key not in fields]
    return Conversation(plain, tools, variables, fields, context, frozenset(masked), unread=unread)


def _variables(keys: RowKeys) -> Mapping[str, Any]:
    """What a row says to its template besides the messages."""
    given, documents = (from_json(keys.row, keys.take(name)) for name in ("chat_template_kwargs", "documents"))
    check_variables(given or {}, "`chat_template_kwargs`")
    return {**({"documents": documents} if documents else {}), **(given or {})}


def _message(turn: Any) -> Message:
    """A turn, however its keys and its role are spelled, with `role` and `content`.

    Raises:
        LitGPTError: It has none, or the role is unknown.
    """
    keys = RowKeys(turn) if isinstance(turn, Mapping) else None
    role = keys.take(*ROLE_KEYS) if keys is not None else None
    if keys is None or role is None or not isinstance(keys.row[role], str):
        raise LitGPTError(
            "a message has `role` and `content`, a turn of ShareGPT has `from` and `value`; "
            f"this one is {quoted(turn)}."
        )
    name, content = keys.row[role], keys.take(*CONTENT_KEYS)
    plain_role = ROLES_BY_LETTERS.get(folded(name))
    if plain_role is None:
        raise LitGPTError(
            f"{quoted(name)} speaks in the conversation.{closest(name, ROLES)} Known: {', '.join(ROLES)}."
        )
    others = {_message_key(key): value for key, value in keys.row.items() if key not in (role, content)}
    if legacy := others.pop("function_call", None):
        others.setdefault("tool_calls", [legacy])
    said = keys.row[content] if content is not None else None
    if folded(name) == CALLING_ROLE:
        try:
            calls = json.loads(said) if isinstance(said, str) else said
        except (ValueError, RecursionError):
            raise LitGPTError(f"the text of a function_call is JSON, not {quoted(said)}.") from None
        said, others["tool_calls"] = "", calls if isinstance(calls, list) else [calls]
    if said is None and any(others.get(key) for key in ("tool_calls", *REASONING)):
        said = ""
    if not isinstance(said, str | list):
        raise LitGPTError(f"the {name} message has no text under `content` (ShareGPT has `from` and `value`).")
    return {"role": plain_role, "content": said, **others}


def _message_key(key: str) -> str:
    """A key of a message as it is read here."""
    known = (*TRAIN_KEYS, "tool_calls", "function_call", *REASONING)
    return next((name for name in known if folded(name) == folded(key)), key)


def _plain(message: Message) -> Message:
    """A message as templates expect it, and as the server gives it to them: standard roles, content as one text,
    arguments of calls as objects."""
    plain = {key: value for key, value in message.items() if key not in TRAIN_KEYS and value is not None}
    content, calls = plain["content"], plain.get("tool_calls")
    if isinstance(content, list):
        plain["content"] = _one_text(content, plain["role"])
    if calls and not isinstance(calls, list):
        raise LitGPTError(f"`tool_calls` is a list, not {quoted(calls)}.")
    return {**plain, "tool_calls": [_with_arguments(_call(call), as_object) for call in calls]} if calls else plain


def _one_text(parts: list[Any], role: str) -> Any:
    """The parts of a content as one text, where they are texts; other ones are for the template.

    Raises:
        LitGPTError: One is an image, audio or video.
    """
    kinds = [part.get("type", "text") if isinstance(part, Mapping) else None for part in parts]
    if media := [kind for kind in kinds if kind in MEDIA_TYPES]:
        raise LitGPTError(f"the {role} message has a part of type {quoted(media[0])}; only text can be learned.")
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
        raise LitGPTError(f"a call has the `name` of a function, and perhaps `arguments`; this one is {quoted(call)}.")
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


def _is_target(message: Message) -> bool:
    """Whether neither `weight` is 0 nor `train` false."""
    value = next((message[key] for key in TRAIN_KEYS if message.get(key) is not None), 1)
    if value not in (0, 1):
        raise LitGPTError(f"a message's `weight` is 0 or 1 (or `train` true or false), not {quoted(value)}.")
    return bool(value)


def _tools(keys: RowKeys) -> Sequence[Any] | None:
    tools = from_json(keys.row, keys.take("tools", "functions"))
    if not tools:
        return None
    if not isinstance(tools, list):
        raise LitGPTError(f"`tools` is {json_type(tools)}, not a list.")
    if not all(isinstance(tool, Mapping) for tool in tools):
        raise LitGPTError(f"`tools` is a list of objects, not {quoted(tools)}.")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def messages_at(row: Row, key: str | None, role: str = "assistant") -> list[Any]:
    """One side of a prompt–completion pair: a text, or messages, perhaps written as JSON (a cell of a CSV file); those
    of an instruction are texts whatever they look like."""
    value, is_text = row[str(key)], folded(str(key)) in ("instruction", "output")
    if isinstance(value, Mapping) and not is_text:
        return [value]
    if isinstance(value, str):
        return (None if is_text else _written_messages(value)) or [{"role": role, "content": value}]
    if not isinstance(value, list):
        wanted = "not text" if is_text else "neither text nor a list of messages"
        raise LitGPTError(f"{quoted(key)} is {json_type(value)}, {wanted}.")
    return value


def _written_messages(text: str) -> list[Any] | None:
    """The messages that a text is the JSON of; None where it is a text like any other."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    found = [found] if isinstance(found, dict) else found
    roles = [isinstance(turn, Mapping) and {*map(folded, turn)} for turn in found]
    alike = all(keys and keys & {*ROLE_KEYS} and keys & {*CONTENT_KEYS} for keys in roles)
    return found if found and alike else None


def from_json(row: Row, key: str | None) -> Any:
    """The value under a key, perhaps written as JSON (a cell of a CSV file); None without a key."""
    value = row[key] if key is not None else None
    if not isinstance(value, str) or not value:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise LitGPTError(f"`{key}` is no JSON: {quoted(value)}.") from None


def _list(row: Row, key: str | None) -> list[Any]:
    """A list under `key`, perhaps written as JSON."""
    value = from_json(row, key)
    if not isinstance(value, list):
        raise LitGPTError(f"{quoted(key)} is {json_type(row[str(key)])}, not a list.")
    return value


def _text(row: Row, key: str | None) -> str:
    value = row[str(key)]
    if not isinstance(value, str):
        raise LitGPTError(f"{quoted(key)} is {json_type(value)}, not text.")
    return value


def json_type(value: Any) -> str:
    """What a value is called in JSON."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    names = {int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)

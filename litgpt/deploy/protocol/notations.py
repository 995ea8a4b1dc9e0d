"""The notations of tool calls: each family writes them in a way of its own, which its chat template shows."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from litgpt.deploy.protocol.arguments import arguments_text, typed

ID_CHARACTERS = string.ascii_letters + string.digits
ID_LENGTH = 9
"""Mistral's templates take no other length."""

Tools = Mapping[str, Any]
"""The tools by name, each with the JSON schema of what it takes."""


@dataclass(frozen=True)
class Call:
    """A tool's name and its arguments, as JSON text."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: "".join(secrets.choice(ID_CHARACTERS) for _ in range(ID_LENGTH)))

    def format(self, index: int | None = None) -> dict[str, Any]:
        """As OpenAI's API has it; `index`: in a stream."""
        place = {} if index is None else {"index": index}
        called = {"name": self.name, "arguments": self.arguments}
        return {**place, "id": self.id, "type": "function", "function": called}


class Unfinished(ValueError):
    """A text ends inside a value, so what seemed to end the call is part of that value."""


NO_CALL = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
"""What a notation's `parse` raises where there is no call."""


@dataclass(frozen=True)
class ToolFormat:
    """How a family writes calls."""

    signs: tuple[str, ...]
    """One of them stands in the chat templates of models that write so."""
    starts: tuple[str, ...]
    """What a call, or a list of calls, begins with."""
    end: str | None
    """What it ends with; None: where its JSON does."""
    parse: Callable[[str, Tools], tuple[list[Call], int]]
    """The calls that a text begins with, and where they end in it; raises one of `NO_CALL`: there is none."""
    forced: str | None
    """What an answer begins with that has to be a call; the rest is JSON. None: a call is not written as JSON."""
    shown: tuple[str, ...] = ()
    """Special tokens that belong to the notation."""
    keys: tuple[str, str] = ("name", "arguments")
    wraps: bool = False
    """Whether the JSON of a call stands in a list."""
    only_first: bool = False
    """Whether calls stand at the answer's very beginning or nowhere."""
    plain_values: bool = False
    """Whether values may be written as they are, so that the whole end of a call may be part of one."""

    def is_certain(self, text: str) -> bool:
        """Whether the first whole call that `text` begins with is the one meant."""
        return not self.plain_values or text.lstrip().startswith(("{", "["))


SPACE = re.compile(r"\s*")
BETWEEN = re.compile(r"[\s;,]*")
NOTES = {"name", "function", "id", "type", "index", "tool_call_id"}
"""What an object may hold that is a call without arguments."""


def json_value(text: str, at: int = 0) -> tuple[Any, int]:
    """The JSON value at `at`, and where it ends."""
    try:
        return json.JSONDecoder().raw_decode(text, SPACE.match(text, at).end())  # type: ignore[union-attr]
    except json.JSONDecodeError as error:
        # An escape that is the last thing there counts as a broken one.
        cut_escape = error.msg.startswith("Invalid \\u") and len(text) - error.pos <= len("\\uXXXX")
        if error.msg.startswith("Unterminated string") or cut_escape:
            raise Unfinished(error.msg) from None
        raise


def _call(content: Any, tools: Tools, marked: bool) -> Call:
    """A call written as an object; without arguments it is one only where marks stand around it."""
    inner = content.get("function")
    if isinstance(inner, Mapping):
        content = inner
    elif isinstance(inner, str):
        content = {"name": inner, **content}
    name, key = content.get("name", content.get("tool_name")), "arguments" if "arguments" in content else "parameters"
    if name not in tools or (key not in content and not (marked and content.keys() <= NOTES)):
        raise ValueError(name)
    return Call(name, arguments_text(content.get(key)))


def _objects(text: str, tools: Tools, marked: bool = True, ended: bool = True) -> tuple[list[Call], int]:
    """Objects or lists of objects one after another, with white space, `;` or `,` between.

    Args:
        text: What begins with them.
        tools: The tools.
        marked: A mark stands before them.
        ended: A mark stands behind them; else the first thing that is no call ends them.
    """
    found, end, at = list[Call](), 0, 0
    while True:
        try:
            content, at = json_value(text, at)
            calls = [_call(each, tools, marked) for each in (content if isinstance(content, list) else [content])]
        except NO_CALL as error:
            if not found or (ended and isinstance(error, Unfinished)):
                raise
            return found, end
        found, end = found + calls, at
        at = BETWEEN.match(text, at).end()  # type: ignore[union-attr]


FUNCTION = re.compile(r"\s*<function=([^>\n]+)>\s*")
PARAMETER = re.compile(r"<parameter=([^>\n]+)>")
PARAMETER_END = re.compile(r"</parameter>\s*(?:(?=<parameter=([^>\n]+)>)|(?=</function>\s*(?:<function=[^>\n]+>|\Z)))")
KEYED = re.compile(r"\s*([\w.-]+)\s*")
KEY = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>", re.DOTALL)
VALUE_END = re.compile(r"</arg_value>\s*(?:(?=<arg_key>([^<]*)</arg_key>\s*<arg_value>)|\Z)")


def _tagged(text: str, tools: Tools) -> tuple[list[Call], int]:
    """`{"name": …}`, `<function=NAME><parameter=KEY>…` or `NAME<arg_key>…`."""
    if text.lstrip().startswith(("{", "[")):
        return _objects(text, tools)
    if FUNCTION.match(text) is None:
        return _keyed(text, tools)
    found, at = list[Call](), 0
    while head := FUNCTION.match(text, at):
        given, at = _spelled(text, head.end(), tools[head[1]], PARAMETER, PARAMETER_END)
        if not text.startswith("</function>", at):
            raise ValueError(text[at:])
        at += len("</function>")
        # A line break at either end of a value is the notation's.
        lines = {key: value.removeprefix("\n").removesuffix("\n") for key, value in given.items()}
        found.append(_typed_call(head[1], lines, tools))
    return found, at


def _keyed(text: str, tools: Tools) -> tuple[list[Call], int]:
    head = KEYED.match(text)
    if head is None:
        raise ValueError(text)
    given, at = _spelled(text, head.end(), tools[head[1]], KEY, VALUE_END)
    return [_typed_call(head[1], given, tools)], at


def _spelled(
    text: str, at: int, parameters: Any, head: re.Pattern[str], end: re.Pattern[str]
) -> tuple[dict[str, str], int]:
    """Arguments written one by one, and where they end.

    What looks like the end of a value is part of it where no other argument and no end of the call follows.
    """
    given: dict[str, str] = {}
    while found := head.match(text, at):
        key, at = found[1], found.end()
        ends = (match for match in end.finditer(text, at) if match[1] is None or match[1] not in {key, *given})
        last = next(ends, None)
        if last is None:
            raise Unfinished(key)
        given[key], at = text[at : last.start()], last.end()
    return given, at


def _typed_call(name: str, given: Mapping[str, str], tools: Tools) -> Call:
    return Call(name, arguments_text({key: typed(value, tools[name], key) for key, value in given.items()}))


def _after_heads(
    text: str, tools: Tools, head: re.Pattern[str], tail: re.Pattern[str], ended: bool
) -> tuple[list[Call], int]:
    """Calls whose arguments are JSON between a head with the tool's name, a group of it, and a tail."""
    found, at = list[Call](), 0
    while match := head.match(text, at):
        name = next(filter(None, match.groups()))
        try:
            arguments, end = json_value(text, match.end())
            close = tail.match(text, end)
            if close is None or name not in tools:
                raise ValueError(name)
            call = Call(name, arguments_text(arguments))
        except NO_CALL:
            if ended or not found:
                raise
            break
        found, at = [*found, call], close.end()
    if not found:
        raise ValueError(text)
    return found, at


NAMED = re.compile(r"\s*(?:\[TOOL_CALLS\]\s*)?([\w.-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\]\s*)?(?=\{)")
NOTHING = re.compile("")
DEEP_CALL = re.compile(
    r"\s*<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>([\w.-]+)\s*```json\s*|([\w.-]+)<｜tool▁sep｜>\s*(?:```json)?\s*)"
)
DEEP_END = re.compile(r"\s*(?:```)?\s*<｜tool▁call▁end｜>\s*")


def _listed(text: str, tools: Tools) -> tuple[list[Call], int]:
    """`[{…}, {…}]`, or `NAME[ARGS]{…}` one after another."""
    if text.lstrip().startswith(("[{", "{")):
        return _objects(text, tools, ended=False)
    return _after_heads(text, tools, NAMED, NOTHING, ended=False)


FORMATS = (
    ToolFormat(
        ("[TOOL_CALLS]",),
        ("[TOOL_CALLS]",),
        None,
        _listed,
        "[TOOL_CALLS]",
        ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
        wraps=True,
    ),
    ToolFormat(
        ("<｜tool▁calls▁begin｜>",),
        ("<｜tool▁calls▁begin｜>",),
        "<｜tool▁calls▁end｜>",
        partial(_after_heads, head=DEEP_CALL, tail=DEEP_END, ended=True),
        None,
        tuple(f"<｜tool▁{word}｜>" for word in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")),
    ),
    ToolFormat(
        ("<|tool_call|>",),
        ("<|tool_call|>",),
        None,
        partial(_objects, ended=False),
        "<|tool_call|>",
        ("<|tool_call|>",),
        wraps=True,
    ),
    ToolFormat(
        ("<tool_calls>",),
        ("<tool_calls>",),
        "</tool_calls>",
        _objects,
        "<tool_calls>",
        ("<tool_calls>", "</tool_calls>"),
        wraps=True,
    ),
    ToolFormat(
        ("<tool_call>",),
        ("<tool_call>",),
        "</tool_call>",
        _tagged,
        "<tool_call>\n",
        ("<tool_call>", "</tool_call>"),
        plain_values=True,
    ),
    ToolFormat(
        ('"parameters": dictionary',),
        ("<|python_tag|>", "{", "["),
        None,
        partial(_objects, marked=False, ended=False),
        "",
        ("<|python_tag|>",),
        keys=("name", "parameters"),
        only_first=True,
    ),
)
"""In this order: a template may mention several, and the more special notation comes first."""
OTHERS = ("]<]minimax[>[",)
"""Signs of notations that are not read, though a sign of one that is stands in their templates, too."""


def format_of(template: str) -> ToolFormat | None:
    """The notation of a chat template, by the signs in it; None: it has none that is known."""
    if any(sign in template for sign in OTHERS):
        return None
    return next((known for known in FORMATS if any(sign in template for sign in known.signs)), None)

"""Calls of tools in a model's answer: each family writes them in a way of its own, which its chat template shows."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from litgpt.engine.detokenizer import partial_match
from litgpt.errors import LitGPTError

ID_CHARACTERS = string.ascii_letters + string.digits
ID_LENGTH = 9
"""Mistral's templates take no other length."""


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


@dataclass(frozen=True)
class DeltaMessage:
    """A piece of an answer, its kinds parted."""

    content: str = ""
    calls: tuple[Call, ...] = ()
    reasoning: str = ""

    def __add__(self, other: DeltaMessage) -> DeltaMessage:
        return DeltaMessage(self.content + other.content, self.calls + other.calls, self.reasoning + other.reasoning)


@dataclass(frozen=True)
class ToolFormat:
    """How a family writes calls."""

    signs: tuple[str, ...]
    """One of them stands in the chat templates of models that write so."""
    starts: tuple[str, ...]
    """What a call, or a list of calls, begins with."""
    end: str | None
    """What it ends with; None: the answer's end."""
    parse: Callable[[str], list[Call]]
    """The calls in what stands between; ValueError, KeyError or TypeError: there is none."""
    forced: str | None
    """What an answer begins with that has to be a call; the rest is JSON. None: a call is not written as JSON."""
    shown: tuple[str, ...] = ()
    """Special tokens that belong to the notation."""
    keys: tuple[str, str] = ("name", "arguments")
    wraps: bool = False
    """Whether the JSON of a call stands in a list."""
    only_first: bool = False
    """Whether calls stand at the answer's very beginning or nowhere."""


def _call(content: Any) -> Call:
    """A call written as an object."""
    content = content.get("function", content) if isinstance(content, Mapping) else content
    if isinstance(content, Mapping) and isinstance(content.get("function"), str):
        content = {"name": content["function"], **content}
    name = content["name"]
    arguments = content["arguments"] if "arguments" in content else content["parameters"]
    if not isinstance(name, str):
        raise TypeError(name)
    return Call(name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))


def _objects(text: str) -> list[Call]:
    """Objects or lists of objects one after another, with white space, `;` or `,` between."""
    decoder, at, found = json.JSONDecoder(), 0, []
    text = text.strip()
    while at < len(text):
        content, at = decoder.raw_decode(text, at)
        found += content if isinstance(content, list) else [content]
        at += len(text[at:]) - len(text[at:].lstrip(" \n\r\t;,"))
    return [_call(content) for content in found]


FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)</function>", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


def _tagged(text: str) -> list[Call]:
    """`{"name": …}`, `<function=NAME><parameter=KEY>…` or `NAME<arg_key>…`."""
    text = text.strip()
    if text.startswith(("{", "[")):
        return _objects(text)
    if functions := FUNCTION.findall(text):
        return [_spelled(name, PARAMETER.findall(body)) for name, body in functions]
    name, _, rest = text.partition("<arg_key>")
    if not re.fullmatch(r"[\w.-]+\s*", name):
        raise ValueError(text)
    return [_spelled(name.strip(), ARGUMENT.findall("<arg_key>" + rest))]


def _spelled(name: str, given: Sequence[tuple[str, str]]) -> Call:
    """A call whose arguments are written one by one; what reads as JSON is JSON."""
    arguments = {}
    for key, value in given:
        try:
            arguments[key.strip()] = json.loads(value)
        except ValueError:
            arguments[key.strip()] = value
    return Call(name, json.dumps(arguments, ensure_ascii=False))


MISTRAL_CALL = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\])?\s*(?=\{)")


def _listed(text: str) -> list[Call]:
    """`[{…}, {…}]`, or `NAME[ARGS]{…}` one after another."""
    if text.lstrip().startswith(("[{", "{")):
        return _objects(text)
    decoder, found, at = json.JSONDecoder(), [], 0
    text = text.replace("[TOOL_CALLS]", " ").rstrip()
    while at < len(text):
        head = MISTRAL_CALL.match(text, at)
        if head is None:
            raise ValueError(text)
        arguments, at = decoder.raw_decode(text, head.end())
        found.append(Call(head[1], json.dumps(arguments, ensure_ascii=False)))
    return found


DEEP_CALL = re.compile(
    r"<｜tool▁call▁begin｜>(?:function)?(?:<｜tool▁sep｜>)?([\w.-]+)(?:<｜tool▁sep｜>)?\s*(?:```json)?\s*(\{.*?\})\s*(?:```)?"
    r"\s*<｜tool▁call▁end｜>",
    re.DOTALL,
)


def _deep(text: str) -> list[Call]:
    found = [Call(name, json.dumps(json.loads(given), ensure_ascii=False)) for name, given in DEEP_CALL.findall(text)]
    if not found:
        raise ValueError(text)
    return found


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
        _deep,
        None,
        tuple(f"<｜tool▁{word}｜>" for word in ("calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep")),
    ),
    ToolFormat(("<|tool_call|>",), ("<|tool_call|>",), None, _objects, "<|tool_call|>", ("<|tool_call|>",), wraps=True),
    ToolFormat(
        ("<tool_call>",),
        ("<tool_call>",),
        "</tool_call>",
        _tagged,
        "<tool_call>\n",
        ("<tool_call>", "</tool_call>"),
    ),
    ToolFormat(
        ('"parameters": dictionary',),
        ("<|python_tag|>", "{", "["),
        None,
        _objects,
        "",
        ("<|python_tag|>",),
        keys=("name", "parameters"),
        only_first=True,
    ),
)
"""In this order: a template may mention several, and the more special notation comes first."""


def format_of(template: str) -> ToolFormat | None:
    """The notation of a chat template, by the signs in it; None: it has none that is known."""
    return next((known for known in FORMATS if any(sign in template for sign in known.signs)), None)


class ToolCallParser:
    """Takes an answer piece by piece and parts what is said from what is called.

    Args:
        notation: How calls are written.
        names: The tools there are; a call of another stays in the text.
    """

    def __init__(self, notation: ToolFormat, names: Collection[str]) -> None:
        self._notation, self._names = notation, names
        self._held = ""
        self._inside: str | None = None
        """What the calls that are being read began with; None: none are."""
        self._has_content = False
        self.n_calls = 0

    def push(self, text: str) -> DeltaMessage:
        """What is said and what is called, as far as it is certain."""
        self._held += text
        message = DeltaMessage()
        while True:
            if self._inside is None:
                message += DeltaMessage(self._content(self._until_start()))
                if self._inside is None:
                    break
            content = self._until_end()
            if content is None:
                break
            message += self._read(content, self._notation.end or "")
        return message

    def close(self) -> DeltaMessage:
        """What was held back, once the answer is complete."""
        rest, self._held = self._held, ""
        return DeltaMessage(self._content(rest)) if self._inside is None else self._read(rest, "")

    def _content(self, content: str) -> str:
        # White space between calls, or after the last one, is notation and not something said.
        if self.n_calls and not content.strip():
            return ""
        self._has_content = self._has_content or bool(content.strip())
        return content

    def _until_start(self) -> str:
        """What is said before a call begins; the rest stays held."""
        notation, held = self._notation, self._held
        if notation.only_first:
            text = held.lstrip()
            begins = any(start.startswith(text) or text.startswith(start) for start in notation.starts)
            if self._has_content or self.n_calls or not begins:
                self._held = ""
                return held
            start = next((start for start in notation.starts if text.startswith(start)), None)
            if start is not None:
                self._inside = start if start.startswith("<") else ""
                self._held = text.removeprefix(self._inside)
            return ""
        found = [(at, start) for start in notation.starts if (at := held.find(start)) >= 0]
        if found:
            at, self._inside = min(found)
            self._held = held[at + len(self._inside) :]
            return held[:at] if held[:at].strip() else ""
        certain = len(held) - partial_match(held, notation.starts)
        self._held = held[certain:]
        return held[:certain]

    def _until_end(self) -> str | None:
        """What stands between a call's marks; None: its end hasn't come."""
        end = self._notation.end
        if end is None or end not in self._held:
            return None
        content, _, self._held = self._held.partition(end)
        return content

    def _read(self, content: str, end: str) -> DeltaMessage:
        start, self._inside = self._inside or "", None
        try:
            calls = self._notation.parse(content)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            calls = []
        if not calls or any(call.name not in self._names for call in calls):
            return DeltaMessage(self._content(start + content + end))
        self.n_calls += len(calls)
        return DeltaMessage(calls=tuple(calls))


def forced_schema(notation: ToolFormat, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the JSON of a call to one of these functions keeps to.

    Args:
        notation: How calls are written.
        tools: `{"name": …, "parameters": schema}`.
    """
    name, arguments = notation.keys
    options = []
    for tool in tools:
        given = dict(tool.get("parameters") or {"type": "object"})
        definitions = {key: given.pop(key) for key in ("$defs", "definitions") if key in given}
        properties = {name: {"const": tool["name"]}, arguments: given}
        entry = {
            "type": "object",
            "properties": properties,
            "required": [name, arguments],
            "additionalProperties": False,
        }
        options.append((entry, definitions))
    merged: dict[str, Any] = {}
    for _, found in options:
        for key, named in found.items():
            if any(merged.get(key, {}).get(name, schema) != schema for name, schema in named.items()):
                raise LitGPTError(
                    f"Two tools have different definitions of one name in {key}; give them names of their own."
                )
            merged[key] = {**merged.get(key, {}), **named}
    schema: dict[str, Any] = options[0][0] if len(options) == 1 else {"anyOf": [entry for entry, _ in options]}
    if notation.wraps:
        schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": 1}
    return schema | merged

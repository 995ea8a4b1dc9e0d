"""The notations of tool calls: each family writes them in a way of its own, which its chat template shows."""

from __future__ import annotations

import ast
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


NO_CALL = (ValueError, KeyError, TypeError, AttributeError, RecursionError, SyntaxError, MemoryError)
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
KIND = r"(?::\w+)?"  # Hy3's tags name their edition
KEYED = re.compile(rf"\s*([\w.-]+)\s*(?:<tool_sep{KIND}>\s*)?")
KEY = re.compile(rf"<arg_key{KIND}>(.*?)</arg_key{KIND}>\s*<arg_value{KIND}>", re.DOTALL)
VALUE_END = re.compile(rf"</arg_value{KIND}>\s*(?:(?=<arg_key{KIND}>([^<]*)</arg_key{KIND}>\s*<arg_value{KIND}>)|\Z)")


def _tagged(text: str, tools: Tools, padded: bool = True) -> tuple[list[Call], int]:
    """`{"name": …}`, `<function=NAME><parameter=KEY>…` or `NAME<arg_key>…`; `padded`: values stand on lines of their
    own."""
    if text.lstrip().startswith(("{", "[")):
        return _objects(text, tools)
    if FUNCTION.match(text) is None:
        return _keyed(text, tools)
    found, at = list[Call](), 0
    while head := FUNCTION.match(text, at):
        given, at = _spelled(text, head.end(), PARAMETER, PARAMETER_END)
        if not text.startswith("</function>", at):
            raise ValueError(text[at:])
        at += len("</function>")
        # A line break at either end of a value is the notation's.
        lines = {k: v.removeprefix("\n").removesuffix("\n") if padded else v for k, v in given.items()}
        found.append(_typed_call(head[1], lines, tools))
    return found, at


def _keyed(text: str, tools: Tools) -> tuple[list[Call], int]:
    head = KEYED.match(text)
    if head is None:
        raise ValueError(text)
    given, at = _spelled(text, head.end(), KEY, VALUE_END)
    return [_typed_call(head[1], given, tools)], at


def _spelled(
    text: str, at: int, head: re.Pattern[str], end: re.Pattern[str], notes: dict[str, str | None] | None = None
) -> tuple[dict[str, str], int]:
    """Arguments written one by one, and where they end; `notes` gets what a second group of `head` is of each.

    What looks like the end of a value is part of it where no other argument and no end of the call follows.
    """
    given: dict[str, str] = {}
    while found := head.match(text, at):
        key, at = found[1], found.end()
        if notes is not None:
            notes[key] = found[2]
        ends = (match for match in end.finditer(text, at) if match[1] is None or match[1] not in {key, *given})
        last = next(ends, None)
        if last is None:
            raise Unfinished(key)
        given[key], at = text[at : last.start()], last.end()
    return given, at


def _typed_call(name: str, given: Mapping[str, str], tools: Tools) -> Call:
    parameters = tools[name]
    return Call(name, arguments_text({key: typed(value, parameters, key) for key, value in given.items()}))


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


KIMI_CALL = re.compile(
    r"\s*<\|tool_call_begin\|>\s*(?:functions\.)?([\w.-]+?)(?::\d+)?\s*<\|tool_call_argument_begin\|>"
)
KIMI_END = re.compile(r"\s*<\|tool_call_end\|>\s*")
SOLAR_CALL = re.compile(r"\s*[\w-]*\s*<\|tool_call:name\|>([\w.-]+)<\|tool_call:args\|>")


def _invoked(text: str, tools: Tools, tag: str) -> tuple[list[Call], int]:
    """`<invoke name="NAME"><parameter name="KEY">VALUE</parameter></invoke>` one after another, where `tag` stands
    before each name of a tag; a value is JSON or a text as the tool says, or as `string="…"` beside its name does."""
    head = re.compile(rf'\s*<{tag}invoke name="([^"\n]+)">\s*')
    parameter = re.compile(rf'<{tag}parameter name="([^"\n]+)"(?: string="(true|false)")?>')
    close = rf"</{tag}invoke>\s*(?:<{tag}invoke name=|\Z)"
    end = re.compile(rf'</{tag}parameter>\s*(?:(?=<{tag}parameter name="([^"\n]+)")|(?={close}))')
    found, at = list[Call](), 0
    while start := head.match(text, at):
        said, parameters = dict[str, str | None](), tools[start[1]]
        given, at = _spelled(text, start.end(), parameter, end, said)
        if not text.startswith(f"</{tag}invoke>", at):
            raise ValueError(text[at:])
        at += len(f"</{tag}invoke>")
        values = {key: _said_value(value, said[key], parameters, key) for key, value in given.items()}
        found.append(Call(start[1], arguments_text(values)))
    if not found:
        raise ValueError(text)
    return found, at


def _said_value(text: str, is_string: str | None, parameters: Any, key: str) -> Any:
    if is_string is None:
        return typed(text, parameters, key)
    return text if is_string == "true" else json.loads(text)


def _python(text: str, tools: Tools) -> tuple[list[Call], int]:
    """`[name(key="value", other=3), …]`, as Python has calls, with JSON's names of constants too."""
    tree = ast.parse(text.strip(), mode="eval").body
    calls = tree.elts if isinstance(tree, ast.List) else [tree]
    found = []
    for call in calls:
        if not isinstance(call, ast.Call) or call.args or ast.unparse(call.func) not in tools:
            raise ValueError(text)
        given = {str(one.arg): ast.literal_eval(_Constants().visit(one.value)) for one in call.keywords}
        found.append(Call(ast.unparse(call.func), arguments_text(given)))
    if not found:
        raise ValueError(text)
    return found, len(text)


class _Constants(ast.NodeTransformer):
    """Puts Python's constants in the place of JSON's."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        constants = {"true": True, "false": False, "null": None}
        return ast.Constant(constants[node.id]) if node.id in constants else node


GEMMA_CALL = re.compile(r"\s*call:([\w.-]+)(?=\{)")
GEMMA_QUOTE = '<|"|>'
GEMMA_WORD = re.compile(r"[^\s,:{}\[\]<]+")


def _gemma(text: str, tools: Tools) -> tuple[list[Call], int]:
    """`call:NAME{key:<|"|>text<|"|>,other:3}`."""
    head = GEMMA_CALL.match(text)
    if head is None or head[1] not in tools:
        raise ValueError(text)
    given, at = _gemma_value(text, head.end())
    return [Call(head[1], arguments_text(given))], at


def _gemma_value(text: str, at: int) -> tuple[Any, int]:
    """The value at `at`, and where it ends."""
    if text.startswith(GEMMA_QUOTE, at):
        end = text.find(GEMMA_QUOTE, at + len(GEMMA_QUOTE))
        if end < 0:
            raise Unfinished(text[at:])
        return text[at + len(GEMMA_QUOTE) : end], end + len(GEMMA_QUOTE)
    if text[at : at + 1] in ("{", "["):
        return _gemma_items(text, at)
    word = GEMMA_WORD.match(text, at)
    if word is None:
        raise Unfinished(text[at:])
    return {"None": None}.get(word[0]) if word[0] == "None" else json.loads(word[0]), word.end()


def _gemma_items(text: str, at: int) -> tuple[Any, int]:
    """The object or list that begins at `at`."""
    is_object, closing = text[at] == "{", "}" if text[at] == "{" else "]"
    keys, values, at = list[str](), list[Any](), at + 1
    while not text.startswith(closing, at):
        if values:
            if not text.startswith(",", at):
                raise Unfinished(text[at:])
            at += 1
        if is_object:
            quoted = text.startswith(GEMMA_QUOTE, at)
            colon = text.find(f"{GEMMA_QUOTE}:", at + len(GEMMA_QUOTE)) if quoted else text.find(":", at)
            if colon < 0:
                raise Unfinished(text[at:])
            keys.append(text[at + len(GEMMA_QUOTE) : colon] if quoted else text[at:colon])
            at = colon + (len(GEMMA_QUOTE) if quoted else 0) + 1
        value, at = _gemma_value(text, at)
        values.append(value)
    return dict(zip(keys, values, strict=True)) if is_object else values, at + 1


def _invocation(start: str, end: str, tag: str, sign: str | None = None) -> ToolFormat:
    """A notation of `_invoked`."""
    parse = partial(_invoked, tag=tag)
    return ToolFormat((sign or start,), (start,), end, parse, None, (start, end), plain_values=True)


DSML = "｜DSML｜"
HY_TAGS = "tool_call /tool_call arg_key /arg_key arg_value /arg_value tool_sep".split()
FORMATS = (
    ToolFormat(
        ("<|tool_calls_section_begin|>",),
        ("<|tool_calls_section_begin|>",),
        "<|tool_calls_section_end|>",
        partial(_after_heads, head=KIMI_CALL, tail=KIMI_END, ended=True),
        None,
        tuple(
            f"<|tool_call{word}|>" for word in ("s_section_begin", "s_section_end", "_begin", "_end", "_argument_begin")
        ),
    ),
    ToolFormat(
        ("<|tool_call:begin|>",),
        ("<|tool_call:begin|>",),
        "<|tool_call:end|>",
        partial(_after_heads, head=SOLAR_CALL, tail=NOTHING, ended=True),
        None,
        tuple(f"<|tool_call:{word}|>" for word in ("begin", "name", "args", "end")),
    ),
    _invocation("<minimax:tool_call>", "</minimax:tool_call>", "", "toolcall_begin_token   = '<minimax:tool_call>'"),
    _invocation("<atem:function_calls>", "</atem:function_calls>", "atem:"),
    _invocation(f"<{DSML}function_calls>", f"</{DSML}function_calls>", DSML, "dsml_token + 'function_calls>"),
    _invocation(f"<{DSML}tool_calls>", f"</{DSML}tool_calls>", DSML, "dsml_token + 'tool_calls>"),
    ToolFormat(
        ("<seed:tool_call>",),
        ("<seed:tool_call>",),
        "</seed:tool_call>",
        partial(_tagged, padded=False),
        None,
        ("<seed:tool_call>", "</seed:tool_call>"),
        plain_values=True,
    ),
    ToolFormat(
        ("<tool_call{}>",),
        ("<tool_call:opensource>",),
        "</tool_call:opensource>",
        _tagged,
        None,
        tuple(f"<{tag}:opensource>" for tag in HY_TAGS),
        plain_values=True,
    ),
    ToolFormat(
        ("<|tool_call>call:",),
        ("<|tool_call>",),
        "<tool_call|>",
        _gemma,
        None,
        ("<|tool_call>", "<tool_call|>", GEMMA_QUOTE),
        plain_values=True,
    ),
    ToolFormat(
        ("<|tool_call_start|>", "<|tool_list_start|>"),
        ("<|tool_call_start|>",),
        "<|tool_call_end|>",
        _python,
        None,
        ("<|tool_call_start|>", "<|tool_call_end|>"),
        plain_values=True,
    ),
    ToolFormat(("<TOOLCALL>",), ("<TOOLCALL>",), "</TOOLCALL>", _objects, "<TOOLCALL>", wraps=True),
    ToolFormat(
        ("<|START_ACTION|>",),
        ("<|START_ACTION|>",),
        "<|END_ACTION|>",
        _objects,
        "<|START_ACTION|>",
        ("<|START_ACTION|>", "<|END_ACTION|>"),
        keys=("tool_name", "parameters"),
        wraps=True,
    ),
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

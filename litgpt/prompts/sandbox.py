"""Where chat templates run.

A template is somebody else's program, come with a checkpoint: here it reaches no Python internals, changes nothing it
is given, and stops when it has computed or built more than any conversation needs.
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from litgpt.errors import quoted

MAX_SECONDS = 5.0
"""CPU time one rendering may take (a real one takes milliseconds)."""
MAX_BYTES = 1_000_000_000
"""What one rendering may build, all its intermediate texts and lists together, roughly."""
MAX_TEXT = 10_000_000
"""Characters of one text, items of one list."""
MAX_INT_BITS = 4096
ITEM_BYTES = 64

KEEP_CONTAINERS = frozenset(
    """attr batch count d default dictsort first groupby items last length list map max min reject rejectattr reverse
    select selectattr slice sort unique""".split()
)
"""Filters that take a list or table as such; every other one makes a text of it."""
REMOVED_FILTERS = ("pprint", "random", "urlize", "wordwrap", "xmlattr")
REMOVED_METHODS = frozenset({"encode", "translate", "maketrans", "to_bytes", "from_bytes"})
WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*(\*|\d{4})")
WIDE_BRACES = re.compile(r"\{[^{}]*:[^{}]*(\d{4}|\{)")
"""`%99999d`, `{:>99999}`, or a width that is a value itself."""


class Budget:
    """What a rendering has spent."""

    def __init__(self) -> None:
        self.bytes = 0
        self.deadline = time.thread_time() + MAX_SECONDS

    def spend(self, n: int = 0) -> None:
        """Count `n` bytes built, and look at the clock.

        Raises:
            SecurityError: It is too much.
        """
        self.bytes += n
        if self.bytes > MAX_BYTES or time.thread_time() > self.deadline:
            raise SecurityError("it computes or writes without end")


_budget: ContextVar[Budget] = ContextVar("budget")


@contextmanager
def budget() -> Iterator[Budget]:
    """Everything a template does inside is counted together."""
    token = _budget.set(Budget())
    try:
        yield _budget.get()
    finally:
        _budget.reset(token)


def _allow(length: int) -> None:
    """Count a text or list of `length` that is about to be built."""
    if length > MAX_TEXT:
        raise SecurityError("it builds a text or list without end")
    _budget.get().spend(length)


def _measure(value: Any) -> int:
    """How long `value` is as a text, roughly; a table that stands in another several times counts as often."""
    length, seen, left = 0, 0, [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            length += len(item)
        elif isinstance(item, dict):
            left += [*item, *item.values()]
        elif isinstance(item, (list, tuple)):
            left += item
        elif isinstance(item, Namespace):
            left.append(object.__getattribute__(item, "_Namespace__attrs"))
        length += 8
        seen += 1
        if length > MAX_TEXT:
            break
        if seen % 4096 == 0:  # Looking at the clock takes longer than all the rest.
            _budget.get().spend()
    _allow(length)
    return length


def _count(value: Any) -> Any:
    """Count what was just built."""
    if isinstance(value, str):
        _budget.get().spend(len(value))
    elif isinstance(value, (list, tuple, dict, set)):
        _budget.get().spend(ITEM_BYTES * len(value))
    else:
        _budget.get().spend()
    return value


def _join(parts: Sequence[Any], separator: Any = "") -> None:
    _measure(parts)
    _allow(len(parts) * len(str(separator)))


def _replace(text: Any, old: Any = "", new: Any = "", *_: Any, **__: Any) -> None:
    text, old, new = str(text), str(old), str(new)
    _allow(len(text) + len(new) * text.count(old))


def _pad(text: Any, width: Any = 80, *_: Any) -> None:
    _allow(len(str(text)) + (width if isinstance(width, int) else 0))


def _indent(text: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    text = str(text)
    _allow(len(text) + (text.count("\n") + 1) * (width if isinstance(width, int) else len(str(width))))


def _expand_tabs(text: str, tabsize: int = 8) -> None:
    _allow(len(text) + text.count("\t") * tabsize)


def _percent(template: Any, *values: Any, **named: Any) -> None:
    if WIDE_PERCENT.search(str(template)):
        raise SecurityError("it formats to a width without end")
    _allow(len(str(template)) + str(template).count("%") * _measure([values, named]))


def _braces(template: str, *values: Any, **named: Any) -> None:
    if WIDE_BRACES.search(template):
        raise SecurityError("it formats to a width without end")
    _allow(len(template) + template.count("{") * _measure([values, named]))


def _parts(_: Any, *sizes: Any, **named: Any) -> None:
    _allow(sum(size for size in (*sizes, *named.values()) if isinstance(size, int)))


def _json(value: Any, ensure_ascii: bool = False, indent: Any = None, *_: Any, **__: Any) -> None:
    _allow(_measure(value) * (1 + (indent if isinstance(indent, int) else len(indent or ""))))


CHECKS: dict[str, Callable[..., None]] = {
    "join": lambda parts, d="", *_, **__: _join(parts, d),
    "replace": _replace,
    "center": _pad,
    "indent": _indent,
    "format": _percent,
    "batch": _parts,
    "slice": _parts,
    "tojson": _json,
}
"""What a filter is about to build, where that can be more than it is given."""
METHOD_CHECKS: dict[str, Callable[..., None]] = {
    "join": lambda separator, parts: _join(parts, separator),
    "replace": _replace,
    "center": _pad,
    "ljust": _pad,
    "rjust": _pad,
    "zfill": _pad,
    "expandtabs": _expand_tabs,
}


def _guarded(name: str, apply: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that counts what it builds. Filters that build lazily (`map`) are counted as they are read."""
    at = 1 if hasattr(apply, "jinja_pass_arg") else 0

    @functools.wraps(apply)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        values = list(args[at:])
        if name == "join":
            values[0] = list(values[0])
        if name in CHECKS:
            CHECKS[name](*values, **kwargs)
        elif name not in KEEP_CONTAINERS and values and not isinstance(values[0], str):
            _measure(values[0])
        return _count(apply(*args[:at], *values, **kwargs))

    return guarded


def _add(left: Any, right: Any) -> None:
    if isinstance(left, (str, list, tuple)) and isinstance(right, (str, list, tuple)):
        _allow(len(left) + len(right))


def _multiply(left: Any, right: Any) -> None:
    if isinstance(left, int) and not isinstance(right, int):
        left, right = right, left
    if isinstance(left, (str, list, tuple)) and isinstance(right, int):
        _allow(len(left) * max(right, 0))
    elif isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MAX_INT_BITS:
        raise SecurityError("it computes a number without end")


def _power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * max(right, 0) > MAX_INT_BITS:
        raise SecurityError("it computes a number without end")


def _modulo(left: Any, right: Any) -> None:
    if isinstance(left, str):
        _percent(left, right)


BINOP_CHECKS = {"+": _add, "*": _multiply, "**": _power, "%": _modulo}


class GenerationBlocks(Extension):
    """`{% generation %}…{% endgeneration %}` around the assistant's words changes no text; its place can be noted."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(lineno)

    def _note(self, caller: Macro) -> str:
        text = caller()
        if (noted := _collected_spans.get()) is not None:
            blocks, spans = noted
            start = sum(map(len, blocks))
            spans.append((start, start + len(text)))
        return text


_collected_spans: ContextVar[tuple[list[str], list[tuple[int, int]]] | None] = ContextVar("noted", default=None)
"""Where the places of generation blocks are asked for: the text so far, in pieces, and the places."""


@contextmanager
def collect_spans(blocks: list[str]) -> Iterator[list[tuple[int, int]]]:
    """Collect the `[start, end)` of generation blocks while the caller appends what is rendered to `blocks`."""
    spans: list[tuple[int, int]] = []
    token = _collected_spans.set((blocks, spans))
    try:
        yield spans
    finally:
        _collected_spans.reset(token)


class PlainNamespace(Namespace):
    """Jinja's `namespace`, without the names that mean something to Python or Jinja."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        Namespace.__init__(*args, **kwargs)
        for name in object.__getattribute__(args[0], "_Namespace__attrs"):
            _check_name(name)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise SecurityError(f"it sets {quoted(name)} on a namespace")


class PlainDict:
    """`dict(…)` and `dict.fromkeys(…)`: the type itself would hand out methods that change other tables."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _printed(value: Any) -> Any:
    """What stands in `{{ }}`, counted."""
    if isinstance(value, str):
        _allow(len(value))
    else:
        _measure(value)
    return value


@jinja2.pass_context  # So that it isn't computed once when the template is compiled.
def _step(_: Context, length: int) -> str:
    """One round of a loop or one call of a macro whose body holds `length` characters of text."""
    _allow(length)
    return ""


def _concat(parts: list[Any]) -> str:
    """`a ~ b`."""
    _measure(parts)
    return "".join(map(str, parts))


class _Counted(NodeTransformer):
    """Sends what Jinja compiles to plain Python through the filters that count."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(nodes.List(node.nodes, lineno=node.lineno, environment=node.environment), "__concat__")

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filter(node, "__count__") if isinstance(node.arg, nodes.Slice) else node


def _filter(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=node.environment)


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as `transformers` sets it up for chat templates, with limits."""

    intercepted_binops = frozenset(BINOP_CHECKS)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlocks, loopcontrols])
        self.finalize = _printed
        self.filters["tojson"] = _to_json
        for name in REMOVED_FILTERS:
            del self.filters[name]
        self.filters = {name: _guarded(name, apply) for name, apply in self.filters.items()}
        self.filters |= {"__step__": _step, "__concat__": _concat, "__count__": _count}
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "namespace": PlainNamespace,
            "dict": PlainDict(),
        }

    def compile_template(self, source: str) -> jinja2.Template:
        """A template whose loops and macros count what they do."""
        tree = self.parse(source)
        repeated: list[nodes.For | nodes.Macro | nodes.CallBlock] = [*tree.find_all(nodes.For)]
        repeated += [*tree.find_all(nodes.Macro), *tree.find_all(nodes.CallBlock)]
        for body, lineno in [(node.body, node.lineno) for node in repeated]:
            length = sum(len(data.data) for child in body for data in child.find_all(nodes.TemplateData))
            step = _filter(nodes.Const(length, lineno=lineno, environment=self), "__step__")
            body.insert(0, nodes.Output([step], lineno=lineno, environment=self))
        return self.from_string(_Counted().visit(tree))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        BINOP_CHECKS[operator](left, right)
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in REMOVED_METHODS and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def formatted(*args: Any, **kwargs: Any) -> str:
            _braces(value.__self__, *args, **kwargs)
            return wrapped(*args, **kwargs)

        return formatted

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _budget.get().spend()
        if isinstance(__obj, BuiltinMethodType) and isinstance(__obj.__self__, str) and __obj.__name__ in METHOD_CHECKS:
            if __obj.__name__ == "join":
                args = tuple(list(parts) for parts in args)
            METHOD_CHECKS[__obj.__name__](__obj.__self__, *args, **kwargs)
        return _count(super().call(__context, __obj, *args, **kwargs))

"""What a function's signature asks for: its parameters, their types and defaults, and the types in words."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from litgpt.data import DataModule


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One argument of a command, or one field of a group."""

    name: str
    hint: Any
    default: Any = inspect.Parameter.empty

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def alternatives(self) -> tuple[Any, ...]:
        """The alternatives of a union, or the type alone, without None."""
        alternatives = typing.get_args(self.hint) if _is_union(self.hint) else (self.hint,)
        return tuple(alternative for alternative in alternatives if alternative is not NoneType)

    @property
    def group(self) -> type | None:
        """The dataclass whose fields are nested under this argument."""
        classes = (t for t in self.alternatives if isinstance(t, type))
        return next((t for t in classes if dataclasses.is_dataclass(t) and not self.is_data), None)

    @property
    def is_data(self) -> bool:
        """Takes the name of a data module."""
        return any(isinstance(t, type) and issubclass(t, DataModule) for t in self.alternatives)

    @property
    def is_class_spec(self) -> bool:
        """Takes the name of a class, or a dictionary with its `class_path` and `init_args`."""
        return {str, dict} <= {typing.get_origin(t) or t for t in self.alternatives}


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def parameters_of(function: Callable[..., Any]) -> dict[str, Parameter]:
    """The parameters of a function, or of a class's constructor, by name."""
    constructor = function.__init__ if isinstance(function, type) else function  # type: ignore[misc]
    hints = typing.get_type_hints(constructor)
    return {
        name: Parameter(name, hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }


def resolve_annotations(function: Callable[..., Any]) -> None:
    """Replaces a function's annotations that are texts by the types they name.

    Left as texts, the parser would evaluate them by running the module's `if TYPE_CHECKING:` blocks too, which import
    torch, and would take any value where one of them, or of a base class, needs such a name.
    """
    hints = typing.get_type_hints(function)
    for own in (function, inspect.unwrap(function)):  # of which the latter has the signature
        own.__annotations__ = hints


def has_result(command: Callable[..., Any]) -> bool:
    """Whether a command returns what it found, so that it can be printed as JSON."""
    return inspect.signature(command).return_annotation not in (None, NoneType, "None", inspect.Signature.empty)


def takes_anything(function: Callable[..., Any]) -> bool:
    """Whether the signature has `**kwargs`, so that no name can be called unknown."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def literals(hint: Any) -> list[Any]:
    """The values that a `Literal`, or a union with one, allows."""
    if typing.get_origin(hint) is Literal:
        return list(typing.get_args(hint))
    return [value for part in typing.get_args(hint) for value in literals(part)] if _is_union(hint) else []


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
    Path: "a path",
    dict: "a mapping",
    list: "a list",
    tuple: "a list",
}


def describe(hint: Any) -> str:
    """A type in words: `a whole number or null`."""
    if _is_union(hint):
        return " or ".join(describe(part) for part in typing.get_args(hint))
    if options := literals(hint):
        return f"one of {', '.join(map(str, options))}" if len(options) > 1 else str(options[0])
    origin = typing.get_origin(hint) or hint
    return _WORDS.get(origin, getattr(origin, "__name__", str(origin)))

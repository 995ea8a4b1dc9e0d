"""The arguments of a tool call as JSON text; those written as plain text get their types from the tool's schema."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

SURROGATE = re.compile("[\ud800-\udfff]")
MAX_DEPTH = 16
"""References and alternatives inside each other that are followed."""
EXACT = 2**53
"""Below it a float that is whole is one integer only."""
LITERALS = {"True": True, "False": False, "None": None}
"""How templates that print a value as Python does write what JSON writes in lower case."""


def arguments_text(arguments: Any) -> str:
    """A call's arguments as the text of a JSON object; none are an empty one.

    Half a character stays an escape, because no client could be sent it otherwise.

    Raises:
        ValueError: A number that JSON has no text for (NaN, 1e400).
        TypeError: They are no object.
    """
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise TypeError(arguments)
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    return SURROGATE.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


def typed(text: str, parameters: Any, key: str) -> Any:
    """The value that a model wrote as `text` for the parameter `key`.

    A string is the text, to the letter. Where the schema allows other types, the text is read as JSON (or as Python
    prints it) and counts if it is of one of them; where it says nothing, whatever reads as JSON is JSON.
    """
    kinds = _kinds(_property(parameters, key), parameters)
    if kinds == {"string"}:
        return text
    try:
        value = _read(text.strip())
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return text
    if kinds is None:
        return value
    if isinstance(value, float) and "integer" in kinds and "number" not in kinds:
        value = int(value) if value.is_integer() and abs(value) < EXACT else value
    if "string" in kinds and (isinstance(value, str) or not _kinds_of(value) & kinds):
        return text
    return value


def _read(text: str) -> Any:
    """A text as JSON, or as Python prints such a value."""
    if text in LITERALS:
        return LITERALS[text]
    try:
        value = json.loads(text)
    except ValueError:
        if text[:1] not in ("{", "["):
            raise
        with warnings.catch_warnings(action="ignore"):  # about escapes that Python doesn't know
            value = ast.literal_eval(text)
    json.dumps(value, allow_nan=False)  # which raises where JSON has no text for it
    return value


def _kinds_of(value: Any) -> set[str]:
    """The JSON types that a value has."""
    if isinstance(value, bool):
        return {"boolean"}
    if isinstance(value, int):
        return {"integer", "number"}
    names = {float: "number", str: "string", dict: "object", list: "array", tuple: "array"}
    return {names.get(type(value), "null")}


def _property(parameters: Any, key: str) -> Any:
    """The schema of a parameter; True where there is none."""
    for schema in _alternatives(parameters, parameters):
        properties = schema.get("properties")
        if isinstance(properties, Mapping) and key in properties:
            return properties[key]
    others = parameters.get("additionalProperties") if isinstance(parameters, Mapping) else None
    return others if isinstance(others, Mapping) else True


def _alternatives(schema: Any, root: Any, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """A schema, and those that it is put together from."""
    if isinstance(schema, Mapping) and depth < MAX_DEPTH:
        yield schema
        parts = [part for word in ("allOf", "anyOf", "oneOf") for part in _listed(schema.get(word))]
        for part in [_target(schema.get("$ref"), root), *parts]:
            yield from _alternatives(part, root, depth + 1)


def _kinds(schema: Any, root: Any, depth: int = 0) -> set[str] | None:
    """The JSON types that a schema allows; None: any."""
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return None
    found: set[str] | None = None
    given = schema.get("type")
    if isinstance(given, str) or _listed(given):
        found = {name for name in ([given] if isinstance(given, str) else _listed(given)) if isinstance(name, str)}
    elif "const" in schema or _listed(schema.get("enum")):
        values = [schema["const"]] if "const" in schema else _listed(schema["enum"])
        found = set().union(*map(_kinds_of, values))
    elif "$ref" in schema:
        found = _kinds(_target(schema["$ref"], root), root, depth + 1)
    elif options := _listed(schema.get("anyOf")) or _listed(schema.get("oneOf")):
        each = [_kinds(option, root, depth + 1) for option in options]
        found = None if None in each else set().union(*(kinds for kinds in each if kinds is not None))
    else:
        parts = (_kinds(part, root, depth + 1) for part in _listed(schema.get("allOf")))
        found = next((kinds for kinds in parts if kinds is not None), None)
    return found | {"null"} if found is not None and schema.get("nullable") is True else found


def _target(reference: Any, root: Any) -> Any:
    """What a reference inside a schema points to; None: nothing."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    found = root
    for name in reference.split("/")[1:]:
        found = found.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []

"""Whether what a file says is of the kind that a field of `Config` has."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that a field's annotation says; no bool is a number."""
    origin, choices = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in choices
    if origin is list:
        return isinstance(value, list) and all(fits(entry, choices[0]) for entry in value)
    if origin is dict:
        return isinstance(value, dict)
    if choices:
        return any(fits(value, choice) for choice in choices)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def as_number(value: Any) -> Any:
    """`1e-5` is a text to YAML, which wants a point in it."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value

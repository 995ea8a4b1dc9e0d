"""YAML that a command line names: a file, a URL, or the text itself."""

from __future__ import annotations

import urllib.request
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

from litgpt.cli.recipe_files import recipe_path
from litgpt.errors import LitGPTError, UsageError, quoted
from litgpt.reading import MAX_DEPTH, MAX_TEXT_BYTES, check_yaml

URL_TIMEOUT = 30.0
"""Seconds to wait for a `--config` that is a URL."""


def located(place: str) -> str:
    """Where a configuration lies: `place` itself, or the file of the recipe of that name where no such file is.

    Raises:
        UsageError: There is neither.
    """
    if is_url(place) or is_text(place) or Path(place).expanduser().exists():
        return place
    try:
        return str(recipe_path(place))
    except LitGPTError as error:
        raise UsageError(f"Cannot read the configuration {place}: No such file or directory. {error}") from None


def is_text(place: str) -> bool:
    """Whether a configuration is given as such, in place of a file."""
    return "\n" in place or place.lstrip().startswith("{")


def is_url(place: str) -> bool:
    """Whether a configuration is to be fetched."""
    return place.startswith(("http://", "https://"))


def read_config(place: str) -> str:
    """The text of a configuration: a file, a URL, or the text itself.

    Raises:
        UsageError: It cannot be read.
    """
    if not is_url(place) and is_text(place):
        return place
    try:
        with _opened(place) as file:
            content = file.read(MAX_TEXT_BYTES + 1)
        text = str(content, "utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        raise UsageError(f"Cannot read the configuration {place}: {reason}.") from error
    if len(content) > MAX_TEXT_BYTES:
        raise UsageError(f"The configuration {place} is larger than {MAX_TEXT_BYTES:,} bytes; give a file of options.")
    return text


def _opened(place: str) -> Any:
    return urllib.request.urlopen(place, timeout=URL_TIMEOUT) if is_url(place) else Path(place).expanduser().open("rb")


# The parser's own loader stumbles over some texts (`?`, `3:`, `2026-13-45`); they are plain text like others.
set_loader("yaml", get_loader("yaml"), exceptions=(yaml.YAMLError, TypeError, ValueError))


def load_yaml(text: str, where: str) -> Any:
    """The value of a YAML text, read as the parser reads it (`1e-4` is a number).

    Raises:
        UsageError: It is not YAML, nested too deeply, or its aliases stand for too much.
    """
    try:
        check_yaml(text)
        return get_loader("yaml")(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{where}:{line} is not valid YAML ({getattr(error, 'problem', error)}).") from error
    except TypeError as error:
        raise UsageError(f"{where}: {quoted(text)} is no value.") from error
    except RecursionError as error:
        raise UsageError(f"{where} is nested more than {MAX_DEPTH} levels deep; use fewer.") from error
    except ValueError as error:
        raise UsageError(f"{where}: {error}; write fewer of them.") from error

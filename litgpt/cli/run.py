"""Runs a command with its arguments; `--quiet` and `--json`, which mean the same for all of them, are read here."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from typing import Any

from litgpt.cli.parser import parse, reads_the_command_line
from litgpt.cli.signature import has_result
from litgpt.cli.words import split_output_flags
from litgpt.errors import QUIET, ChecksFailedError, UsageError


def run(name: str, target: str, arguments: Sequence[str]) -> None:
    """Parses `arguments` for the command `name` and calls its function, named `module:function` by `target`.

    Raises:
        UsageError: The command line cannot be understood.
    """
    module, function = target.split(":")
    command: Callable[..., Any] = getattr(import_module(module), function)
    rest, quiet, as_json = split_output_flags(arguments)
    if as_json and not has_result(command):
        raise UsageError(f"`litgpt {name}` has no --json; its results are files or text. See `litgpt {name} --help`.")
    with quietened(quiet):
        if not as_json or asks_for_help(rest):
            call(name, command, rest)
            return
        try:
            with redirect_stdout(sys.stderr):  # whatever the command prints besides
                result = call(name, command, rest)
        except ChecksFailedError as error:
            print(to_json(error.found))
            raise
        print(to_json(result))


def call(name: str, command: Callable[..., Any], arguments: Sequence[str]) -> Any:
    """What the command returns."""
    if reads_the_command_line(command):
        return command(*arguments)
    return command(**parse(name, command, arguments))


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether the command line is one that prints something else than the command's result, and ends."""
    return any(one in ("-h", "--help") or one.startswith("--print_config") for one in arguments)


@contextmanager
def quietened(quiet: bool) -> Iterator[None]:
    """While it is open, no progress is printed, by this process or one that it starts."""
    ours = {QUIET: "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} if quiet else {}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def to_json(found: Any) -> str:
    """What a command returned, as JSON that every reader takes: a number that is none (NaN) is null."""
    return json.dumps(plain(found), indent=2, ensure_ascii=False)


def plain(value: Any) -> Any:
    """A value in the types of JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)

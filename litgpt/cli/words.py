"""The words of a command line: flags with their values, and the flags that every command has."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

BOOLEANS = ("true", "false", "yes", "no", "null")
"""What may stand behind a switch."""


def split_flags(
    arguments: Sequence[str], is_switch: Callable[[str], bool], takes_words: bool
) -> Iterator[tuple[str, str | None, list[str]]]:
    """Each flag (without its dashes) with its value and its tokens; `("", None, [token])` for anything else.

    Args:
        arguments: The command line.
        is_switch: Whether a flag takes true or false; alone, it means true.
        takes_words: Whether what stands behind a switch may be for itself.
    """
    tokens = list(arguments)
    while tokens:
        token = tokens.pop(0)
        if token == "--":
            yield "", None, [token, *tokens]
            return
        if not token.startswith("--"):
            yield "", None, [token]
            continue
        flag, has_value, value = token[2:].partition("=")
        if has_value:
            yield flag, value, [token]
        elif is_switch(flag) and (
            not tokens or tokens[0].startswith("--") or (takes_words and not is_boolean(tokens[0]))
        ):
            yield flag, "true", [f"{token}=true"]
        elif flag not in ("help", "print_config") and tokens and not tokens[0].startswith("--"):
            yield flag, tokens[0], [token, tokens.pop(0)]
        else:
            yield flag, None, [token]


def is_boolean(word: str) -> bool:
    """Whether a word says true or false."""
    return word.lower() in BOOLEANS


def looks_like_flag(token: str) -> bool:
    """Whether a token that does not start with two dashes is meant as a flag: `-x`, but not `-1`, `-` or `-h`."""
    return re.fullmatch(r"-[^\d.-].*", token) is not None and token != "-h"


def split_output_flags(arguments: Sequence[str]) -> tuple[list[str], bool, bool]:
    """The command line without `--quiet` and `--json`, and whether these were there."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    before, behind = arguments[:end], arguments[end:]
    rest = [argument for argument in before if argument not in ("--quiet", "--json")]
    return [*rest, *behind], "--quiet" in before, "--json" in before

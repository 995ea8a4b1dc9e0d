"""What `litgpt COMMAND --help` prints: one paragraph, an example, and every flag with its kind and default in words."""

from __future__ import annotations

import inspect
import json
import re
import shutil
import textwrap
import typing
from argparse import SUPPRESS, Action
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import NoneType
from typing import Any

from jsonargparse import ArgumentParser

from litgpt.cli.signature import Parameter, has_result, literals, parameters_of

INDENT, COLUMN, WIDEST, NARROWEST = 2, 30, 110, 50
"""Spaces before a flag; the column of what it does; the widest and the narrowest text."""
SHARED = 4
"""So many flags that begin with the same word stand under a heading of their own."""
KINDS = {bool: "true|false", int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH", list: "LIST", tuple: "LIST"}
OWN = {
    "help": ("-h, --help", "Show this help and exit."),
    "config": (
        "--config FILE",
        "A YAML file or its URL, with any of the arguments; or a recipe (`litgpt recipes`).",
    ),
    "nanogpt_config": (
        "--nanogpt_config FILE",
        "A configuration file of nanoGPT's (config/train_gpt2.py), read as text; flags after it change what it says.",
    ),
    "print_config": (
        "--print_config",
        "Print the configuration that all other arguments make, and exit; =skip_default prints what differs.",
    ),
}
"""The flags that every command's parser has, and one of pretraining."""
OUTPUT = {
    "quiet": ("--quiet", "Print no progress, results and warnings alone."),
    "json": ("--json", "Print the result as JSON, and nothing else on the standard output."),
}
"""The flags that are read before a command's parser; the second is for commands that return something."""
LONGEST_CHOICE = 34
"""Characters of choices that stand beside their flag; more are told in what it does."""


def help_text(name: str, parser: ArgumentParser, command: Callable[..., Any]) -> str:
    """The help of a command, within the terminal's width.

    Args:
        name: The command's, without `litgpt`.
        parser: It has the flags, in groups.
        command: Its docstring's first paragraph says what it does; a part `Example:` shows how.
    """
    width = max(NARROWEST, min(WIDEST, shutil.get_terminal_size().columns))
    parameters = parameters_of(command)
    needed = [parameter.name.upper() for parameter in parameters.values() if parameter.required]
    usage = " ".join(("usage:", "litgpt", name, *needed, "[options]"))
    parts = [
        usage if len(usage) <= width else f"usage: litgpt {name} ARGUMENTS [options]",
        "\n".join(_filled(parser.description or "", width, "", "")),
    ]
    if example := example_of(command):
        parts.append("\n".join(("Example:", *(_wrapped(line, width) for line in example.splitlines()))))
    for title, actions in _sections(parser):
        rows = [_row(action, parameters, width) for action in actions]
        if title == "Options":
            rows += [_line(left, text, width) for left, text in output_flags(command)]
        parts.append("\n".join((f"{title}:", *rows)))
    if parser.epilog:
        parts.append("\n".join(_filled(parser.epilog, width, "", "")))
    return "\n\n".join(parts) + "\n"


def example_of(command: Callable[..., Any]) -> str:
    """The command lines in the part `Example:` of a docstring; empty where there is none."""
    found = re.search(r"^Example:\n((?:[ ]+.*\n?|\n)+)", inspect.getdoc(command) or "", re.MULTILINE)
    return textwrap.dedent(found[1]).strip() if found else ""


def _wrapped(line: str, width: int) -> str:
    """A command line, over several lines where it is longer than `width`; flags stay beside their values."""
    kept = re.sub(r'(--\S+) (?!-)|(?<=\w) (?=[^"]*"$)', lambda at: f"{at[1] or ''}\N{NO-BREAK SPACE}", line)
    lines = _filled(kept, width - 2, " " * INDENT, " " * 3 * INDENT)
    return " \\\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def _filled(text: str, width: int, first: str, margin: str) -> list[str]:
    """Lines of `text` after a margin, broken at spaces alone."""
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=margin, break_long_words=False, break_on_hyphens=False
    )


def _sections(parser: ArgumentParser) -> Iterator[tuple[str, list[Action]]]:
    """Headings, each with its flags: those of a group, and those of the command that begin alike."""
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help != SUPPRESS]
        if not actions:
            continue
        if not actions[0].option_strings:
            yield "Arguments", actions
        elif group.title == "options":
            common = [action for action in actions if len(_alike(action, actions)) < SHARED]
            yield "Options", common
            for action in actions:
                alike = _alike(action, actions)
                if len(alike) >= SHARED and action is alike[0]:
                    yield f"--{_word(action)}_*", alike
        else:
            yield f"{group.title} (--{_head(actions[0])}.*)", actions


def _head(action: Action) -> str:
    return action.dest.partition(".")[0]


def _word(action: Action) -> str:
    return action.dest.partition("_")[0]


def _alike(action: Action, actions: Iterable[Action]) -> list[Action]:
    """The flags that begin with the same word."""
    return [other for other in actions if "_" in other.dest and _word(other) == _word(action)]


def _row(action: Action, parameters: dict[str, Parameter], width: int) -> str:
    """A flag, what it takes, and what it does."""
    hint = getattr(action, "_typehint", None)
    kind, choices = kind_of(hint)
    words = [" ".join((action.help or "").replace("%%", "%").split())]
    if not action.option_strings:
        left = action.dest.upper()
    elif action.dest in parameters and hint is None:  # a group
        left, words = f"--{action.dest} FILE", ["A YAML file with these."]
    elif action.dest in OWN:
        left, *words = OWN[action.dest]
    elif action.dest.endswith(".help"):
        left, words = f"--{action.dest} NAME", ["Show the arguments of one and exit."]
    else:
        left = f"{action.option_strings[0]} {kind}".rstrip()
    if not all(choice in words[0] for choice in choices):
        words.append(f"One of {', '.join(choices)}.")
    if action.default not in (None, SUPPRESS, inspect.Parameter.empty):
        words.append(f"(default: {_shown(action.default)})")
    return _line(left, " ".join(filter(None, words)), width)


def output_flags(command: Callable[..., Any]) -> list[tuple[str, str]]:
    """The flags of `OUTPUT` that a command takes, with what they do."""
    return [row for name, row in OUTPUT.items() if name != "json" or has_result(command)]


def _line(left: str, words: str, width: int) -> str:
    """A flag and what it does, beside each other where there is room."""
    text = "\n".join(_filled(words, width, " " * COLUMN, " " * COLUMN))
    left = " " * INDENT + left
    return f"{left:<{COLUMN}}{text.lstrip()}".rstrip() if len(left) < COLUMN else f"{left}\n{text}".rstrip()


def kind_of(hint: Any) -> tuple[str, list[str]]:
    """What stands for the value of a flag (`INT`, `auto|PATH`), and choices too many to stand there."""
    if hint is None:
        return "", []
    parameter = Parameter("", hint)
    if parameter.is_data or parameter.is_class_spec:
        return "NAME", []
    options = [str(option) for option in literals(hint) if option is not None]
    others = [part for part in parameter.alternatives if not literals(part) and part is not NoneType]
    kinds = ["FILE" if parameter.group else KINDS.get(typing.get_origin(part) or part, "YAML") for part in others]
    if len("|".join(options)) > LONGEST_CHOICE:
        return "|".join(dict.fromkeys(("NAME", *kinds))), options
    return "|".join(dict.fromkeys((*options, *kinds))), []


def _shown(default: Any) -> str:
    """A default as it would stand on the command line."""
    if isinstance(default, bool | list | tuple | dict):
        return json.dumps(default, default=str)
    return str(default)

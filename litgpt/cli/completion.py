"""`litgpt completion`: the script by which a shell completes commands, flags and the choices of flags."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Literal

import shtab

from litgpt import data
from litgpt.cli.commands import COMMANDS
from litgpt.cli.help import kind_of, output_flags
from litgpt.cli.parser import build_parser, reads_the_command_line


def completion(shell: Literal["bash", "zsh", "fish", "tcsh", "powershell"] = "bash") -> None:
    """Print the script by which a shell completes litgpt's commands and flags.

    Args:
        shell: The shell that is to read it.

    Example:
        source <(litgpt completion)
        litgpt completion --shell fish > ~/.config/fish/completions/litgpt.fish
    """
    print(shtab.complete(outline(), shell))


def outline() -> argparse.ArgumentParser:
    """All commands with their flags, as plain as a completion needs them."""
    root = argparse.ArgumentParser(prog="litgpt")
    root.add_argument("--version", action="store_true")
    commands = root.add_subparsers()
    parsers: dict[str, argparse.ArgumentParser] = {}
    below: dict[str, argparse._SubParsersAction[argparse.ArgumentParser]] = {}
    for name, (target, summary) in COMMANDS.items():
        first, _, second = name.partition(" ")
        if first not in parsers:
            parsers[first] = commands.add_parser(first, help=summary)
        if second and first not in below:
            below[first] = parsers[first].add_subparsers()
        _add_flags(below[first].add_parser(second, help=summary) if second else parsers[first], name, target)
    return root


def _add_flags(outlined: argparse.ArgumentParser, name: str, target: str) -> None:
    """Gives a parser the flags of a command, with what their values are chosen among."""
    module, function = target.split(":")
    command = getattr(import_module(module), function)
    for flag, summary in output_flags(command):
        outlined.add_argument(flag, action="store_true", help=summary)
    if reads_the_command_line(command):
        return
    for action in build_parser(name, command)._actions:
        if action.dest == "help":
            continue
        kind, choices = kind_of(getattr(action, "_typehint", None))
        values = list(data.MODULES) if action.dest == "data" else choices
        values = values or [word for word in kind.split("|") if not word.isupper()]
        flag = action.option_strings[0] if action.option_strings else action.dest
        summary = (action.help or "").partition(". ")[0].replace("%", "%%")
        added = outlined.add_argument(flag, help=summary, choices=values or None)
        if "PATH" in kind or "FILE" in kind or action.dest == "config":
            added.complete = shtab.FILE  # type: ignore[attr-defined]

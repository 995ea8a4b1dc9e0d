"""What `--help` prints, and what a shell completes."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest

from litgpt.cli.commands import COMMANDS
from litgpt.cli.completion import completion
from litgpt.cli.help import example_of
from litgpt.cli.parser import CommandLine, build_parser, reads_the_command_line
from litgpt.cli.signature import parameters_of


def command_of(name: str) -> Callable[..., Any]:
    """The function of a command."""
    module, function = COMMANDS[name][0].split(":")
    command: Callable[..., Any] = getattr(import_module(module), function)
    return command


PARSED = [name for name in COMMANDS if not reads_the_command_line(command_of(name))]


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("name", PARSED)
def test_help_is_in_words_and_within_the_terminal(name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    command = command_of(name)
    text = build_parser(name, command).format_help()
    usage, paragraph, example = text.split("\n\n")[:3]
    assert usage.startswith(f"usage: litgpt {name} ") and "\n" not in usage
    assert " ".join(paragraph.split()) == " ".join((inspect.getdoc(command) or "").partition("\n\n")[0].split())
    assert example.startswith("Example:\n")
    assert not re.search(r"<class|Optional\[|Union\[|Literal\[|NoneType|PosixPath|=SUPPRESS=", text)
    longest = max(len(word) for word in text.split())  # choices of a flag aren't broken
    assert all(len(line) <= max(width, longest + 35) for line in text.splitlines())


@pytest.mark.parametrize("name", PARSED)
def test_every_flag_and_every_word_of_its_meaning_is_in_the_help(name: str) -> None:
    command = command_of(name)
    words = build_parser(name, command).format_help().split()
    for parameter in parameters_of(command).values():
        shown = parameter.name.upper() if parameter.required else f"--{parameter.name}"
        assert shown in words
        spread = parameter.group if parameter.group is parameter.hint else None  # one that may be null is one flag
        for nested in parameters_of(spread) if spread else ():
            assert f"--{parameter.name}.{nested}" in words


@pytest.mark.parametrize("name", PARSED)
def test_the_example_is_one_that_the_command_understands(name: str) -> None:
    lines = [line for line in example_of(command_of(name)).splitlines() if line.startswith("litgpt ")]
    assert lines or name == "completion"
    for line in lines:
        _, *words = shlex.split(line.partition(" > ")[0])
        used = max((other for other in COMMANDS if f"{line} ".startswith(f"litgpt {other} ")), key=len)
        arguments = words[len(used.split()) :]
        parameters = parameters_of(command_of(used))
        CommandLine(used, parameters).prepare(arguments)
        needed = sum(parameter.required for parameter in parameters.values())
        assert sum(not word.startswith("--") for word in arguments) >= needed
    assert any(line.startswith(f"litgpt {name}") for line in lines) or name == "finetune"


def test_bash_completes_commands_flags_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    completion()
    script = capsys.readouterr().out
    (function,) = re.findall(r"^complete .*-F (\w+) litgpt$", script, re.MULTILINE)
    bash = shutil.which("bash")
    assert bash

    def completed(*words: str) -> list[str]:
        typed = " ".join(map(shlex.quote, words))
        ask = f'COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; {function} 2>/dev/null; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run([bash, "-c", f"{script}\n{ask}"], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert set(completed("litgpt", "finetune_")) == {name for name in COMMANDS if name.startswith("finetune_")}
    assert completed("litgpt", "data", "prev") == ["preview"]
    assert "--lora_rslora" in completed("litgpt", "finetune_lora", "--lora_rs")
    assert completed("litgpt", "finetune_lora", "--data", "Alpaca2") == ["Alpaca2k"]
    assert completed("litgpt", "finetune_lora", "--train.lr_schedule", "cos") == ["cosine"]

"""`~` is the user's folder in every path, in a flag as well as in YAML."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from litgpt.__main__ import COMMANDS
from litgpt.cli.parser import parse
from litgpt.cli.signature import parameters_of


def paths_of(name: str) -> list[str]:
    """The flags of a command that take a path, those of its groups and of a data module too."""
    command = command_of(name)
    found = []
    for flag, parameter in parameters_of(command).items():
        if Path in parameter.alternatives:
            found.append(flag)
        if parameter.group:
            nested = parameters_of(parameter.group)
            found += [f"{flag}.{field}" for field, inner in nested.items() if Path in inner.alternatives]
    return found


def command_of(name: str) -> Callable[..., Any]:
    module, function = str(COMMANDS[name][0]).split(":")
    return getattr(import_module(module), function)


PATHS = [
    (name, flag)
    for name, (target, _) in COMMANDS.items()
    if target and name not in ("plan",)
    for flag in paths_of(name)
]


@pytest.mark.parametrize(("name", "flag"), PATHS)
@pytest.mark.parametrize("by", ["flag", "yaml"])
def test_every_path_may_begin_at_the_users_home(name, flag, by, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    parameters = parameters_of(command_of(name))
    required = {p: "x" for p, parameter in parameters.items() if parameter.required}
    required |= {flag: "~/a b"} if flag in required else {}
    arguments = list(required.values())
    if flag not in required:
        (tmp_path / "recipe.yaml").write_text(f"{flag}: ~/a b\n")
        arguments += [f"--{flag}=~/a b"] if by == "flag" else ["--config", "~/recipe.yaml"]
    values = parse(name, command_of(name), arguments)
    assert values[flag] == tmp_path / "a b"


@pytest.mark.parametrize(
    ("data", "argument"),
    [
        ("JSON", "json_path"),
        ("Conversations", "path"),
        ("Conversations", "val_path"),
        ("TextFiles", "train_data_path"),
        ("TextFiles", "cache_dir"),
        ("LitData", "data_path"),
        ("Alpaca", "download_dir"),
        ("TokenFiles", "data_path"),
        ("OpenWebText", "data_path"),
    ],
)
def test_a_data_modules_paths_may_too(data, argument, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    required = {"JSON": ["--data.json_path=x"], "TextFiles": ["--data.train_data_path=x"]}.get(data, [])
    given = [flag for flag in required if not flag.startswith(f"--data.{argument}=")]
    if data == "Conversations" and argument != "path":
        given.append("--data.path=x")
    values = parse(
        "finetune_lora", command_of("finetune_lora"), ["m", "--data", data, *given, f"--data.{argument}=~/a"]
    )
    assert str(getattr(values["data"], argument)) == str(tmp_path / "a")


def test_a_mixtures_sources_may_too_and_texts_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recipe.yaml").write_text(
        "data:\n  class_path: Mixture\n  init_args:\n    sources: [{path: ~/a.jsonl}]\n"
    )
    values = parse("finetune_lora", command_of("finetune_lora"), ["m", "--config", str(tmp_path / "recipe.yaml")])
    assert str(values["data"].modules[0].path) == str(tmp_path / "a.jsonl")
    values = parse("generate", command_of("generate"), ["m", "--prompt", "~/is a home"])
    assert values["prompt"] == "~/is a home"

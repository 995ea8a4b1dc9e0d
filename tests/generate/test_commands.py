"""The commands that make text have LitGPT's flags, with its types and defaults."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import typing
from pathlib import Path
from types import NoneType

import pytest

from litgpt.__main__ import target_of
from tests.paths import GOLDEN

TABLE = json.loads((GOLDEN / "commands.json").read_text())
COMMANDS = [name for name in TABLE if name.startswith(("generate", "chat"))]
MENDED = {("generate_full", "finetuned_path"): "out/finetune/full/final/lit_model.pth"}
"""What LitGPT's own finetuning doesn't write to."""


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_are_litgpts(name):
    module, _, function = target_of(name).partition(":")
    command = getattr(importlib.import_module(module), function)
    flags, hints = inspect.signature(command).parameters, typing.get_type_hints(command)
    golden = TABLE[TABLE[name]] if isinstance(TABLE[name], str) else TABLE[name]
    assert [flag for flag in flags if flag in golden] == list(golden)
    for flag, (kind, *default) in golden.items():
        if default:
            found = flags[flag].default
            wanted = MENDED.get((name, flag), default[0])
            assert (str(found) if isinstance(found, Path) else found) == wanted, flag
        else:
            assert flags[flag].default is inspect.Parameter.empty, flag
        parts = typing.get_args(hints[flag]) or (hints[flag],)
        if "Literal" in kind:
            choices = {choice for part in parts for choice in typing.get_args(part)}
            assert choices >= set(re.findall(r"'([^']+)'", kind))
        else:
            assert {"None" if part is NoneType else part.__name__ for part in parts} == set(kind.split(" | ")), flag

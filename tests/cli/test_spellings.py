"""A flag spelled as another tool has it leads to ours."""

from __future__ import annotations

import inspect

import pytest
import torch
import yaml

from litgpt import pretrain
from litgpt.cli.parser import ADAMW_RATE, CommandLine
from litgpt.cli.signature import parameters_of
from litgpt.cli.spellings import ELSEWHERE
from litgpt.errors import UsageError
from litgpt.finetune import full, lora
from litgpt.generate import base as generate

COMMANDS = {
    "finetune_lora": lora.setup,
    "finetune_full": full.setup,
    "pretrain": pretrain.setup,
    "generate": generate.main,
}


@pytest.fixture(params=COMMANDS)
def command_line(request: pytest.FixtureRequest) -> CommandLine:
    return CommandLine(request.param, parameters_of(COMMANDS[request.param]))


def foreign(command_line: CommandLine) -> dict[str, set[str]]:
    """Spellings of other tools → the flags of the command that they may mean."""
    meant: dict[str, set[str]] = {}
    for ours, names in ELSEWHERE.items():
        for name in names.split() if ours in command_line else ():
            if name not in command_line.parameters:
                meant.setdefault(name, set()).add(ours)
    return meant


def named(sentence: str, flags: set[str]) -> bool:
    return any(f"Here it is --{flag}." in sentence or f"{flag} is given without a flag" in sentence for flag in flags)


def test_every_spelling_leads_to_a_flag_of_the_command(command_line: CommandLine) -> None:
    for name, flags in foreign(command_line).items():
        for typed in (name, name.replace("_", "-"), name.upper(), f"train.{name}"):
            if typed not in command_line:
                with pytest.raises(UsageError) as caught:
                    command_line.prepare(["model", f"--{typed}", "1"])
                assert named(str(caught.value), flags), (typed, flags, str(caught.value))


def test_every_flag_is_known_with_hyphens_and_capitals(command_line: CommandLine) -> None:
    for flag in command_line.known_flags:
        for typed in (flag.replace("_", "-"), flag.replace(".", "_"), flag.title()):
            if typed != flag:
                with pytest.raises(UsageError, match=f"Here it is --{flag}"):
                    command_line.prepare(["model", f"--{typed}", "1"])


def test_keys_of_a_configuration_are_spelled_likewise(command_line: CommandLine) -> None:
    for name, flags in foreign(command_line).items():
        for content in ({name: 1}, {"train": {name: 1}}):
            if name not in command_line and f"train.{name}" not in command_line and "train" in command_line:
                with pytest.raises(UsageError) as caught:
                    command_line.read_config(yaml.safe_dump(content), "run.yaml")
                assert any(f"Here it is {flag}." in str(caught.value) for flag in flags), (content, str(caught.value))


@pytest.mark.parametrize("name", ["learning_rate", "learning-rate", "wd", "adam_beta1"])
def test_arguments_of_the_optimizer_too(name: str) -> None:
    command_line = CommandLine("pretrain", parameters_of(pretrain.setup))
    with pytest.raises(UsageError, match=r"Here it is --optimizer\.(lr|weight_decay|betas)"):
        command_line.prepare(["model", f"--optimizer.{name}", "1"])


def test_the_learning_rate_that_is_shown_is_the_one_that_counts() -> None:
    assert inspect.signature(torch.optim.AdamW).parameters["lr"].default == ADAMW_RATE
    for command in (lora.setup, full.setup, pretrain.setup):
        assert f"--optimizer.lr (AdamW's default: {ADAMW_RATE})" in str(command.__doc__)

"""Every name that a user may misspell is told with the ones that are near."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from litgpt.__main__ import target_of
from litgpt.chat.session import SETTINGS, ChatSession
from litgpt.chat.terminal import COMMANDS as CHAT_COMMANDS
from litgpt.chat.terminal import Terminal
from litgpt.checkpoint.dtypes import WEIGHT_BYTES, check_dtype
from litgpt.cli import plan
from litgpt.cli.commands import COMMANDS
from litgpt.cli.parser import CommandLine, import_data_class, parse, reads_the_command_line
from litgpt.cli.recipe_files import recipe_names, recipe_path
from litgpt.cli.signature import Parameter, literals, parameters_of
from litgpt.config import Config, name_to_config
from litgpt.data import MODULES
from litgpt.errors import LitGPTError
from litgpt.eval.built_in import TASKS, split_tasks
from litgpt.eval.evaluate import DTYPES, open_model
from litgpt.families import BY_NAME
from litgpt.lora import LoRA
from litgpt.peft.lora import INITS
from litgpt.prompts import PromptStyle
from litgpt.prompts.base import prompt_styles
from litgpt.quantize.model import MODES, check_quantization
from litgpt.runtime import DEVICES, PRECISIONS, parameter_dtype, pick_device
from litgpt.training.metrics.loggers import LOGGERS, named_loggers
from litgpt.training.optim.optimizers import check_optimizer


def misspelt(name: str) -> str:
    """With its middle letter twice, or another one where that is a name too."""
    middle = len(name) // 2
    return name[:middle] + name[middle - 1] + name[middle:] if len(name) > 2 else name + name[-1]


def flags_of(command: str) -> Iterator[tuple[str, Callable[[str], Any]]]:
    """Every 29th flag of a command, as a flag and as a key of YAML."""
    module, function = COMMANDS[command][0].split(":")
    called = getattr(import_module(module), function)
    if reads_the_command_line(called):
        return
    parameters = parameters_of(called)
    line = CommandLine(command, parameters)
    flags = line.known_flags

    def as_flag(flag: str) -> None:
        line.prepare([f"--{flag}", "1"])

    def as_key(flag: str) -> None:
        head, _, rest = flag.partition(".")
        line.read_config(f"{head}: {{{rest}: 1}}" if rest else f"{head}: 1", "my.yaml")

    for flag in flags[::29]:
        yield flag, as_flag
        yield flag.rpartition(".")[2], lambda key, flag=flag: as_key(f"{flag.rpartition('.')[0]}.{key}".strip("."))  # type: ignore[misc]


def choices_of(command: str, seen: set[str]) -> Iterator[tuple[str, Callable[[str], Any]]]:
    """The last choice of each flag that has some, and was not seen before."""
    module, function = COMMANDS[command][0].split(":")
    called = getattr(import_module(module), function)
    if reads_the_command_line(called):
        return
    parameters = parameters_of(called)
    needed = ["x" for parameter in parameters.values() if parameter.required]
    groups = {f"{name}.": parameters_of(one.group) for name, one in parameters.items() if one.group}
    every: dict[str, Parameter] = dict(parameters)
    for above, fields in groups.items():
        every |= {f"{above}{name}": field for name, field in fields.items()}
    for flag, parameter in every.items():
        texts = [one for one in literals(parameter.hint) if isinstance(one, str)]
        key = f"{flag} {texts}"
        if parameter.required or {str, Path} & set(parameter.alternatives) or key in seen:
            continue  # any text will do, or it was tried
        if texts and len(texts[-1]) > 3:
            seen.add(key)
            yield (
                texts[-1],
                lambda given, flag=flag: parse(command, called, [*needed, f"--{flag}", given]),  # type: ignore[misc]
            )


def obey(name: str) -> None:
    """A chat's command; what it answers is raised."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("litgpt.chat.terminal.print_status", said.append)
        Terminal.obey(Terminal.__new__(Terminal), name, "")
    raise LitGPTError(" ".join(said))


def evaluated_as(dtype: str) -> None:
    flags = dict.fromkeys(("model_name", "api_key", "access_token", "device", "quantize"))
    open_model({**flags, "checkpoint_dir": "tests", "dtype": dtype}, 1)


TABLES: dict[str, tuple[Iterable[str], Callable[[str], Any]]] = {
    "commands": (COMMANDS, target_of),
    "planned commands": (plan.COMMANDS, lambda name: plan.plan(name)),
    "recipes": (recipe_names(), recipe_path),
    "data modules": (MODULES, import_data_class),
    "models": (list(name_to_config)[::20], Config.from_name),
    "families": (list(BY_NAME)[::6], lambda name: Config(family_name=name).family),
    "prompt styles": (prompt_styles, PromptStyle.from_name),
    "tasks": (TASKS, lambda name: split_tasks(f"{name}:x")),
    "precisions": (PRECISIONS, parameter_dtype),
    "devices": (DEVICES, pick_device),
    "quantizers": (MODES, lambda name: check_quantization(name, torch.device("cpu"), torch.float32)),
    "dtypes": (WEIGHT_BYTES, check_dtype),
    "dtypes of evaluate": (DTYPES, evaluated_as),
    "loggers": (LOGGERS, lambda name: named_loggers(name, None, None)),  # type: ignore[arg-type]
    "optimizers": (["AdamW", "Adafactor", "RMSprop"], check_optimizer),
    "starts of LoRA": (INITS, lambda name: LoRA(init=name)),
    "chat commands": ([entry.split()[0] for entry in CHAT_COMMANDS], obey),
    "chat settings": (SETTINGS, lambda name: ChatSession.set(None, name, "1")),  # type: ignore[arg-type]
}
"""What has names → the names, and what takes one."""


def check(name: str, take: Callable[[str], Any]) -> str | None:
    """What is wrong with the sentence about a misspelt name; None: nothing."""
    wrong = misspelt(name)
    try:
        take(wrong)
    except LitGPTError as error:
        said = str(error)
    else:
        return f"{wrong} is taken"
    named = said.partition("Closest: ")[2] or said.partition("Here it is ")[2]
    return None if name.rpartition(".")[2].lower() in named.lower() else f"{wrong}: {said}"


@pytest.mark.parametrize("table", TABLES)
def test_a_misspelt_name_is_told_with_the_closest(table: str) -> None:
    names, take = TABLES[table]
    assert [wrong for name in names if (wrong := check(name, take))] == []


def test_a_misspelt_flag_key_or_choice_is_told_with_the_closest() -> None:
    seen: set[str] = set()
    wrong = [
        f"{command}: {found}"
        for command in COMMANDS
        for name, take in (*flags_of(command), *choices_of(command, seen))
        if (found := check(name, take))
    ]
    assert wrong == [] and len(seen) > 10

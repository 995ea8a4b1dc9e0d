"""Commands of which the method that they train by is an option."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from inspect import Signature
from typing import Any

from litgpt.args import arguments_of
from litgpt.errors import UsageError
from litgpt.finetune.base import FinetuneArguments, finetune
from litgpt.peft import Method
from litgpt.peft.named import named_method


def finetune_by_method(
    command: Callable[..., None],
    given: Mapping[str, Any],
    kind: type[FinetuneArguments],
    **parts: Callable[[Mapping[str, Any]], Any],
) -> None:
    """Runs a command by the method that `--method` names; an optimizer without a class is AdamW.

    Args:
        command: Its `setup`.
        given: The `locals()` of that.
        kind: What its arguments become.
        parts: Further fields of these, each made of all arguments.

    Raises:
        LitGPTError: An argument, a file or the data is wrong.
    """
    arguments = arguments_of(command, given)
    optimizer = arguments["optimizer"]
    if isinstance(optimizer, dict) and "class_path" not in optimizer:
        arguments["optimizer"] = {"class_path": "AdamW", "init_args": optimizer}
    made = {name: make(arguments) for name, make in parts.items()}
    method, arguments = chosen_method(arguments["method"], arguments, inspect.signature(command))
    finetune(method, arguments, kind, **made)


def chosen_method(name: str, arguments: Mapping[str, Any], signature: Signature) -> tuple[Method, dict[str, Any]]:
    """The method of that name, and the arguments without LoRA's.

    Args:
        name: As `--method` gives it.
        arguments: Of the command.
        signature: The command's, for what the defaults are.

    Raises:
        LitGPTError: An argument is none of this method.
    """
    of_lora = [key for key in arguments if key.startswith("lora_")]
    defaults = signature.parameters
    if name != "lora" and (moved := [key for key in of_lora if arguments[key] != defaults[key].default]):
        raise UsageError(f"--{moved[0]} is for --method lora, and this one is {name}; leave it out.")
    if name == "full" and arguments["quantize"] is not None:
        raise UsageError("--quantize keeps frozen weights in few bits, and --method full trains them; leave it out.")
    return named_method(name, arguments), {key: value for key, value in arguments.items() if key not in of_lora}

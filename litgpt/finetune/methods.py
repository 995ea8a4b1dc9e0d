"""The method that a command trains by, where it is an option of the command."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Signature
from typing import Any

from litgpt.errors import UsageError
from litgpt.peft import Method
from litgpt.peft.named import named_method


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

"""Methods by name, from the arguments of a command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from litgpt.peft.adapter import Adapter
from litgpt.peft.adapter_v2 import AdapterV2
from litgpt.peft.lora import LoRA
from litgpt.peft.method import Full, Method

METHODS: dict[str, type[Method]] = {"lora": LoRA, "full": Full, "adapter": Adapter, "adapter_v2": AdapterV2}


def named_method(name: str, arguments: Mapping[str, Any]) -> Method:
    """The method of that name; LoRA's settings are the arguments that begin with `lora_`.

    Raises:
        LitGPTError: One of them is wrong.
    """
    own = {key.removeprefix("lora_"): value for key, value in arguments.items() if key.startswith("lora_")}
    return METHODS[name](**own) if name == "lora" else METHODS[name]()

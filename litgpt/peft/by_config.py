"""LitGPT's way to LoRA and adapters in Python: a `Config` that holds the method's settings too, and a `GPT` made of it.

    model = litgpt.lora.GPT.from_name("pythia-160m", lora_r=8, lora_query=True, lora_value=True)
    litgpt.lora.mark_only_lora_as_trainable(model)

The models are the plain one with the method attached; they load the checkpoints of the plain one as well as their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from litgpt.config import Config
from litgpt.errors import UnsupportedError, quoted
from litgpt.model import GPT
from litgpt.peft.adapter import Adapter, PromptedAttention
from litgpt.peft.adapter_v2 import AdapterV2
from litgpt.peft.lora import SWITCHES, LoRA
from litgpt.peft.lora_layers import LoRALinear
from litgpt.peft.method import Method, Wrapped, base_name, freeze_others, unwrap_modules


@dataclass
class LoRAConfig(Config):
    """A model with LoRA; no layer has an update where `lora_r` is 0 or all switches are off."""

    lora_r: int = 0
    lora_alpha: int = 1
    lora_dropout: float = 0.0
    lora_query: bool = False
    lora_key: bool = False
    lora_value: bool = False
    lora_projection: bool = False
    lora_mlp: bool = False
    lora_head: bool = False

    def method(self) -> LoRA | None:
        """What is attached to the model."""
        switches = {name: getattr(self, f"lora_{name}") for name in SWITCHES}
        if not self.lora_r or not any(switches.values()):
            return None
        return LoRA(r=self.lora_r, alpha=self.lora_alpha, dropout=self.lora_dropout, **switches)


@dataclass
class AdapterConfig(Config):
    """A model with learned prompts."""

    adapter_prompt_length: int = 10
    adapter_start_layer: int = 2

    def method(self) -> Method | None:
        """What is attached to the model."""
        return Adapter(self.adapter_prompt_length, self.adapter_start_layer)


@dataclass
class AdapterV2Config(AdapterConfig):
    """A model with learned prompts, norms, and a scale and a bias on every linear layer."""

    def method(self) -> Method | None:
        return AdapterV2(self.adapter_prompt_length, self.adapter_start_layer)


class AttachedGPT(GPT):
    """A model with what its configuration's method attaches; all of it trains until something is frozen."""

    config: LoRAConfig | AdapterConfig

    def __init__(self, config: LoRAConfig | AdapterConfig) -> None:
        super().__init__(config)
        method = config.method()
        if method is not None:
            method.attach(self)
            self.requires_grad_(True)
        # `Trainer.init_module(empty_init=True)` leaves everything as it lies in memory, which is for what a checkpoint
        # fills; what is attached is in no checkpoint.
        with torch._C.DisableTorchFunction():
            for module in self.modules():
                if isinstance(module, Wrapped | PromptedAttention):
                    module.reset_parameters()  # type: ignore[operator]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.state_dict():
            base = prefix + base_name(name)
            if base in state_dict and base != prefix + name:
                state_dict[prefix + name] = state_dict.pop(base)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class LoRAGPT(AttachedGPT):
    """A model with LoRA."""

    config_class = LoRAConfig


class AdapterGPT(AttachedGPT):
    """A model with LLaMA-Adapter's prompts."""

    config_class = AdapterConfig


class AdapterV2GPT(AttachedGPT):
    """A model with LLaMA-Adapter V2."""

    config_class = AdapterV2Config


def lora_filter(key: str, value: Any) -> bool:
    """Whether a tensor of a state dict is LoRA's."""
    return "lora_" in key


def mark_only_lora_as_trainable(model: nn.Module, bias: str = "none") -> None:
    """Freezes all but LoRA's parameters.

    Args:
        model: Any that LoRA is attached to.
        bias: Which biases train too: none, all, or those of the layers with updates (lora_only).

    Raises:
        LitGPTError: Another `bias`.
    """
    if bias not in ("none", "all", "lora_only"):
        raise UnsupportedError(f"bias is {quoted(bias)}; it is none, all or lora_only.")
    freeze_others(model, lambda name: "lora_" in name or (bias == "all" and "bias" in name))
    for module in model.modules():
        if bias == "lora_only" and isinstance(module, LoRALinear) and module.bias is not None:
            module.bias.requires_grad = True


def merge_lora_weights(model: nn.Module) -> None:
    """Adds the updates to the weights they stand beside, in place: what is left is the plain model, under its names."""
    unwrap_modules(model)


def adapter_filter(key: str, value: Any) -> bool:
    """Whether a tensor of a state dict is LLaMA-Adapter's."""
    return Adapter().owns(key)


def mark_only_adapter_as_trainable(model: nn.Module) -> None:
    """Freezes all but the learned prompts and their gates."""
    freeze_others(model, Adapter().owns)


def adapter_v2_filter(key: str, value: Any) -> bool:
    """Whether a tensor of a state dict is one that LLaMA-Adapter V2 trains."""
    return AdapterV2().owns(key)


def mark_only_adapter_v2_as_trainable(model: nn.Module) -> None:
    """Freezes all but what LLaMA-Adapter V2 trains."""
    freeze_others(model, AdapterV2().owns)

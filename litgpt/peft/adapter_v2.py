"""LLaMA-Adapter V2: a scale and a bias on every linear layer, and the norms (Gao et al., 2023,
https://arxiv.org/abs/2304.15010), beside the learned prompts of the first version.

    y = s · (W x + b)        s starts at one and what it adds to the bias at zero, so the model starts as it was

E: experts, A: tokens assigned to experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from litgpt.model import GPT
from litgpt.model.moe import Experts
from litgpt.peft.adapter import add_prompts
from litgpt.peft.method import (
    Method,
    WrappedExperts,
    WrappedLinear,
    empty_parameter,
    freeze_others,
    wrap_modules,
)

OWNED = frozenset({"adapter_wte", "gating_factor", "adapter_bias", "adapter_scale", "norm_1", "norm_2", "ln_f"})
"""A parameter trains if one of these is a part of its name."""


@dataclass
class AdapterV2(Method):
    """The learned prompts of the first version as `Adapter` has them, and what is on every linear layer."""

    prompt_length: int = 10
    start_layer: int = 2

    suffix = ".adapter_v2"

    def attach(self, model: GPT) -> None:
        add_prompts(model, self.prompt_length, self.start_layer)
        wrap_modules(model, _wrapper)
        freeze_others(model, self.owns)

    def owns(self, name: str) -> bool:
        return not OWNED.isdisjoint(name.split("."))


def _wrapper(name: str, module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.Linear):
        return AdaptedLinear(module)
    return AdaptedExperts(module) if isinstance(module, Experts) else None


class AdaptedLinear(WrappedLinear):
    """A linear layer with a scale and one more bias."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        self.adapter_bias = empty_parameter(linear.weight, linear.out_features)
        self.adapter_scale = empty_parameter(linear.weight, linear.out_features)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start of training: nothing added, nothing scaled."""
        nn.init.zeros_(self.adapter_bias)
        nn.init.ones_(self.adapter_scale)

    def forward(self, x: Tensor) -> Tensor:
        """`(…, in)` → `(…, out)`."""
        y = self.linear(x)
        return (y + self.adapter_bias.to(y.dtype)) * self.adapter_scale.to(y.dtype)


class AdaptedExperts(WrappedExperts):
    """All experts of a layer, each of their linears with a scale and one more bias."""

    kinds = ("adapter_bias", "adapter_scale")

    def __init__(self, experts: Experts) -> None:
        super().__init__(experts)
        self.parts = experts.linears
        for part in self.parts:
            weight: Tensor = getattr(experts, part)  # (E, out, in)
            for kind in self.kinds:
                self.register_parameter(f"{part}_{kind}", empty_parameter(weight, *weight.shape[:2]))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start of training, as `AdaptedLinear`'s for each expert."""
        for part in self.parts:
            bias, scale = self.part_parameters(part)
            nn.init.zeros_(bias)
            nn.init.ones_(scale)

    def compute_part(self, part: str, x: Tensor, expert: Tensor, ends: Tensor) -> Tensor:
        y = self.linear.linear(part, x, expert, ends)  # (A, out)
        bias, scale = (stacked.to(y.dtype) for stacked in self.part_parameters(part))
        return (y + bias[expert]) * scale[expert]

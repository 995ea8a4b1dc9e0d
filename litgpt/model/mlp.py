"""The MLPs of the families: plain and gated; mixtures of them are in `litgpt.model.moe`.

C: `n_embd`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litgpt.config import Config


class GptNeoxMLP(nn.Module):
    """Up, GELU, down."""

    def __init__(self, config: Config, intermediate_size: int | None = None) -> None:
        super().__init__()
        width = intermediate_size or config.intermediate_size
        assert width is not None
        self.fc = nn.Linear(config.n_embd, width, bias=config.bias)
        self.proj = nn.Linear(width, config.n_embd, bias=config.bias)
        self.approximate = config.gelu_approximate

    def forward(self, x: Tensor) -> Tensor:
        """`(…, C)` → `(…, C)`."""
        return self.proj(F.gelu(self.fc(x), approximate=self.approximate))


class LLaMAMLP(nn.Module):
    """SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202): `fc_1` is the gate, `fc_2` goes up."""

    def __init__(self, config: Config, intermediate_size: int | None = None) -> None:
        super().__init__()
        width = intermediate_size or config.intermediate_size
        assert width is not None
        self.fc_1 = nn.Linear(config.n_embd, width, bias=config.bias)
        self.fc_2 = nn.Linear(config.n_embd, width, bias=config.bias)
        self.proj = nn.Linear(width, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(…, C)` → `(…, C)`."""
        return self.proj(swiglu(self.fc_1(x), self.fc_2(x)))


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) · up`; training keeps the two for the backward pass, and not what lies between."""
    return _SwiGLU.apply(gate, up) if torch.is_grad_enabled() else F.silu(gate) * up


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        (gradient,) = outer
        return torch.ops.aten.silu_backward(gradient * up, gate), gradient * F.silu(gate)


class GemmaMLP(LLaMAMLP):
    """GeGLU: the gate is a GELU."""

    def __init__(self, config: Config, intermediate_size: int | None = None) -> None:
        super().__init__(config, intermediate_size)
        self.approximate = config.gelu_approximate

    def forward(self, x: Tensor) -> Tensor:
        """`(…, C)` → `(…, C)`."""
        return self.proj(F.gelu(self.fc_1(x), approximate=self.approximate) * self.fc_2(x))

"""The MLPs of the families: plain and gated; mixtures of them are in `litgpt.model.moe`.

C: `n_embd`, I: hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litgpt.config import Config
from litgpt.kernels import triton
from litgpt.model.norm import make_norm


class GptNeoxMLP(nn.Module):
    """Up, GELU or another activation, down."""

    def __init__(self, config: Config, intermediate_size: int | None = None) -> None:
        super().__init__()
        width = intermediate_size or config.intermediate_size
        assert width is not None
        bias = config.bias or config.mlp_bias
        self.fc = nn.Linear(config.n_embd, width, bias=bias)
        self.proj = nn.Linear(width, config.n_embd, bias=bias)
        self.act = make_activation(config.activation or GELUS[config.gelu_approximate])
        self.norm_inner = make_norm(config, width) if config.norm_inner else None

    def forward(self, x: Tensor) -> Tensor:
        """`(…, C)` → `(…, C)`."""
        return self.proj(normed(self.act(self.fc(x)), self.norm_inner))


class LLaMAMLP(nn.Module):
    """SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202): `fc_1` is the gate, `fc_2` goes up."""

    def __init__(self, config: Config, intermediate_size: int | None = None) -> None:
        super().__init__()
        width = intermediate_size or config.intermediate_size
        assert width is not None
        bias = config.bias or config.mlp_bias
        self.fc_1 = nn.Linear(config.n_embd, width, bias=bias)
        self.fc_2 = nn.Linear(config.n_embd, width, bias=bias)
        self.proj = nn.Linear(width, config.n_embd, bias=bias)
        self.multipliers = config.multipliers
        self.swiglu_limit = config.swiglu_limit
        self.cutoff: float | None = None
        """How many standard deviations above the mean what goes into a gate is cut off."""
        self.act = None if config.activation in (None, "silu") else make_activation(config.activation)
        self.activation = config.activation or "silu"
        self.norm_inner = make_norm(config, width) if config.norm_inner else None

    def forward(self, x: Tensor) -> Tensor:
        """`(…, C)` → `(…, C)`."""
        gate, up = self.fc_1(x), self.fc_2(x)
        if self.multipliers is not None:
            gate = gate * self.multipliers["gate"]
        if self.cutoff is not None:
            gate = F.relu(gate - gate.mean(-1, keepdim=True) - gate.std(-1, keepdim=True, unbiased=False) * self.cutoff)
        y = self.proj(normed(self.gated(gate, up), self.norm_inner))
        return y if self.multipliers is None else y * self.multipliers["mlp_out"]

    def gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """The activation of what goes into the gates, times what they let through."""
        if self.swiglu_limit is not None:
            return clamped_swiglu(gate, up, self.swiglu_limit)
        if self.activation in FUSED and triton.chosen(gate, up):
            from litgpt.kernels.triton.gated import gated

            return gated(gate, up, self.activation)
        return swiglu(gate, up) if self.act is None else self.act(gate) * up


def clamped_swiglu(gate: Tensor, up: Tensor, limit: float) -> Tensor:
    """gpt-oss's kind of SwiGLU, which is bounded (https://arxiv.org/abs/2508.10925)."""
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(1.702 * gate) * (up + 1)


def normed(hidden: Tensor, norm: nn.Module | None) -> Tensor:
    """Hidden units `(…, I)`, normed where there is a norm for them."""
    return hidden if norm is None else norm(hidden)


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
        self.activation = config.activation or GELUS[config.gelu_approximate]
        self.act = make_activation(self.activation)


class XIELU(nn.Module):
    """Quadratic above zero, exponential below, both as steep as was learned (https://arxiv.org/abs/2411.13010)."""

    beta: Tensor
    eps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.empty(1))
        self.alpha_n = nn.Parameter(torch.empty(1))
        self.register_buffer("beta", torch.empty(()))
        self.register_buffer("eps", torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As steep as at the start of a training."""
        nn.init.constant_(self.alpha_p, math.log(math.expm1(0.8)))
        nn.init.constant_(self.alpha_n, math.log(math.expm1(0.8 - 0.5)))
        nn.init.constant_(self.beta, 0.5)
        nn.init.constant_(self.eps, -1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """`(…)` → `(…)`."""
        above, below = F.softplus(self.alpha_p), self.beta + F.softplus(self.alpha_n)
        curved = torch.where(x > 0, above * x * x, (torch.expm1(torch.min(x, self.eps)) - x) * below)
        return curved + self.beta * x


def relu2(x: Tensor) -> Tensor:
    """The square of a ReLU (So et al. 2021, https://arxiv.org/abs/2109.08668)."""
    return F.relu(x).square()


FUSED = {"silu", "gelu", "gelu_tanh"}
"""Activations that a kernel computes together with the product by `up`."""
GELUS = {"none": "gelu", "tanh": "gelu_tanh"}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "gelu_10": lambda x: F.gelu(x).clip(-10, 10),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "relu2": relu2,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "hardswish": F.hardswish,
    "laplace": lambda x: 0.5 * (1 + torch.erf((x - 0.707107) / (0.282095 * math.sqrt(2)))),
    "linear": lambda x: x,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "sqrtsoftplus": lambda x: F.softplus(x).sqrt(),
    "tanh": torch.tanh,
}
"""By `Config.activation`, but for those that learn."""


def make_activation(kind: str) -> Callable[[Tensor], Tensor]:
    """The activation of that name; a module where it has parameters."""
    return XIELU() if kind == "xielu" else FUNCTIONS[kind]

"""LoRA: a low-rank update beside frozen linear layers (Hu et al., 2021, https://arxiv.org/abs/2106.09685).

    y = W x + b + (alpha / r) B A x        A: (r, in), B: (out, r); B starts at zero, so the model starts as it was

The fused query-key-value layer, rows [Q | K | V], has one A for each enabled part, stacked; B holds the enabled rows
one below the other. T: tokens, P: enabled parts, E: experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.kernels.dropout import drop
from litgpt.model import GPT
from litgpt.moe import Experts, grouped_linear
from litgpt.peft import (
    EXPERT_PARTS,
    Method,
    Wrapped,
    WrappedExperts,
    WrappedLinear,
    empty_beside,
    freeze_others,
    wrap_modules,
)


@dataclass
class LoRA(Method):
    """Which linears get an update, and of what rank."""

    r: int = 8
    """Rank of an update."""
    alpha: int = 16
    """An update is scaled by `alpha / r`."""
    dropout: float = 0.05
    """Share of an update's input that is dropped in training."""
    query: bool = True
    key: bool = False
    value: bool = True
    projection: bool = False
    """The attention's output."""
    mlp: bool = False
    """Every linear of the MLPs; experts and their router too."""
    head: bool = False

    suffix = ".lora"

    def __post_init__(self) -> None:
        if self.r < 1:
            raise LitGPTError(f"lora_r is {self.r}, but the rank of an update is at least 1.")
        if not 0 <= self.dropout < 1:
            raise LitGPTError(f"lora_dropout is {self.dropout}, but it is a share: at least 0 and less than 1.")
        if not any((self.query, self.key, self.value, self.projection, self.mlp, self.head)):
            raise LitGPTError(
                "All of lora_query, _key, _value, _projection, _mlp and _head are off; turn on one or more."
            )

    def attach(self, model: GPT) -> None:
        if not wrap_modules(model, lambda name, module: self._wrapper(name, module, model.config)):
            raise LitGPTError("No layer of this model gets an update; turn on others of the lora_* switches.")
        freeze_others(model, self.owns)

    def owns(self, name: str) -> bool:
        return name.endswith(("lora_A", "lora_B"))

    def _wrapper(self, name: str, module: nn.Module, config: Config) -> nn.Module | None:
        settings = (self.r, self.alpha, self.dropout)
        if isinstance(module, nn.Linear) and name.endswith(".attn.qkv"):
            parts = qkv_parts(config, self.query, self.key, self.value)
            return LoRAQKVLinear(module, *settings, parts) if parts else None
        switches = {
            "lm_head": self.head,
            "transformer.h.*.attn.proj": self.projection,
            "transformer.h.*.attn.q_*": self.query,
            "transformer.h.*.attn.kv_*": self.key or self.value,
            "transformer.h.*.mlp.*": self.mlp,
        }
        if not any(switch and fnmatchcase(name, pattern) for pattern, switch in switches.items()):
            return None
        if isinstance(module, Experts):
            return LoRAExperts(module, *settings)
        return LoRALinear(module, *settings) if isinstance(module, nn.Linear) else None


def qkv_parts(config: Config, query: bool, key: bool, value: bool) -> list[range]:
    """The rows of `attn.qkv` that belong to the enabled ones of query, key and value."""
    assert config.head_size is not None and config.n_query_groups is not None
    q = config.n_head * config.head_size
    kv = config.n_query_groups * config.head_size
    bounds = {"query": range(q), "key": range(q, q + kv), "value": range(q + kv, q + 2 * kv)}
    enabled = {"query": query, "key": key, "value": value}
    return [rows for part, rows in bounds.items() if enabled[part]]


@torch.no_grad()
def merged(weight: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """`W + s B A`, computed in float32 or better, in the dtype of `weight`; all of them may be stacked."""
    wide = torch.promote_types(b.dtype, torch.float32)
    update = scaling * (b.to(wide) @ a.to(wide))
    return (weight.to(wide) + update.to(weight.device)).to(weight.dtype)


class LoRALinear(WrappedLinear):
    """A linear layer with a low-rank update."""

    def __init__(self, linear: nn.Linear, r: int, alpha: int, dropout: float) -> None:
        super().__init__(linear)
        self._add_update(r, alpha, dropout, stacked=1, rows=linear.out_features)

    def _add_update(self, r: int, alpha: int, dropout: float, stacked: int, rows: int) -> None:
        weight = self.linear.weight
        self.r, self.scaling, self.dropout = r, alpha / r, dropout
        self.lora_A = empty_beside(weight, stacked * r, self.linear.in_features)
        self.lora_B = empty_beside(weight, rows, r)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start of training: A as a linear layer's own weight, B zero."""
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B)

    def up(self) -> Tensor:
        """The matrix that takes all stacked `A x` to the layer's output, `(out, stacked r)`."""
        return self.lora_B

    def forward(self, x: Tensor) -> Tensor:
        """`(…, in)` → `(…, out)`."""
        rows = x.flatten(0, -2)  # (T, in)
        y = self.linear(rows)  # (T, out)
        kept, factor = drop(rows, self.dropout if self.training else 0.0)
        a = F.linear(kept, self.lora_A.to(rows.dtype)).to(y.dtype)  # (T, P r)
        # One product that adds onto the layer's own output: nothing else of size T x out is made, forward or backward.
        y.addmm_(a, self.up().to(y.dtype).t(), alpha=self.scaling * factor)
        return y.view(*x.shape[:-1], -1)

    def merge_into(self, weight: Tensor) -> Tensor:
        """The weight of the plain layer that computes the same, given the frozen `weight` `(out, in)`; in its dtype."""
        return merged(weight, self.lora_A, self.up(), self.scaling)

    def mergers(self, name: str) -> dict[str, Callable[[Tensor], Tensor]]:
        return {f"{name}.weight": self.merge_into}

    def unwrapped(self) -> nn.Module:
        self.linear.weight = nn.Parameter(self.merge_into(self.weight), requires_grad=False)
        return self.linear

    def extra_repr(self) -> str:
        return f"r={self.r}, scaling={self.scaling:g}, dropout={self.dropout:g}"


class LoRAQKVLinear(LoRALinear):
    """The fused query-key-value layer with an update for some of its three parts."""

    def __init__(self, linear: nn.Linear, r: int, alpha: int, dropout: float, parts: Iterable[range]) -> None:
        Wrapped.__init__(self, linear)
        self.parts = list(parts)
        self._add_update(r, alpha, dropout, stacked=len(self.parts), rows=sum(map(len, self.parts)))

    def up(self) -> Tensor:
        # Block-diagonal with empty rows for parts without an update: this small matrix pads, not the activations.
        blocks = self.lora_B.split([len(rows) for rows in self.parts])
        columns = []
        for block, rows in zip(blocks, self.parts, strict=True):
            columns.append(F.pad(block, (0, 0, rows.start, self.linear.out_features - rows.stop)))
        return torch.cat(columns, dim=1)


class LoRAExperts(WrappedExperts):
    """All experts of a layer, each of their linears with an update."""

    kinds = ("lora_A", "lora_B")

    def __init__(self, experts: Experts, r: int, alpha: int, dropout: float) -> None:
        super().__init__(experts)
        self.scaling, self.dropout = alpha / r, dropout
        for part in EXPERT_PARTS:
            weight: Tensor = getattr(experts, part)  # (E, out, in)
            E, rows, columns = weight.shape
            self.register_parameter(f"{part}_lora_A", empty_beside(weight, E, r, columns))
            self.register_parameter(f"{part}_lora_B", empty_beside(weight, E, rows, r))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start of training, as `LoRALinear`'s for each expert."""
        for part in EXPERT_PARTS:
            stacked_a, stacked_b = self.beside(part)
            for a in stacked_a.unbind():
                nn.init.kaiming_uniform_(a, a=math.sqrt(5))
            nn.init.zeros_(stacked_b)

    def forward(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """As `Experts.forward`."""
        return self.linear.forward(tokens, weights, chosen, self._part)

    def _part(self, part: str, x: Tensor, expert: Tensor, ends: Tensor) -> Tensor:
        y = self.linear.linear(part, x, expert, ends)
        kept, factor = drop(x, self.dropout if self.training else 0.0)
        a, b = (matrix.to(y.dtype) for matrix in self.beside(part))
        update = grouped_linear(grouped_linear(kept.to(y.dtype), a, ends), b, ends)
        return y.add_(update, alpha=self.scaling * factor)

    def mergers(self, name: str) -> dict[str, Callable[[Tensor], Tensor]]:
        return {
            f"{name}.{expert}.{part}.weight": partial(merged, a=a, b=b, scaling=self.scaling)
            for part in EXPERT_PARTS
            for expert, (a, b) in enumerate(zip(*self.beside(part), strict=True))
        }

    def unwrapped(self) -> nn.Module:
        for part in EXPERT_PARTS:
            a, b = self.beside(part)
            weight = merged(getattr(self.linear, part), a, b, self.scaling)
            setattr(self.linear, part, nn.Parameter(weight, requires_grad=False))
        return self.linear

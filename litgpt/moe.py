"""Mixtures of experts: a router sends each token to a few of many MLPs (Shazeer et al. 2017, https://arxiv.org/abs/1701.06538).

A: assignments (tokens x experts a token), C: `n_embd`, E: `n_expert`, I: width of an expert, K: `n_expert_per_token`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litgpt.config import Config

PARTS = ("fc_1", "fc_2", "proj")


class LLaMAMoE(nn.Module):
    """A gate and the experts it chooses from (Mixtral, https://arxiv.org/abs/2401.04088)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate = nn.Linear(config.n_embd, config.n_expert, bias=False)
        self.experts = Experts(config)
        self.per_token = config.n_expert_per_token
        self.softmax_over_all = config.router_softmax_over_all

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, C)` → `(B, T, C)`."""
        tokens = x.reshape(-1, x.size(-1))  # (B·T, C)
        weights, chosen = self.route(tokens)  # (B·T, K) each
        return self.experts(tokens, weights, chosen).view_as(x)

    def route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The K best experts of each token, and how much each of them counts: `(B·T, K)` both."""
        probabilities = self.gate(tokens).softmax(dim=-1, dtype=torch.float32)
        weights, chosen = probabilities.topk(self.per_token, dim=-1)
        if not self.softmax_over_all:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights.to(tokens.dtype), chosen


class Experts(nn.Module):
    """E gated MLPs, computed together: tokens sorted by expert, then one grouped matrix product a layer of the MLPs.

    In memory each part is one tensor; a state dict names them expert by expert (`0.fc_1.weight`), as LitGPT does.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        width = config.moe_intermediate_size or config.intermediate_size
        self.fc_1 = nn.Parameter(torch.empty(config.n_expert, width, config.n_embd))
        self.fc_2 = nn.Parameter(torch.empty(config.n_expert, width, config.n_embd))
        self.proj = nn.Parameter(torch.empty(config.n_expert, config.n_embd, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `nn.Linear` does for each expert."""
        for part in (self.fc_1, self.fc_2, self.proj):
            bound = part.size(-1) ** -0.5
            nn.init.uniform_(part, -bound, bound)

    def forward(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Tokens `(B·T, C)`, with the weights and numbers of their experts `(B·T, K)` → `(B·T, C)`."""
        order = chosen.flatten().argsort(stable=True)  # (A,): assignments, expert by expert
        source = order // chosen.size(1)  # (A,): the token of each
        ends = torch.bincount(chosen.flatten(), minlength=len(self.fc_1)).cumsum(0).to(torch.int32)  # (E,)
        x = tokens[source]  # (A, C)
        hidden = F.silu(grouped_linear(x, self.fc_1, ends)) * grouped_linear(x, self.fc_2, ends)  # (A, I)
        y = grouped_linear(hidden, self.proj, ends) * weights.flatten()[order, None]  # (A, C)
        return torch.zeros_like(tokens).index_add(0, source, y)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for part in PARTS:
            stacked = getattr(self, part)
            for expert, weight in enumerate(stacked if keep_vars else stacked.detach()):
                destination[f"{prefix}{expert}.{part}.weight"] = weight

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for part in PARTS:
            stacked = getattr(self, part)
            names = [f"{prefix}{expert}.{part}.weight" for expert in range(len(stacked))]
            absent = [name for name in names if name not in state_dict]
            if absent:
                missing_keys.extend(absent if strict else [])
            elif local_metadata.get("assign_to_params_buffers", False):
                weight = torch.stack([state_dict[name] for name in names])
                setattr(self, part, nn.Parameter(weight, requires_grad=stacked.requires_grad))
            else:
                with torch.no_grad():
                    for row, name in zip(stacked, names, strict=True):
                        row.copy_(state_dict[name])


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows of `x` times the weights of their group.

    Args:
        x: `(A, in)`, sorted by group.
        weight: `(E, out, in)`.
        ends: `(E,)` int32, one past the last row of each group.

    Returns:
        `(A, out)`.
    """
    grouped = torch.float32, torch.bfloat16, torch.float16
    aligned = all(size * x.element_size() % 16 == 0 for size in weight.shape[1:])
    if x.dtype in (grouped if x.device.type == "cpu" else grouped[1:2]) and x.dtype == weight.dtype and aligned:
        return F.grouped_mm(x.contiguous(), weight.mT, offs=ends)
    starts = [0, *ends.tolist()]
    groups = [x[start:end] @ matrix.T for start, end, matrix in zip(starts, starts[1:], weight, strict=False)]
    return torch.cat(groups)

"""Mixtures of experts: a router sends each token to a few of many MLPs (Shazeer et al. 2017, https://arxiv.org/abs/1701.06538).

A: assignments (tokens x experts a token), C: `n_embd`, E: `n_expert`, I: width of an expert, K: `n_expert_per_token`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litgpt.config import Config
from litgpt.model.mlp import GELUS, GptNeoxMLP, LLaMAMLP, clamped_swiglu, make_activation, swiglu
from litgpt.model.norm import make_norm, rms_norm

ExpertLinear = Callable[[str, Tensor, Tensor, Tensor], Tensor]
"""The type of `Experts.linear`."""


class LLaMAMoE(nn.Module):
    """A router, the experts it chooses from (Mixtral, https://arxiv.org/abs/2401.04088), and some for all."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        grouped = config.n_expert_groups is not None
        self.gate = (
            GroupedTopkRouter(config) if grouped else nn.Linear(config.n_embd, config.n_expert, bias=config.expert_bias)
        )
        self.experts = Experts(config)
        self.shared_experts: nn.Module | None = None
        if config.n_shared_expert:
            width = config.shared_intermediate_size or (config.moe_intermediate_size or 0) * config.n_shared_expert
            self.shared_experts = (GptNeoxMLP if config.ungated_mlps else LLaMAMLP)(config, width)
        self.latent_in: nn.Module | None = None
        if config.expert_embd is not None:
            self.latent_in = nn.Linear(config.n_embd, config.expert_embd, bias=False)
            self.latent_out = nn.Linear(config.expert_embd, config.n_embd, bias=False)
        # No linear layer: of one row, it is nothing to quantize or to have a low rank.
        self.shared_gate = nn.Parameter(torch.empty(1, config.n_embd)) if config.shared_expert_gate else None
        self.config = config
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `nn.Linear` does."""
        if self.shared_gate is not None:
            nn.init.uniform_(self.shared_gate, -(self.config.n_embd**-0.5), self.config.n_embd**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, C)` → `(B, T, C)`."""
        tokens = x.reshape(-1, x.size(-1))  # (B·T, C)
        weights, expert_ids = self.route(tokens)
        if self.latent_in is None:
            y = self.experts(tokens, weights, expert_ids).view_as(x)
        else:
            y = self.latent_out(self.experts(self.latent_in(tokens), weights, expert_ids)).view_as(x)
        if self.shared_experts is not None:
            shared = self.shared_experts(x)
            y = y + (shared if self.shared_gate is None else shared * F.linear(x, self.shared_gate).sigmoid())
        return y if self.config.mixture_divisor == 1 else y / self.config.mixture_divisor

    def route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """How much each of a token's K experts counts, and which they are: `(B·T, K)` both."""
        if isinstance(self.gate, GroupedTopkRouter):
            weights, expert_ids = self.gate(tokens)
        else:
            logits = self.gate(tokens)
            if self.config.router_margin is not None:
                return sparse_mixer(logits, self.config.n_expert_per_token, self.config.router_margin)
            if self.config.router_scores == "sigmoid":
                best, expert_ids = logits.topk(self.config.n_expert_per_token, dim=-1)
                shares = best.sigmoid()
                if self.config.norm_topk_prob:
                    shares = shares / shares.sum(dim=-1, keepdim=True)
                return shares * self.config.routed_scaling_factor, expert_ids
            probabilities = logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
            weights, expert_ids = probabilities.topk(self.config.n_expert_per_token, dim=-1)
            if not self.config.router_softmax_over_all:
                weights = weights / weights.sum(dim=-1, keepdim=True)
            weights = weights * self.config.routed_scaling_factor
        return weights.to(tokens.dtype), expert_ids


def sparse_mixer(scores: Tensor, n_chosen: int, margin: float) -> tuple[Tensor, Tensor]:
    """Weights and ids `(A, K)` of experts with scores `(A, E)`, by the router of Phi 3.5
    (https://arxiv.org/abs/2409.12136) as it answers; training it here draws nothing at random."""
    left, weights, chosen = scores, [], []
    for _ in range(n_chosen):
        best, expert = left.max(dim=-1, keepdim=True)
        far = (best - scores) / torch.maximum(scores.abs(), best) > 2 * margin
        weights.append(left.masked_fill(far, -torch.inf).softmax(dim=-1).gather(-1, expert))
        chosen.append(expert)
        left = left.scatter(-1, expert, -torch.inf)
    return torch.cat(weights, dim=-1), torch.cat(chosen, dim=-1)


class MixtureBesideMLP(nn.Module):
    """Experts that add to what an MLP makes of the same token (Gemma 4); each sum's part has norms of its own."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.gate = nn.Linear(config.n_embd, config.n_expert, bias=False)
        self.input_scale = nn.Parameter(torch.ones(config.n_embd))
        self.expert_scale = nn.Parameter(torch.ones(config.n_expert))
        self.experts = Experts(config)
        self.norm, self.post_norm, self.mlp_norm = (make_norm(config) for _ in range(3))

    def forward(self, x: Tensor, mlp: Tensor) -> Tensor:
        """Tokens and what the MLP made of them, `(B, T, C)` both → `(B, T, C)`."""
        tokens = x.reshape(-1, x.size(-1))
        weights, expert_ids = self.route(tokens)
        y = self.experts(self.norm(tokens), weights, expert_ids).view_as(x)
        return self.mlp_norm(mlp) + self.post_norm(y)

    def route(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """How much each of a token's K experts counts, and which they are: `(B·T, K)` both."""
        logits = self.gate(rms_norm(tokens, self.config.norm_eps) * self.input_scale * tokens.size(-1) ** -0.5)
        shares = logits.softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        weights, expert_ids = shares.topk(self.config.n_expert_per_token, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True) * self.expert_scale[expert_ids]
        return weights.to(tokens.dtype), expert_ids


class GroupedTopkRouter(nn.Module):
    """Chooses groups of experts first, then experts in them (DeepSeek-V3, https://arxiv.org/abs/2412.19437, 2.1.2).

    `e_score_correction_bias` balances the load: it has a say in the choice and none in the weights.
    """

    e_score_correction_bias: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.n_expert, config.n_embd))
        self.reset_parameters()
        self.uses_sigmoid = config.router_scores == "sigmoid"
        self.uses_bias = bool(config.router_bias)
        if self.uses_bias:
            self.register_buffer("e_score_correction_bias", torch.zeros(config.n_expert))
        self.config = config

    def reset_parameters(self) -> None:
        """As `nn.Linear` does: rows that are equal would choose the same experts for all tokens."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As of any module, but the bias stays in float32 at least: what it is compared by is small against it."""
        bias = self.e_score_correction_bias if self.uses_bias else None
        super()._apply(fn, recurse)
        if bias is not None and self.e_score_correction_bias.dtype.itemsize < 4:
            self.e_score_correction_bias = bias.to(self.e_score_correction_bias.device)
        return self

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens `(B·T, C)` → weights and ids of their experts, `(B·T, K)` both."""
        config = self.config
        assert config.n_expert_groups is not None and config.n_topk_groups is not None
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        with torch.autocast(tokens.device.type, enabled=False):  # which would multiply in 16 bits all the same
            logits = F.linear(tokens.to(dtype), self.weight.to(dtype))
        scores = logits.sigmoid() if self.uses_sigmoid else logits.softmax(dim=-1)
        choice_scores = scores + self.e_score_correction_bias if self.uses_bias else scores
        grouped = choice_scores.view(len(tokens), config.n_expert_groups, -1)
        group_scores = grouped.topk(config.n_topk_scores_per_group or 1, dim=-1).values.sum(dim=-1)
        best = group_scores.topk(config.n_topk_groups, dim=-1).indices
        outside = torch.ones_like(group_scores, dtype=torch.bool).scatter(1, best, False)[..., None]
        nothing = -torch.inf if self.uses_bias else 0.0
        expert_ids = grouped.masked_fill(outside, nothing).flatten(1).topk(config.n_expert_per_token, dim=-1).indices
        weights = scores.gather(1, expert_ids)
        if config.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + config.router_eps)
        return weights * config.routed_scaling_factor, expert_ids


EXPERT_PARTS = ("fc_1", "fc_2", "proj")
"""The linears of an expert."""


class Experts(nn.Module):
    """E MLPs, computed together: tokens sorted by expert, then one grouped matrix product a layer of the MLPs.

    In memory each part is one tensor; a state dict names them expert by expert (`0.fc_1.weight`), as LitGPT does.
    """

    fc_1: nn.Parameter  # (E, I, C)

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        E, C, width = config.n_expert, config.expert_embd or config.n_embd, config.moe_intermediate_size
        width = width or config.intermediate_size
        self.linears = ("fc_1", "proj") if config.ungated_mlps else EXPERT_PARTS
        """The linears of each of these."""
        for part in self.linears[:-1]:
            self.register_parameter(part, nn.Parameter(torch.empty(E, width, C)))
        self.proj = nn.Parameter(torch.empty(E, C, width))
        self.parts = {f"{part}.weight": part for part in self.linears}
        """What a state dict calls the parts of an expert, and what they are here."""
        if config.expert_bias:
            self.fc_1_bias = nn.Parameter(torch.empty(E, width))
            self.fc_2_bias = nn.Parameter(torch.empty(E, width))
            self.proj_bias = nn.Parameter(torch.empty(E, C))
            self.parts.update({f"{part}.bias": f"{part}_bias" for part in EXPERT_PARTS})
        self.swiglu_limit = config.swiglu_limit
        self.gelu = config.gelu_approximate if config.mlp_class_name == "GemmaMLP" else None
        self.act = make_activation(config.activation or GELUS[config.gelu_approximate])
        self.scales_inputs = config.router_scales_inputs
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As `nn.Linear` does for each expert."""
        for part in (getattr(self, name) for name in self.linears):
            bound = part.size(-1) ** -0.5
            nn.init.uniform_(part, -bound, bound)
        for name, part in self.named_parameters(recurse=False):
            if name.endswith("_bias"):
                nn.init.zeros_(part)

    def forward(
        self, tokens: Tensor, weights: Tensor, expert_ids: Tensor, linear: ExpertLinear | None = None
    ) -> Tensor:
        """Tokens `(B·T, C)`, with the weights and ids of their experts `(B·T, K)` → `(B·T, C)`.

        `linear` computes the parts in place of `self.linear`.
        """
        linear = linear or self.linear
        order = expert_ids.flatten().argsort(stable=True)  # (A,): assignments, expert by expert
        source, expert = order // expert_ids.size(1), expert_ids.flatten()[order]  # (A,) each
        every = torch.arange(len(self.fc_1), device=expert.device)
        ends = torch.searchsorted(expert, every, right=True, out_int32=True)  # (E,); to count would wait for a GPU
        scale = weights.flatten()[order, None]  # (A, 1)
        x = tokens[source] * scale if self.scales_inputs else tokens[source]  # (A, C)
        hidden = linear("fc_1", x, expert, ends)  # (A, I)
        gated = len(self.linears) > 2
        hidden = self.activation(hidden, linear("fc_2", x, expert, ends)) if gated else self.act(hidden)
        y = linear("proj", hidden, expert, ends)  # (A, C)
        y = y if self.scales_inputs else y * scale
        return torch.zeros_like(tokens).index_add(0, source, y.to(tokens.dtype))

    def linear(self, part: str, x: Tensor, expert: Tensor, ends: Tensor) -> Tensor:
        """`part` of every expert for its own rows of `x`; `expert` has each row's expert, `ends` where each ends."""
        y = grouped_linear(x, getattr(self, part), ends)
        return y + getattr(self, f"{part}_bias")[expert].to(y.dtype) if f"{part}.bias" in self.parts else y

    def activation(self, gate: Tensor, up: Tensor) -> Tensor:
        """GeGLU, SwiGLU, or gpt-oss's kind of it, `(A, I)`."""
        if self.gelu is not None:
            return F.gelu(gate, approximate=self.gelu) * up
        if self.swiglu_limit is None:
            return swiglu(gate, up)
        return clamped_swiglu(gate, up, self.swiglu_limit)

    def load_expert(self, name: str, expert: int, tensor: Tensor) -> None:
        """One expert's part, as a state dict names it; on `meta`, the first makes room for all, where and as it is."""
        stacked = getattr(self, self.parts[name])
        if stacked.is_meta:
            stacked = nn.Parameter(tensor.new_empty(stacked.shape), requires_grad=stacked.requires_grad)
            setattr(self, self.parts[name], stacked)
        with torch.no_grad():
            stacked[expert].copy_(tensor)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        for name, part in self.parts.items():
            stacked = getattr(self, part)
            for expert, tensor in enumerate(stacked if keep_vars else stacked.detach()):
                destination[f"{prefix}{expert}.{name}"] = tensor

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
        for name, part in self.parts.items():
            stacked = getattr(self, part)
            names = [f"{prefix}{expert}.{name}" for expert in range(len(stacked))]
            absent = [name for name in names if name not in state_dict]
            if absent:
                missing_keys.extend(absent if strict else [])
            elif local_metadata.get("assign_to_params_buffers", False):
                tensor = torch.stack([state_dict[name] for name in names])
                setattr(self, part, nn.Parameter(tensor, requires_grad=stacked.requires_grad))
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
        `(A, out)`, in autocast's dtype inside autocast, as of any other product.
    """
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    grouped = (torch.float32, torch.bfloat16, torch.float16) if x.device.type == "cpu" else (torch.bfloat16,)
    if x.dtype in grouped and x.dtype == weight.dtype:
        rows, columns = (-size % (16 // x.element_size()) for size in weight.shape[1:])
        if not rows and not columns:
            return F.grouped_mm(x.contiguous(), weight.mT, offs=ends)
        if x.device.type != "cpu":  # low ranks, say; group by group, the host would wait to know how many rows each has
            padded = grouped_linear(F.pad(x, (0, columns)), F.pad(weight, (0, columns, 0, rows)), ends)
            return padded[:, : weight.size(1)]
    starts = [0, *ends.tolist()]
    groups = [x[start:end] @ matrix.T for start, end, matrix in zip(starts, starts[1:], weight, strict=False)]
    return torch.cat(groups)

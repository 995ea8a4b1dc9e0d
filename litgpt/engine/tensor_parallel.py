"""Tensor parallel: every rank has all layers, and of each matrix its share (Shoeybi et al. 2019,
https://arxiv.org/abs/1909.08053).

Attention is split by head group, MLPs by their hidden units, so that a rank computes with its own rows alone and one
sum over the ranks after each half of a block makes the whole. Rows are shared as `DTensor` would share them, on plain
tensors: its dispatch costs more than a small product does, and its caches keep the process group alive for good.

N: `n_head`, G: `n_query_groups`, H: `head_size`, C: `n_embd`, E: experts, I: hidden units.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.model.attention import CausalSelfAttention, MultiheadLatentAttention
from litgpt.model.mlp import GptNeoxMLP, LLaMAMLP
from litgpt.model.moe import Experts
from litgpt.model.norm import HeadNorm
from litgpt.runtime import leave_processes


def split_over_ranks(model: GPT) -> None:
    """Leaves this rank its share of a model that every rank has whole, and makes the ranks compute together.

    The config stays as it is; what changes is in the layers: their tensors, `attn.heads`, and sums after them.
    Weights that are memory-mapped are read only where they are this rank's. The ranks are those of torch's default
    process group.

    Args:
        model: With plain layers, on the CPU or on its device.

    Raises:
        LitGPTError: The ranks don't divide the heads or key-value groups, or a layer is of a kind that isn't split.
    """
    ranks = Ranks(distributed.get_rank(), distributed.get_world_size())
    check_divides(model, ranks.count)
    with torch.no_grad():
        for block in model.transformer.h:
            assert isinstance(block.attn, CausalSelfAttention | MultiheadLatentAttention)
            ranks.split_attention(block.attn)
        for module in list(model.modules()):
            if isinstance(module, GptNeoxMLP):
                ranks.split_mlp([module.fc], module)
            elif isinstance(module, LLaMAMLP):
                ranks.split_mlp([module.fc_1, module.fc_2], module)
            elif isinstance(module, Experts):
                ranks.split_experts(module)
        if not model.tied:
            ranks.split_head(model.lm_head)
    model.ranks = ranks.count


def check_divides(model: GPT, ranks: int) -> None:
    """Raises a LitGPTError where `ranks` can't share this model."""
    config = model.config
    for block in model.transformer.h:
        if type(block.attn) not in (CausalSelfAttention, MultiheadLatentAttention):
            raise LitGPTError(
                f"Layers of the kind {type(block.attn).__name__} can't be split over devices; use one device, or"
                " generate_sequentially."
            )
    if config.mlp_sparsity is not None or config.state_beside_attention or config.expert_embd or config.mixer_layers:
        raise LitGPTError("Layers of this model's kind can't be split over devices; use one, or generate_sequentially.")
    if config.mixture_beside_mlp:
        raise LitGPTError("Experts beside an MLP can't be split over devices; use one, or generate_sequentially.")
    groups = {config.kv_heads(layer)[0] for layer in range(config.n_layer)}
    if config.latent_attention is None and (odd := [number for number in groups if number % ranks]):
        raise LitGPTError(
            f"{ranks} devices can't share {odd[0]} key-value groups; use a number that divides them,"
            " or generate_sequentially."
        )
    if config.norm_inner and (config.intermediate_size or 0) % ranks:
        raise LitGPTError(
            f"{ranks} devices can't share {config.intermediate_size} hidden units that are normed together; use a"
            " number that divides them."
        )
    odd = [heads for layer in range(config.n_layer) if (heads := config.heads(layer)) % ranks]
    if odd:
        raise LitGPTError(f"{ranks} devices can't share {odd[0]} attention heads; use a number that divides them.")


@contextmanager
def only_first_rank_prints() -> Iterator[None]:
    """Inside, what the other ranks print goes nowhere, as they print what the first one does; at the end, all leave the
    process group."""
    rank = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))
    with open(os.devnull, "w") as nowhere:
        kept = sys.stdout, sys.stderr
        if rank:
            sys.stdout = sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stdout, sys.stderr = kept
            leave_processes()


@dataclass(frozen=True)
class Ranks:
    """The ranks of the default process group, as this one sees them."""

    number: int
    """This one's."""
    count: int

    def part(self, tensor: Tensor, dim: int = 0) -> Tensor:
        """This rank's share of a tensor along `dim`: as much as any other's, but for the last ones."""
        size = tensor.size(dim)
        width = -(-size // self.count)
        start = min(self.number * width, size)
        return tensor.narrow(dim, start, min(width, size - start)).clone()  # a view would keep the whole

    def part_of_heads(self, tensor: Tensor, rows: tuple[int, ...]) -> Tensor:
        """This rank's share of rows that belong to several kinds of heads, so many of one kind after the other."""
        return torch.cat([self.part(kind) for kind in tensor.split(rows)])

    def sum(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        """A forward hook: adds up what the ranks computed."""
        distributed.all_reduce(output)
        return output

    # -- layers

    def split_rows(self, linear: nn.Linear) -> None:
        """Each rank computes some of the outputs."""
        linear.weight = _frozen(self.part(linear.weight))
        if linear.bias is not None:
            linear.bias = _frozen(self.part(linear.bias))
        linear.out_features = linear.weight.size(0)

    def split_columns(self, linear: nn.Linear) -> None:
        """Each rank has some of the inputs, and the outputs are summed; the bias counts once."""
        linear.weight = _frozen(self.part(linear.weight, 1))
        if linear.bias is not None and self.number:
            linear.register_parameter("bias", None)
        linear.in_features = linear.weight.size(1)
        linear.register_forward_hook(self.sum)

    def split_mlp(self, ups: list[nn.Linear], mlp: GptNeoxMLP | LLaMAMLP) -> None:
        """By hidden units."""
        for linear in ups:
            self.split_rows(linear)
        self.split_columns(mlp.proj)
        if mlp.norm_inner is not None:
            mlp.norm_inner = _NormOverRanks(mlp.norm_inner, self)

    def split_experts(self, experts: Experts) -> None:
        """Each expert by its hidden units: all ranks take part in every token, whatever the router says."""
        for name in experts.linears[:-1]:
            setattr(experts, name, _frozen(self.part(getattr(experts, name), 1)))  # (E, I, C)
            if hasattr(experts, f"{name}_bias"):
                setattr(experts, f"{name}_bias", _frozen(self.part(getattr(experts, f"{name}_bias"), 1)))
        experts.proj = _frozen(self.part(experts.proj, 2))  # (E, C, I)
        if hasattr(experts, "proj_bias") and self.number:
            experts.proj_bias = _frozen(torch.zeros_like(experts.proj_bias))
        experts.register_forward_hook(self.sum)

    def split_attention(self, attention: CausalSelfAttention | MultiheadLatentAttention) -> None:
        """By key-value group, each with the queries that ask it; latent attention by head."""
        if attention.sinks is not None:
            attention.sinks = _frozen(self.part(attention.sinks))
        if isinstance(attention, MultiheadLatentAttention):
            queries = attention.q_proj if hasattr(attention, "q_proj") else attention.q_b_proj
            self.split_rows(queries)
            self.split_rows(attention.kv_b_proj)
            attention.n_head //= self.count
        else:
            self.split_qkv(attention)
            if attention.gate is not None:
                self.split_rows(attention.gate)
        self.split_columns(attention.proj)

    def split_qkv(self, attention: CausalSelfAttention) -> None:
        """The packed rows `[Q | K | V]`, each part by itself."""
        qkv, heads, rows = attention.qkv, attention.heads, attention.config.qkv_rows(attention.layer)
        qkv.weight = _frozen(self.part_of_heads(qkv.weight, rows))
        if qkv.bias is not None:
            qkv.bias = _frozen(self.part_of_heads(qkv.bias, rows))
        qkv.out_features = qkv.weight.size(0)
        attention.heads = (heads[0] // self.count, heads[1] // self.count, heads[2] // self.count)
        attention.first_head = attention.config.heads(attention.layer) // self.count * self.number
        if attention.config.norm_inner:
            attention.norm_inner = _NormOverRanks(attention.norm_inner, self)
        for of_heads in (getattr(attention, name, None) for name in ("norm_q", "norm_k")):
            if isinstance(of_heads, HeadNorm):
                of_heads.weight = _frozen(self.part(of_heads.weight))
        if attention.config.norm_qk and attention.config.norm_qk_type == "olmo2":
            attention.norm_q, attention.norm_k = (
                _NormOverRanks(norm, self) for norm in (attention.norm_q, attention.norm_k)
            )

    def split_head(self, head: nn.Linear) -> None:
        """Each rank scores some of the vocabulary, and all get all scores."""
        rows = head.out_features
        self.split_rows(head)
        head.register_forward_hook(lambda module, inputs, output: self.gathered(output, rows))

    def gathered(self, local: Tensor, size: int) -> Tensor:
        """The ranks' shares of a last dimension of `size`, put together on each of them."""
        width = -(-size // self.count)  # as in `part`
        padded = nn.functional.pad(local, (0, width - local.size(-1))).contiguous()
        shares = [torch.empty_like(padded) for _ in range(self.count)]
        distributed.all_gather(shares, padded)
        return torch.cat(shares, dim=-1)[..., :size]


class _NormOverRanks(nn.Module):
    """A norm over all heads (OLMo 2) or all hidden units, of which each rank has some."""

    def __init__(self, norm: nn.Module, ranks: Ranks) -> None:
        super().__init__()
        self.norm = norm
        self.ranks = ranks

    def forward(self, x: Tensor) -> Tensor:
        """`(…, share of what is normed)` → the same."""
        share, number = x.size(-1), self.ranks.number
        whole = self.norm(self.ranks.gathered(x, share * self.ranks.count))
        return whole[..., share * number : share * (number + 1)]


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)

"""LLaMA-Adapter: a few learned tokens before what the upper layers attend to (Zhang et al., 2023,
https://arxiv.org/abs/2303.16199).

    y = softmax(q kᵀ) v + g · softmax(q pkᵀ) pv        g starts at zero, so the model starts as it was

The learned prompt `(P, C)` becomes keys `pk` and values `pv` through the layer's own query-key-value weights. They have
no position, every token sees all of them, and they have a softmax of their own; the gate g is one number a head.

B: batch, T: tokens, C: `n_embd`, N: `n_head`, G: `n_query_groups`, H: `head_size`, P: learned tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.model.attention import AttentionContext, CausalSelfAttention
from litgpt.peft.method import Method, empty_parameter, freeze_others


@dataclass
class Adapter(Method):
    """Which layers get a learned prompt, and of how many tokens."""

    prompt_length: int = 10
    """Learned tokens a layer."""
    start_layer: int = 2
    """The first layer that has them; the lower ones stay as they are."""

    suffix = ".adapter"

    def attach(self, model: GPT) -> None:
        n_layer = model.config.n_layer
        if not add_prompts(model, self.prompt_length, self.start_layer):
            raise LitGPTError(
                f"This model has {n_layer} layers, and adapters begin at layer number {self.start_layer}, counted from"
                " 0; use finetune_lora."
            )
        freeze_others(model, self.owns)

    def owns(self, name: str) -> bool:
        return name.endswith((".adapter_wte.weight", ".gating_factor"))


def add_prompts(model: GPT, length: int, start_layer: int) -> int:
    """Gives the attention of every layer from `start_layer` on a learned prompt; returns how many there are.

    Raises:
        LitGPTError: The model's attention makes keys and values in another way.
    """
    blocks = list(model.transformer.h)[start_layer:]
    for block in blocks:
        if not isinstance(block.attn, CausalSelfAttention) or not block.attn.heads[1]:
            raise LitGPTError(
                "Adapters need the query, key and value weights that latent attention, linear attention and layers with"
                " shared keys haven't got; use finetune_lora."
            )
        block.attn = PromptedAttention(block.attn, length)
    return len(blocks)


class PromptedAttention(CausalSelfAttention):
    """Grouped-query attention that also attends to a learned prompt."""

    def __init__(self, plain: CausalSelfAttention, length: int) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(plain))  # its layers and settings are this one's, under the same names
        weight = plain.qkv.weight
        self.adapter_wte = LearnedPrompt(empty_parameter(weight, length, plain.config.n_embd))
        self.gating_factor = empty_parameter(weight, 1, 1, plain.config.heads(plain.layer), 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start of training: random prompts, shut gates."""
        self.adapter_wte.reset_parameters()
        nn.init.zeros_(self.gating_factor)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext) -> Tensor:
        y = super().attend(q, k, v, context)  # (B, N, T, H)
        _, pk, pv, _ = self.project(self.adapter_wte.weight[None])  # (1, G, P, H)
        B, _, T, _ = q.shape
        all_seen = torch.ones((), dtype=torch.bool, device=q.device).expand(1, 1, T, pk.size(2))
        prompted = self.attend_masked(q, pk.expand(B, -1, -1, -1), pv.expand(B, -1, -1, -1), all_seen)
        return y + self.gating_factor.to(y.dtype).view(-1, 1, 1) * prompted


class LearnedPrompt(nn.Module):
    """The P tokens of a layer, `(P, C)`."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def reset_parameters(self) -> None:
        """As an embedding's."""
        nn.init.normal_(self.weight)

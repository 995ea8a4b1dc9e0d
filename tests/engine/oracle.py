"""Tiny random models, and the slow, obvious way to continue a prompt: all of it through the model for every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from litgpt.config import Config
from litgpt.lora import LoRA
from litgpt.model import GPT

SIZES = dict(n_layer=2, n_embd=32, n_head=4, vocab_size=96, padded_vocab_size=96, block_size=64, intermediate_size=48)
LLAMA = dict(
    mlp_class_name="LLaMAMLP",
    norm_class_name="RMSNorm",
    rotary_percentage=1.0,
    bias=False,
    parallel_residual=False,
)
MODELS: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "llama-grouped": {**LLAMA, "n_query_groups": 2},
    "llama-window": {**LLAMA, "n_query_groups": 1, "sliding_window_size": 5},
    "llama-updated": {**LLAMA, "n_query_groups": 2},  # low-rank updates beside its weights, not merged
    "latent-experts": {
        **LLAMA,
        "mlp_class_name": "LLaMAMoE",
        "n_expert": 4,
        "n_expert_per_token": 2,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "latent_attention": dict(q_lora_rank=12, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6),
    },
    "hybrid": {
        **LLAMA,
        "n_layer": 3,
        "n_query_groups": 2,
        "attention_gate": True,
        "linear_attention": dict(n_key_heads=2, n_value_heads=4, key_size=6, value_size=10, kernel_size=4),
        "linear_attention_indices": [1, 0, 1],
    },
    "neox": dict(parallel_residual=True, rotary_percentage=0.25),
    "gpt2": dict(learned_positions=True, parallel_residual=False, rotary_percentage=0.0, gelu_approximate="tanh"),
}


def tiny_model(case: str = "llama-grouped", **overrides: Any) -> GPT:
    """A random model, float32, with weights large enough that its greedy text varies."""
    torch.manual_seed(1)
    model = GPT(Config(name=case, **{**SIZES, **MODELS[case], **overrides}))
    if case == "llama-updated":
        LoRA(r=4, key=True, projection=True, mlp=True, head=True).attach(model)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    return model


@torch.no_grad()
def naive(model: GPT, prompt: Sequence[int], n: int) -> list[int]:
    """`n` greedy tokens after `prompt`, with no cache and no batch."""
    tokens = list(prompt)
    for _ in range(n):
        logits = model(torch.tensor([tokens]))
        tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random prompts of these lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 96, (length,), generator=generator).tolist() for length in lengths]

"""Seed-OSS: Llama with biases on queries, keys and values (https://github.com/ByteDance-Seed/seed-oss)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import named, size


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    qkv, out = bool(left.pop("attention_bias", False)), bool(left.pop("attention_out_bias", False))
    left.pop("residual_dropout", None)
    return {**llama.from_hf(left), "attn_bias": qkv, "attn_proj_bias": out}


def to_hf(config: Any) -> dict[str, Any]:
    biases = {"attention_bias": config.attn_bias, "attention_out_bias": config.attn_proj_bias}
    return {**llama.to_hf(config), **biases, "attention_dropout": 0.0, "residual_dropout": 0.0, "pad_token_id": None}


FAMILY = replace(
    llama.FAMILY,
    name="seed_oss",
    architectures=("SeedOssForCausalLM",),
    model_type="seed_oss",
    rows=named(
        "ByteDance-Seed",
        {"Seed-OSS-36B-{Base,Instruct}": size(64, 80, 5120, 27648, 8, head_size=128, attn_bias=True)},
        dict(block_size=524288, vocab_size=155136, padded_vocab_size=155136, norm_eps=1e-6, rope_base=10000000),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 524288,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "attention_bias": True,
    },
)

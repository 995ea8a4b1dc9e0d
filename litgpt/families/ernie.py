"""ERNIE 4.5, the dense one: Llama whose neighbouring dimensions rotate (https://ernie.baidu.com/blog/publication)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import named, size, without


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    return {**llama.from_hf(left), "bias": bool(left.pop("use_bias", False))}


def to_hf(config: Any) -> dict[str, Any]:
    plain = without(llama.to_hf(config), "attention_bias", "mlp_bias")
    return {**plain, "use_bias": config.bias, "pad_token_id": None}


FAMILY = replace(
    llama.FAMILY,
    name="ernie4_5",
    architectures=("Ernie4_5ForCausalLM",),
    model_type="ernie4_5",
    base={**llama.BASE, "rope_interleave": True},
    rows=named(
        "baidu",
        {"ERNIE-4.5-0.3B-{Base-PT,PT}": size(18, 16, 1024, 3072, 2, head_size=128, rope_base=500000)},
        dict(block_size=131072, vocab_size=103424, padded_vocab_size=103424, tie_embeddings=True),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
    },
)

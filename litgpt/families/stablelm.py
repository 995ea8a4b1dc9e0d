"""StableLM 3B: Llama's blocks with LayerNorm and a quarter of each head rotating."""

from __future__ import annotations

from typing import Any

from litgpt.families import llama
from litgpt.families.base import Family, named, size
from litgpt.families.gguf import COMMON, GATED_MLP, GGUF, SPLIT_QKV, Key
from litgpt.families.hf_config import pop_rope, pop_silu, push_rope


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    pop_silu(left)
    return {
        "rotary_percentage": 0.25,
        **pop_rope(left),
        "n_query_groups": left.pop("num_key_value_heads", None),
        "attn_bias": bool(left.pop("use_qkv_bias", False)),
        "tie_embeddings": bool(left.pop("tie_word_embeddings", False)),
    }


def to_hf(config: Any) -> dict[str, Any]:
    rope = push_rope(config)
    return {
        **rope,
        "partial_rotary_factor": config.rotary_percentage,
        "hidden_act": "silu",
        "num_key_value_heads": config.n_query_groups,
        "use_qkv_bias": config.attn_bias,
        "tie_word_embeddings": config.tie_embeddings,
    }


S_3B = size(32, 32, 2560, 6912)

FAMILY = Family(
    name="stablelm",
    architectures=("StableLmForCausalLM",),
    model_type="stablelm",
    base={**llama.BASE, "norm_class_name": "LayerNorm", "rotary_percentage": 0.25},
    rows=named(
        "stabilityai",
        {"stablelm-{3b-4e1t,zephyr-3b}": S_3B, "stable-code-3b": {**S_3B, "block_size": 16384}},
        dict(padded_vocab_size=50304),
    ),
    hf_fields=llama.LAYER_NORM_FIELDS,
    from_hf=from_hf,
    to_hf=to_hf,
    weights=llama.WEIGHTS,
    prefix="model.",
    prompt_styles=((r"stablelm-zephyr", "stablelm-zephyr"),),
    hf_defaults={"layer_norm_eps": 1e-5, "max_position_embeddings": 4096, "num_key_value_heads": 32},
    hf_constants={"qk_layernorm": False, "use_parallel_residual": False},
    rotates_part=True,
)

AS_GGUF = GGUF(
    arch="stablelm",
    eps="attention.layer_norm_epsilon",
    weights=(*COMMON, *SPLIT_QKV, *GATED_MLP),
    fields=(Key("use_parallel_residual", "parallel_residual"),),
    pre_tokenizer="olmo",
)

"""StableLM 3B: Llama's blocks with LayerNorm and a quarter of each head rotating."""

from __future__ import annotations

from typing import Any

from litgpt.families import llama
from litgpt.families.base import Family, Rows, Rule, named, size
from litgpt.families.gguf import COMMON, GATED_MLP, GGUF, SPLIT_QKV, Key
from litgpt.families.hf_config import pop_activation, pop_rope, push_activation, push_rope


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    parallel, normed = bool(left.pop("use_parallel_residual", False)), bool(left.pop("qk_layernorm", False))
    return {
        **pop_activation(left, "silu", gated=True),
        "parallel_residual": parallel,
        "shared_attention_norm": parallel,
        "norm_qk": normed,
        "norm_qk_type": "by_head" if normed else "default",
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
        "hidden_act": push_activation(config),
        "qk_layernorm": config.norm_qk,
        "use_parallel_residual": config.parallel_residual,
        "num_key_value_heads": config.n_query_groups,
        "use_qkv_bias": config.attn_bias,
        "tie_word_embeddings": config.tie_embeddings,
    }


def weights(config: Any) -> tuple[Rule, ...]:
    if not config.norm_qk:
        return llama.WEIGHTS
    layer = "model.layers.{i}.self_attn"
    queries = tuple(f"{layer}.q_layernorm.norms.{head}" for head in range(config.n_head))
    keys = tuple(f"{layer}.k_layernorm.norms.{head}" for head in range(config.n_query_groups))
    norms = Rows(queries, "transformer.h.{i}.attn.norm_q"), Rows(keys, "transformer.h.{i}.attn.norm_k")
    return (*llama.WEIGHTS, *norms)


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
    weights=weights,
    prefix="model.",
    prompt_styles=((r"stablelm-zephyr", "stablelm-zephyr"),),
    hf_defaults={"layer_norm_eps": 1e-5, "max_position_embeddings": 4096, "num_key_value_heads": 32},
    rotates_part=True,
)

AS_GGUF = GGUF(
    arch="stablelm",
    eps="attention.layer_norm_epsilon",
    weights=(*COMMON, *SPLIT_QKV, *GATED_MLP),
    fields=(Key("use_parallel_residual", "parallel_residual"),),
    pre_tokenizer="olmo",
)

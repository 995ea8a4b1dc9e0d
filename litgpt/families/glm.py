"""GLM-4: neighbouring dimensions of half of each head rotate, fused gate, and, from 0414 on, sandwich norms.

https://arxiv.org/abs/2406.12793.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import Same, Split, changed, named, size
from litgpt.families.gguf import COMMON, FUSED_GATE, NORMED_OUTPUTS, SPLIT_QKV
from litgpt.families.hf_config import pop_activation, pop_rope, push_activation, push_rope


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    activation = pop_activation(left, "silu", gated=True)
    bias = bool(left.pop("attention_bias", False))  # on queries, keys and values only
    rope = {"rotary_percentage": 0.5, **pop_rope(left)}
    return {**rope, **llama.pop_attention(left), **activation, "attn_bias": bias, "attn_proj_bias": False}


def to_hf(config: Any) -> dict[str, Any]:
    rope = push_rope(config)
    return {
        **rope,
        "rope_parameters": {
            "rope_type": "default",
            **(rope["rope_scaling"] or {}),
            "rope_theta": rope["rope_theta"],
            "partial_rotary_factor": config.rotary_percentage,
        },
        "partial_rotary_factor": config.rotary_percentage,
        "hidden_act": push_activation(config),
        "num_key_value_heads": config.n_query_groups,
        "head_dim": config.head_size,
        "attention_bias": config.attn_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "pad_token_id": None,
    }


FUSED_GATE_MLP = changed(
    llama.WEIGHTS,
    Split("model.layers.{i}.mlp.gate_up_proj", ("transformer.h.{i}.mlp.fc_1", "transformer.h.{i}.mlp.fc_2")),
    without=("transformer.h.{i}.mlp.fc_1", "transformer.h.{i}.mlp.fc_2"),
)

FAMILY = replace(
    llama.FAMILY,
    name="glm4",
    architectures=("Glm4ForCausalLM",),
    model_type="glm4",
    base={
        **llama.BASE,
        "rotary_percentage": 0.5,
        "rope_interleave": True,
        "post_attention_norm": True,
        "post_mlp_norm": True,
    },
    rows=named(
        "zai-org",
        {
            "GLM-4-9B-0414": size(40, 32, 4096, 13696, 2, attn_bias=True),
            "GLM-4-32B{,-Base}-0414": size(61, 48, 6144, 23040, 8, head_size=128),
        },
        dict(block_size=32768, vocab_size=151552, padded_vocab_size=151552),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    prompt_styles=(),
    weights=changed(
        FUSED_GATE_MLP,
        Same("model.layers.{i}.post_self_attn_layernorm", "transformer.h.{i}.post_attention_norm"),
        Same("model.layers.{i}.post_attention_layernorm", "transformer.h.{i}.norm_2"),
        Same("model.layers.{i}.post_mlp_layernorm", "transformer.h.{i}.post_mlp_norm"),
    ),
    hf_defaults={
        "rms_norm_eps": 1.5625e-07,
        "max_position_embeddings": 131072,
        "head_dim": 128,
        "num_key_value_heads": 2,
        "attention_bias": True,
    },
    rotates_part=True,
)

EARLIER = replace(
    FAMILY,
    name="glm",
    architectures=("GlmForCausalLM",),
    model_type="glm",
    base={**llama.BASE, "rotary_percentage": 0.5, "rope_interleave": True},
    rows=named(
        "zai-org",
        {
            "glm-4-9b{,-chat}-hf": size(40, 32, 4096, 13696, 2, attn_bias=True, block_size=131072),
        },
        dict(vocab_size=151552, padded_vocab_size=151552),
    ),
    weights=FUSED_GATE_MLP,
)

AS_GGUF = replace(
    llama.AS_GGUF,
    arch="glm4",
    weights=(*COMMON, *SPLIT_QKV, *FUSED_GATE, *NORMED_OUTPUTS),
    paired=(),
)

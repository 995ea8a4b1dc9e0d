"""MiniCPM 3 and Youtu-LLM: Llama with latent attention; MiniCPM scales embeddings, residuals and logits.

https://arxiv.org/abs/2404.06395, https://arxiv.org/abs/2512.24618.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from litgpt.errors import LitGPTError
from litgpt.families import deepseek, llama
from litgpt.families.base import Drop, changed, without
from litgpt.families.hf_config import pop_activation, pop_rope, push_activation, push_rope


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    activation = pop_activation(left, "silu", gated=True)
    for key in ("head_dim", "qk_head_dim", "embedding_initializer_range"):
        left.pop(key, None)
    rope = pop_rope(left)
    found = llama.pop_attention(left)
    if found.pop("n_query_groups") not in (None, left["num_attention_heads"]):
        raise LitGPTError("config.json has `num_key_value_heads` unlike `num_attention_heads`, not known here.")
    return {
        **rope,
        **activation,
        "tie_embeddings": found["tie_embeddings"],
        "mlp_bias": found["bias"] or found["mlp_bias"],
        "attn_bias": found["bias"] or found["attn_bias"],
        "latent_attention": {key: left.pop(key) for key in deepseek.LATENT},
        "rope_interleave": bool(left.pop("rope_interleave", False)),
    }


def from_hf_3(left: dict[str, Any]) -> dict[str, Any]:
    values = left.get("v_head_dim") or left["hidden_size"] // left["num_attention_heads"]
    depth, base, left["v_head_dim"] = left.pop("scale_depth"), left.pop("dim_model_base", None), values
    return {
        **from_hf(left),
        "embedding_multiplier": float(left.pop("scale_emb")),
        "residual_multiplier": 1.0 if depth is None else depth / math.sqrt(left["num_hidden_layers"]),
        "logits_divisor": left["hidden_size"] / (base or left["hidden_size"]),
    }


def to_hf(config: Any) -> dict[str, Any]:
    return {
        **push_rope(config),
        **config.latent_attention,
        "hidden_act": push_activation(config),
        "num_key_value_heads": config.n_head,
        "attention_bias": config.attn_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_interleave": config.rope_interleave,
        "pad_token_id": None,
    }


def to_hf_3(config: Any) -> dict[str, Any]:
    return {
        **without(to_hf(config), "rope_interleave"),
        "mlp_bias": config.mlp_bias,
        "scale_emb": config.embedding_multiplier,
        "scale_depth": config.residual_multiplier * math.sqrt(config.n_layer),
        "dim_model_base": round(config.n_embd / config.logits_divisor),
    }


LATENT_ATTENTION = tuple(rule for rule in deepseek.WEIGHTS if not isinstance(rule, Drop) and ".attn." in str(rule.ours))


def from_hf_youtu(left: dict[str, Any]) -> dict[str, Any]:
    return {**from_hf(left), "padding_row": left.get("pad_token_id")}


def to_hf_youtu(config: Any) -> dict[str, Any]:
    return {**to_hf(config), "pad_token_id": config.padding_row}


YOUTU = replace(
    llama.FAMILY,
    name="youtu",
    architectures=("YoutuForCausalLM",),
    model_type="youtu",
    base={**llama.BASE, "rope_interleave": True},
    rows={},
    from_hf=from_hf_youtu,
    to_hf=to_hf_youtu,
    weights=changed(llama.WEIGHTS, *LATENT_ATTENTION, without=("transformer.h.{i}.attn.qkv",)),
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 16,
        "tie_word_embeddings": True,
        "rope_interleave": True,
        **dict(zip(deepseek.LATENT, (1536, 512, 64, 128, 128), strict=True)),
    },
)

MINICPM_3 = replace(
    YOUTU,
    name="minicpm3",
    architectures=("MiniCPM3ForCausalLM",),
    model_type="minicpm3",
    base=llama.BASE,
    from_hf=from_hf_3,
    to_hf=to_hf_3,
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 40,
        "tie_word_embeddings": True,
        "scale_emb": 12,
        "scale_depth": 1.4,
        "dim_model_base": 256,
        **dict(zip(deepseek.LATENT, (768, 256, 32, 64, None), strict=True)),
    },
)

"""GPT-Neo: GPT-2 whose every other layer has a window, and whose scores are not scaled.

https://github.com/EleutherAI/gpt-neo.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import gpt2
from litgpt.families.base import Drop, Join, Same, changed, named, size
from litgpt.families.hf_config import pop_activation, push_activation


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    kinds = left.pop("attention_layers", None)
    types, window = left.pop("attention_types", None), left.pop("window_size", 256)
    kinds = [kind for group, times in types or [[["global", "local"], 12]] for _ in range(times) for kind in group]
    for key in ("embed_dropout", "resid_dropout"):
        left.pop(key, None)
    windowed = [int(kind == "local") for kind in kinds]
    return {
        **pop_activation(left, "gelu_new", "activation_function"),
        "sliding_window_size": window if any(windowed) else None,
        "sliding_window_indices": windowed if any(windowed) else None,
        "intermediate_size": left.pop("intermediate_size", None),
        "tie_embeddings": bool(left.pop("tie_word_embeddings", True)),
    }


def to_hf(config: Any) -> dict[str, Any]:
    windowed = config.sliding_window_indices or [0] * config.n_layer
    return {
        "attention_types": [[["local" if local else "global"], 1] for local in windowed],
        "window_size": config.sliding_window_size or 256,
        "intermediate_size": config.intermediate_size,
        "activation_function": push_activation(config, "gelu_new"),
        "tie_word_embeddings": config.tie_embeddings,
    }


FAMILY = replace(
    gpt2.FAMILY,
    name="gpt_neo",
    architectures=("GPTNeoForCausalLM",),
    model_type="gpt_neo",
    base={
        **gpt2.FAMILY.base,
        "bias": False,
        "mlp_bias": True,
        "attn_proj_bias": True,
        "attention_scores_scalar": 1.0,
        "block_size": 2048,
    },
    rows=named(
        "EleutherAI",
        {
            "gpt-neo-125m": size(12, 12, 768, 3072, sliding_window_indices=[0, 1] * 6),
            "gpt-neo-1.3B": size(24, 16, 2048, 8192, sliding_window_indices=[0, 1] * 12),
            "gpt-neo-2.7B": size(32, 20, 2560, 10240, sliding_window_indices=[0, 1] * 16),
        },
        dict(sliding_window_size=256),
    ),
    hf_fields=(
        ("hidden_size", "n_embd"),
        ("num_layers", "n_layer"),
        ("num_heads", "n_head"),
        ("vocab_size", "padded_vocab_size"),
        ("max_position_embeddings", "block_size"),
        ("layer_norm_epsilon", "norm_eps"),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        tuple(replace(rule, transpose=False) if isinstance(rule, Same) else rule for rule in gpt2.WEIGHTS),
        Join(
            (
                "transformer.h.{i}.attn.attention.q_proj",
                "transformer.h.{i}.attn.attention.k_proj",
                "transformer.h.{i}.attn.attention.v_proj",
            ),
            "transformer.h.{i}.attn.qkv",
        ),
        Same("transformer.h.{i}.attn.attention.out_proj", "transformer.h.{i}.attn.proj"),
        Drop("transformer.h.{i}.attn.attention.bias"),
        Drop("transformer.h.{i}.attn.attention.masked_bias"),
    ),
    hf_defaults={"layer_norm_epsilon": 1e-5, "max_position_embeddings": 2048},
    hf_spellings={"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
    hf_constants={},
)

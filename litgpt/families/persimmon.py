"""Persimmon: normed queries and keys, squared ReLU, half of each head rotates (https://www.adept.ai/blog/persimmon-8b)."""

from __future__ import annotations

from typing import Any

from litgpt.families import llama, phi
from litgpt.families.base import Family, Interleaved, Same, changed, named, size
from litgpt.families.hf_config import pop_activation, pop_rope, push_activation


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    left.pop("hidden_dropout", None)
    return {
        "rotary_percentage": 0.5,
        **pop_rope(left),
        **pop_activation(left, "relu2"),
        "norm_qk": bool(left.pop("qk_layernorm", True)),
        "tie_embeddings": bool(left.pop("tie_word_embeddings", False)),
    }


def to_hf(config: Any) -> dict[str, Any]:
    said = phi.to_hf(config)
    del said["num_key_value_heads"]
    return {**said, "hidden_act": push_activation(config), "qk_layernorm": config.norm_qk, "pad_token_id": None}


FAMILY = Family(
    name="persimmon",
    architectures=("PersimmonForCausalLM",),
    model_type="persimmon",
    base=dict(parallel_residual=False, activation="relu2"),
    rows=named(
        "adept",
        {"persimmon-8b-{base,chat}": size(36, 64, 4096, 16384, norm_qk=True, rotary_percentage=0.5)},
        dict(block_size=16384, vocab_size=262144, padded_vocab_size=262144, rope_base=25000),
    ),
    hf_fields=llama.LAYER_NORM_FIELDS,
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        phi.PHI.rules(None),
        Interleaved("model.layers.{i}.self_attn.query_key_value", "transformer.h.{i}.attn.qkv"),
        Same("model.layers.{i}.post_attention_layernorm", "transformer.h.{i}.norm_2"),
        Same("model.layers.{i}.mlp.dense_h_to_4h", "transformer.h.{i}.mlp.fc"),
        Same("model.layers.{i}.mlp.dense_4h_to_h", "transformer.h.{i}.mlp.proj"),
        *phi.NORMED_QK,
    ),
    prefix="model.",
    hf_defaults={
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 16384,
        "hidden_act": "relu2",
        "qk_layernorm": True,
    },
    rotates_part=True,
)

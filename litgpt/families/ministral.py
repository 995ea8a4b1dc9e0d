"""Ministral: Mistral with a window in some layers; and Ministral 3, whose queries grow in a stretched context.

https://mistral.ai/news/ministraux, https://mistral.ai/news/mistral-3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import named, size
from litgpt.families.gguf import Key, Metadata
from litgpt.families.hf_config import pop_rope_settings, push_adjustments, push_windows


def to_hf(config: Any) -> dict[str, Any]:
    return {**llama.mistral_to_hf(config), **push_windows(config)}


def from_hf_3(left: dict[str, Any]) -> dict[str, Any]:
    rope = pop_rope_settings(left)
    scale, floor = rope.pop("llama_4_scaling_beta"), rope["original_max_position_embeddings"]
    left["rope_parameters"] = rope
    return {
        **llama.from_hf(left),
        "query_tuning": dict(scale=scale, floor=floor, offset=0, unturned_only=False),
    }


def to_hf_3(config: Any) -> dict[str, Any]:
    plain = llama.mistral_to_hf(config)
    rope = {**plain.pop("rope_scaling"), "rope_theta": plain.pop("rope_theta")}
    return {**plain, "rope_parameters": {**rope, "llama_4_scaling_beta": config.query_tuning["scale"]}}


MINISTRAL = replace(
    llama.MISTRAL,
    name="ministral",
    architectures=("MinistralForCausalLM",),
    model_type="ministral",
    rows={},
    to_hf=to_hf,
)

YARN = dict(factor=16.0, beta_fast=32.0, beta_slow=1.0, original_max_seq_len=16384, mscale=1.0, mscale_all_dim=1.0)

MINISTRAL_3 = replace(
    llama.MISTRAL,
    name="ministral3",
    architectures=("Ministral3ForCausalLM",),
    model_type="ministral3",
    rows=named(
        "mistralai",
        {"Ministral-3-8B-Base-2512": size(34, 32, 4096, 14336, 8, head_size=128)},
        dict(block_size=262144, vocab_size=131072, padded_vocab_size=131072, rope_base=1000000, rope_adjustments=YARN),
        dict(query_tuning=dict(scale=0.1, floor=16384, offset=0, unturned_only=False)),
    ),
    from_hf=from_hf_3,
    to_hf=to_hf_3,
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 262144,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_parameters": {**push_adjustments("yarn", YARN), "rope_theta": 1000000.0, "llama_4_scaling_beta": 0.1},
    },
)


def gguf_implied(found: Mapping[str, Any]) -> Metadata:
    adjust = found.get("rope_adjustments") or {"original_max_seq_len": found["block_size"]}
    tuning = dict(floor=adjust["original_max_seq_len"], offset=0, unturned_only=False)
    return {"query_tuning": found["query_tuning"] | tuning}


AS_GGUF = replace(
    llama.AS_GGUF,
    arch="mistral3",
    more=(Key("attention.temperature_scale", "query_tuning.scale", 0.0),),
    implied=gguf_implied,
    yarn_log=1.0,
)

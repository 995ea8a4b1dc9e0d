"""Code World Model: Llama with a window in three layers of four (https://arxiv.org/abs/2510.02387)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import named, size
from litgpt.families.hf_config import push_windows

ROPE = dict(factor=16.0, low_freq_factor=1.0, high_freq_factor=4.0)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    if left.get("layer_types") is None:
        layers = range(left["num_hidden_layers"])
        left["layer_types"] = ["sliding_attention" if layer % 4 else "full_attention" for layer in layers]
    if left.get("rope_parameters") is None and left.get("rope_scaling") is None:
        stretched = {"rope_type": "llama3", "original_max_position_embeddings": 8192, **ROPE}
        left["rope_parameters"] = {"rope_theta": left.pop("rope_theta", 1000000.0), **stretched}
    left["sliding_window"] = left.get("sliding_window") or None
    return llama.from_hf(left)


def to_hf(config: Any) -> dict[str, Any]:
    plain = {key: value for key, value in llama.to_hf(config).items() if key != "attention_bias"}
    return {**plain, **push_windows(config), "pad_token_id": None}


FAMILY = replace(
    llama.FAMILY,
    name="cwm",
    architectures=("CwmForCausalLM",),
    model_type="cwm",
    rows=named(
        "facebook",
        {"cwm{,-sft,-pretrain}": size(64, 48, 6144, 21504, 8, head_size=128, rope_base=1000000)},
        dict(block_size=131072, vocab_size=128256, padded_vocab_size=128256, sliding_window_size=8192),
        dict(sliding_window_indices=[0, 1, 1, 1] * 16, rope_adjustments={**ROPE, "original_max_seq_len": 8192}),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "sliding_window": 8192,
        "rope_theta": 1000000.0,
    },
)

"""Phi 3.5's mixture: Mixtral with LayerNorms, biases, and a router that weighs near rivals only (SparseMixer).

https://arxiv.org/abs/2404.14219, https://arxiv.org/abs/2409.12136.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.errors import LitGPTError, quoted
from litgpt.families import llama, mixtral
from litgpt.families.hf_config import pop_rope_settings, push_windows

BASE = {**mixtral.FAMILY.base, "norm_class_name": "LayerNorm"}
SCALES = ("short_mscale", "long_mscale")


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    rope = pop_rope_settings(left)
    short, long = (rope.pop(key, None) for key in SCALES)
    if short != long:
        raise LitGPTError(f"config.json has `long_mscale`: {quoted(long)} unlike `short_mscale`, not known here.")
    if short is not None:
        rope["attention_factor"] = short
    left["rope_parameters"] = rope
    if left["num_experts_per_tok"] != 2:
        raise LitGPTError("config.json has another `num_experts_per_tok` than 2, which this router chooses.")
    left.pop("input_jitter_noise", None)  # of training
    margin = left.pop("router_jitter_noise", 0.01)
    return {
        **mixtral.from_hf(left),
        "router_margin": margin,
        "lm_head_bias": bool(left.pop("lm_head_bias", False)),
    }


def to_hf(config: Any) -> dict[str, Any]:
    written = {**mixtral.to_hf(config), "attention_bias": config.attn_bias}
    if (adjust := config.rope_adjustments) is not None and "long_factor" in adjust:
        scale = adjust.get("attention_factor")
        rope = {**written.pop("rope_scaling"), "rope_theta": written.pop("rope_theta")}
        rope.pop("attention_factor", None)
        written["rope_parameters"] = {**rope, **({} if scale is None else dict.fromkeys(SCALES, scale))}
        written["original_max_position_embeddings"] = adjust["original_max_seq_len"]
    windows = push_windows(config) if config.sliding_window_size else {"sliding_window": None}
    return {
        **written,
        "sliding_window": windows["sliding_window"],
        "router_jitter_noise": config.router_margin,
        "lm_head_bias": config.lm_head_bias,
    }


FAMILY = replace(
    mixtral.FAMILY,
    name="phimoe",
    architectures=("PhimoeForCausalLM", "PhiMoEForCausalLM"),
    model_type="phimoe",
    base=BASE,
    rows={},
    hf_fields=llama.HF_FIELDS,
    from_hf=from_hf,
    to_hf=to_hf,
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "num_local_experts": 16,
        "num_experts_per_tok": 2,
        "rope_theta": 1000000.0,
    },
)

"""MiMo-V2-Flash: DeepSeek's mixtures; twice the keys, and sinks, in windows; values are narrower than keys.

https://huggingface.co/XiaomiMiMo/MiMo-V2-Flash.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import deepseek, laguna, llama, qwen
from litgpt.families.base import Drop, Same, changed, without

BASE = {
    **llama.BASE,
    "mlp_class_name": "LLaMAMoE",
    "router_scores": "sigmoid",
    "n_topk_scores_per_group": 2,
    "attention_sinks": True,
    "sinks_in_windows": True,
}
SHARE = 0.334


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    layers, window = left["num_hidden_layers"], left.pop("sliding_window_size", None)
    if window is not None:  # of the tokens before a query
        left["sliding_window"] = window + 1
    left["layer_types"] = left.get("layer_types") or [
        "sliding_attention" if layer and (layer + 1) % 6 else "full_attention" for layer in range(layers)
    ]
    left["rope_parameters"] = {
        kind: {"partial_rotary_factor": SHARE, **rope} for kind, rope in left["rope_parameters"].items()
    }
    left["num_experts"] = left.pop("n_routed_experts")
    left["routed_scaling_factor"] = left["routed_scaling_factor"] or 1.0
    found = laguna.pop_layers(left, sparse_from=1)
    scale = left.pop("attention_value_scale", None)
    return {
        **found,
        "attn_proj_bias": False,
        "value_size": left.pop("v_head_dim"),
        "values_multiplier": 1.0 if scale is None else scale,
        **(windowed(found) if found["sliding_window_size"] else {}),
        "routed_scaling_factor": left.pop("routed_scaling_factor"),
        **deepseek.pop_router(left),
    }


def windowed(found: dict[str, Any]) -> dict[str, Any]:
    """Twice the keys where there is a window."""
    groups = found["n_query_groups"]
    whole = {"head_size": found["head_size"], "n_query_groups": groups, "keys_are_values": False}
    return {"n_query_groups": 2 * groups, "global_heads": whole}


def to_hf(config: Any) -> dict[str, Any]:
    groups = config.n_query_groups if config.global_heads is None else config.global_heads["n_query_groups"]
    return {
        **without(laguna.push_layers(config), "num_experts"),
        "num_key_value_heads": groups,
        "v_head_dim": config.value_size,
        "attention_value_scale": config.values_multiplier,
        "n_routed_experts": config.n_expert,
        "routed_scaling_factor": config.routed_scaling_factor,
        "n_group": config.n_expert_groups,
        "topk_group": config.n_topk_groups,
        "norm_topk_prob": config.norm_topk_prob,
    }


FULL = {"rope_type": "default", "rope_theta": 5000000.0, "partial_rotary_factor": SHARE}
FAMILY = replace(
    llama.FAMILY,
    name="mimo_v2_flash",
    architectures=("MiMoV2FlashForCausalLM",),
    model_type="mimo_v2_flash",
    base=BASE,
    rows={},
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        llama.WEIGHTS,
        *qwen.MIXTURE,
        Same("model.layers.{i}.self_attn.attention_sink_bias", "transformer.h.{i}.attn.sinks"),
        Drop("model.mtp.*"),
    ),
    prompt_styles=(),
    alternatives=qwen.STACKED,
    rotates_part=True,
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 4,
        "head_dim": 192,
        "v_head_dim": 128,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "attention_value_scale": 0.707,
        "sliding_window": 129,
        "rope_parameters": {"full_attention": FULL, "sliding_attention": {**FULL, "rope_theta": 10000.0}},
    },
    hf_spellings={"num_local_experts": "n_routed_experts"},
)

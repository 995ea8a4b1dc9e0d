"""Mistral 4: DeepSeek's latent attention and mixtures with a softmax router; queries grow in a stretched context."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.errors import LitGPTError, quoted
from litgpt.families import deepseek
from litgpt.families.base import changed, said, without
from litgpt.families.hf_config import pop_choice, pop_rope_settings, push_adjustments
from litgpt.families.qwen import STACKED


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    rope = pop_rope_settings(left)
    scale, floor = rope.pop("llama_4_scaling_beta", None), rope.get("original_max_position_embeddings")
    turned = left["qk_rope_head_dim"] / (left["qk_nope_head_dim"] + left["qk_rope_head_dim"])
    share = rope.pop("partial_rotary_factor", turned)
    if share != turned:
        raise LitGPTError(f"config.json has `partial_rotary_factor`: {quoted(share)}, unlike the heads' sizes.")
    left["rope_parameters"] = rope
    for key in ("topk_method", "scoring_func"):
        pop_choice(left, key, {"noaux_tc": None, "softmax": None, "greedy": None}, "softmax")
    return {
        **deepseek.from_hf_3(left),
        "router_scores": "softmax",
        "query_tuning": scale and dict(scale=scale, floor=floor, offset=0, unturned_only=False),
    }


def to_hf(config: Any) -> dict[str, Any]:
    written = without(deepseek.to_hf_3(config), "rope_theta", "rope_scaling")
    rope: dict[str, Any] = {"rope_theta": float(config.rope_base), "rope_type": "default"}
    if config.rope_adjustments is not None:
        rope |= push_adjustments("yarn", config.rope_adjustments)
    if config.query_tuning is not None:
        rope |= {
            "llama_4_scaling_beta": config.query_tuning["scale"],
            "original_max_position_embeddings": config.query_tuning["floor"],
        }
    return {**written, "rope_parameters": rope}


FAMILY = replace(
    deepseek.V3,
    name="mistral4",
    architectures=("Mistral4ForCausalLM",),
    model_type="mistral4",
    rows={},
    published={"mistralai/Mistral-Small-4-119B-2603": said(4096, 36, 32, 12288, 131072)},
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(deepseek.WEIGHTS, *STACKED),
    hf_defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 1048576,
        "num_experts_per_tok": 4,
        "n_shared_experts": 1,
        "n_routed_experts": 128,
        "moe_intermediate_size": 2048,
        "first_k_dense_replace": 0,
        "routed_scaling_factor": 1.0,
        "kv_lora_rank": 256,
        "q_lora_rank": 1024,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "qk_nope_head_dim": 64,
        "n_group": 1,
        "topk_group": 1,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 128.0,
            "original_max_position_embeddings": 8192,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
)

"""dots.llm1 and K-EXAONE: DeepSeek's mixtures behind Qwen 3's attention, with windows (https://arxiv.org/abs/2506.05767)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import deepseek, llama, qwen
from litgpt.families.base import Drop, Same, changed, said, without
from litgpt.families.hf_config import pop_rope, pop_silu, pop_windows, push_rope, push_windows

BASE = {**qwen.BASE_3, "mlp_class_name": "LLaMAMoE", "router_scores": "sigmoid"}


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    pop_silu(left)
    return {
        **pop_rope(left),
        **pop_windows(left),
        **llama.pop_attention(left),
        **deepseek.pop_experts(left),
        **deepseek.pop_router(left),
    }


def to_hf(config: Any) -> dict[str, Any]:
    return {
        **push_rope(config),
        **push_windows(config),
        "hidden_act": "silu",
        **llama.push_attention(config),
        **deepseek.push_experts(config),
        "norm_topk_prob": config.norm_topk_prob,
    }


DOTS = replace(
    llama.FAMILY,
    name="dots1",
    architectures=("Dots1ForCausalLM",),
    model_type="dots1",
    base=BASE,
    rows={},
    published={
        "rednote-hilab/dots.llm1.{base,inst}": said(
            *(4096, 62, 32, 10944, 152064),
            n_routed_experts=128,
            n_shared_experts=2,
            num_experts_per_tok=6,
            first_k_dense_replace=1,
            routed_scaling_factor=2.5,
            norm_topk_prob=True,
            max_position_embeddings=32768,
            rope_theta=10000000,
            sliding_window=None,
        )
    },
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(qwen.WEIGHTS_3, *deepseek.MIXTURE),
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "num_key_value_heads": 32,
        "moe_intermediate_size": 1408,
        "n_shared_experts": None,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "sliding_window": 4096,
        "max_window_layers": 62,
    },
    hf_spellings={"num_local_experts": "n_routed_experts"},
    alternatives=qwen.STACKED,
)


def exaone_from_hf(left: dict[str, Any]) -> dict[str, Any]:
    for key in ("num_nextn_predict_layers", "num_mtp_layers"):
        left.pop(key, None)
    pattern = left.pop("sliding_window_pattern", None)
    if left.get("layer_types") is None:
        layers, every = range(left["num_hidden_layers"]), pattern if isinstance(pattern, str) else "L" * (pattern - 1)
        every = every if isinstance(pattern, str) else every + "G"
        left["layer_types"] = ["sliding_attention" if every[i % len(every)] == "L" else "" for i in layers]
    deepseek.complete_layer_types(left)
    found = from_hf(left)
    # Where some layers have a window, the others don't rotate.
    return {**found, "rope_layers": found["sliding_window_indices"]}


def exaone_to_hf(config: Any) -> dict[str, Any]:
    theirs = {"n_routed_experts": "num_experts", "n_shared_experts": "num_shared_experts"}
    return {theirs.get(key, key): value for key, value in to_hf(config).items()} | {
        "mlp_layer_types": deepseek.layer_types(config),
    }


EXAONE = replace(
    DOTS,
    name="exaone_moe",
    architectures=("ExaoneMoeForCausalLM",),
    model_type="exaone_moe",
    published={
        "LGAI-EXAONE/K-EXAONE-236B-A23B": said(
            *(6144, 48, 64, 18432, 153600),
            num_key_value_heads=8,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            moe_intermediate_size=2048,
            routed_scaling_factor=2.5,
            sliding_window=128,
            sliding_window_pattern="LLLG",
            max_position_embeddings=262144,
            rope_theta=1000000,
        )
    },
    from_hf=exaone_from_hf,
    to_hf=exaone_to_hf,
    weights=changed(
        DOTS.rules(None),
        Same("model.layers.{i}.mlp.e_score_correction_bias", "transformer.h.{i}.mlp.gate.e_score_correction_bias"),
        Drop("mtp.*"),
    ),
    hf_defaults={
        **without(DOTS.hf_defaults, "max_window_layers", "norm_topk_prob"),
        "rms_norm_eps": 1e-5,
        "moe_intermediate_size": 1024,
        "n_routed_experts": 64,
        "num_experts_per_tok": 8,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 2.5,
        "sliding_window_pattern": 4,
    },
    hf_spellings={"num_experts": "n_routed_experts", "num_shared_experts": "n_shared_experts"},
)

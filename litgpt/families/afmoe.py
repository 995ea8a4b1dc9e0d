"""AFMoE (Trinity): sandwich norms, gated attention that rotates in windows only, DeepSeek's router."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import deepseek, llama, qwen
from litgpt.families.base import GatedJoin, Same, changed
from litgpt.families.hf_config import pop_rope, pop_silu, pop_windows, push_rope, push_windows

BASE = {
    **qwen.BASE_3,
    "mlp_class_name": "LLaMAMoE",
    "attention_gate": True,
    "post_attention_norm": True,
    "post_mlp_norm": True,
    "router_scores": "sigmoid",
    "n_expert_groups": 1,
    "n_topk_groups": 1,
    "norm_topk_prob": True,
}
ATTN, MLP = "transformer.h.{i}.attn", "transformer.h.{i}.mlp"
THEIRS = "model.layers.{i}"


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    pop_silu(left)
    every = left.pop("global_attn_every_n_layers", None)
    windows = pop_windows(left, every)
    return {
        **pop_rope(left),
        **windows,
        "rope_layers": windows["sliding_window_indices"] or [0] * left["num_hidden_layers"],
        **llama.pop_attention(left),
        "scale_embeddings": bool(left.pop("mup_enabled", False)),
        **deepseek.pop_experts(left),
    }


def to_hf(config: Any) -> dict[str, Any]:
    return {
        **push_rope(config),
        **push_windows(config),
        "hidden_act": "silu",
        **llama.push_attention(config),
        "mup_enabled": config.scale_embeddings,
        "num_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
        "num_shared_experts": config.n_shared_expert,
        "moe_intermediate_size": config.moe_intermediate_size,
        "num_dense_layers": config.first_k_dense_replace or 0,
        "route_scale": config.routed_scaling_factor,
    }


FAMILY = replace(
    llama.FAMILY,
    name="afmoe",
    architectures=("AfmoeForCausalLM",),
    model_type="afmoe",
    base=BASE,
    rows={},
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        qwen.WEIGHTS_3,
        *deepseek.MIXTURE,
        GatedJoin(
            (
                f"{THEIRS}.self_attn.gate_proj",
                f"{THEIRS}.self_attn.q_proj",
                f"{THEIRS}.self_attn.k_proj",
                f"{THEIRS}.self_attn.v_proj",
            ),
            f"{ATTN}.qkv",
        ),
        Same(f"{THEIRS}.post_attention_layernorm", "transformer.h.{i}.post_attention_norm"),
        Same(f"{THEIRS}.pre_mlp_layernorm", "transformer.h.{i}.norm_2"),
        Same(f"{THEIRS}.post_mlp_layernorm", "transformer.h.{i}.post_mlp_norm"),
        Same(f"{THEIRS}.mlp.router.gate", f"{MLP}.gate"),
        Same(f"{THEIRS}.mlp.expert_bias", f"{MLP}.gate.e_score_correction_bias"),
    ),
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 16384,
        "head_dim": 128,
        "moe_intermediate_size": 1408,
        "first_k_dense_replace": 1,
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
        "n_shared_experts": 2,
        "routed_scaling_factor": 1.0,
        "global_attn_every_n_layers": 4,
        "sliding_window": 1024,
    },
    hf_spellings={
        "num_experts": "n_routed_experts",
        "num_shared_experts": "n_shared_experts",
        "num_dense_layers": "first_k_dense_replace",
        "route_scale": "routed_scaling_factor",
    },
    hf_constants={"score_func": "sigmoid", "route_norm": True},
    alternatives=qwen.STACKED,
)

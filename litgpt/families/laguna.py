"""Laguna and Mellum 2: mixtures whose layers rotate otherwise where they have a window; Laguna's heads are gated.

https://huggingface.co/poolside/laguna-XS.2, https://huggingface.co/JetBrains/Mellum2-12B-A2.5B-Base.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.errors import LitGPTError, UnsupportedError, quoted
from litgpt.families import llama, qwen
from litgpt.families.base import Drop, GatedJoin, Rule, Same, changed
from litgpt.families.hf_config import (
    pop_choice,
    pop_rope_by_window,
    pop_silu,
    pop_windows,
    push_rope_by_window,
    push_windows,
)

BASE = {
    **qwen.BASE_3,
    "mlp_class_name": "LLaMAMoE",
    "router_scores": "sigmoid",
    "n_expert_groups": 1,
    "n_topk_groups": 1,
    "norm_topk_prob": True,
    "n_shared_expert": 1,
    "gate_activation": "softplus",
}
THEIRS, OURS = "model.layers.{i}", "transformer.h.{i}"
MIXTURE = (
    Same(f"{THEIRS}.mlp.experts.e_score_correction_bias", f"{OURS}.mlp.gate.e_score_correction_bias"),
    *(
        Same(f"{THEIRS}.mlp.shared_expert.{theirs}_proj", f"{OURS}.mlp.shared_experts.{ours}")
        for theirs, ours in (("gate", "fc_1"), ("up", "fc_2"), ("down", "proj"))
    ),
)
BY_VALUE = GatedJoin(
    (
        f"{THEIRS}.self_attn.g_proj",
        f"{THEIRS}.self_attn.q_proj",
        f"{THEIRS}.self_attn.k_proj",
        f"{THEIRS}.self_attn.v_proj",
    ),
    f"{OURS}.attn.qkv",
)
GATES: dict[Any, bool] = {True: True, "per-head": True, "per-element": False}


def weights(config: Any) -> tuple[Rule, ...]:
    gates = Same(f"{THEIRS}.self_attn.g_proj", f"{OURS}.attn.gate") if config.head_gates else BY_VALUE
    return changed(qwen.WEIGHTS_3_MOE, *MIXTURE, gates)


def pop_layers(left: dict[str, Any], sparse_from: int) -> dict[str, Any]:
    """Takes windows, RoPE, and which layers are mixtures out of a `config.json`."""
    pop_silu(left)
    layers = left["num_hidden_layers"]
    left["layer_types"] = left.get("layer_types") or ["full_attention"] * layers
    windows = pop_windows(left)
    kinds = left.pop("mlp_layer_types", None) or ["dense"] * sparse_from + ["sparse"] * (layers - sparse_from)
    if {*kinds} - {"dense", "sparse"}:
        raise LitGPTError(f"config.json has `mlp_layer_types`: {quoted(kinds)}, which are not all known here.")
    mixtures = [int(kind == "sparse") for kind in kinds]
    return {
        **pop_rope_by_window(left, part=True),
        **windows,
        "rope_indices": windows["sliding_window_indices"],
        **llama.pop_attention(left),
        "n_expert": left.pop("num_experts"),
        "n_expert_per_token": left.pop("num_experts_per_tok"),
        "moe_intermediate_size": left.pop("moe_intermediate_size"),
        "moe_layers": None if all(mixtures) else mixtures,
    }


def push_layers(config: Any) -> dict[str, Any]:
    """And back."""
    return {
        **push_windows(config),
        **push_rope_by_window(config, part=True),
        **llama.push_attention(config),
        "num_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
        "moe_intermediate_size": config.moe_intermediate_size,
        "mlp_layer_types": ["dense" if config.dense(layer) else "sparse" for layer in range(config.n_layer)],
    }


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    heads, gating = left.pop("num_attention_heads_per_layer", None), left.pop("gating")
    found = pop_layers(left, sparse_from=1)
    by_head = pop_choice({"gating": gating}, "gating", GATES, "per-head")
    if found["attn_bias"] and not by_head:
        raise UnsupportedError("config.json has `attention_bias` beside a gate for each value, which has none.")
    if left.pop("moe_router_logit_softcapping", None):
        raise UnsupportedError("config.json has `moe_router_logit_softcapping`, which no router here has.")
    return {
        **found,
        "heads_by_layer": heads if heads and {*heads} != {left["num_attention_heads"]} else None,
        "head_gates": by_head,
        "attention_gate": not by_head,
        "shared_intermediate_size": left.pop("shared_expert_intermediate_size"),
        "routed_scaling_factor": left.pop("moe_routed_scaling_factor"),
    }


def to_hf(config: Any) -> dict[str, Any]:
    return {
        **push_layers(config),
        "num_attention_heads_per_layer": [config.heads(layer) for layer in range(config.n_layer)],
        "gating": "per-head" if config.head_gates else "per-element",
        "shared_expert_intermediate_size": config.shared_intermediate_size,
        "moe_routed_scaling_factor": config.routed_scaling_factor,
    }


def mellum_from_hf(left: dict[str, Any]) -> dict[str, Any]:
    for key in ("num_mtp_layers", "num_nextn_predict_layers", "mtp_layer_types", "mtp_mlp_layer_types"):
        left.pop(key, None)
    return {**pop_layers(left, sparse_from=0), "router_softmax_over_all": not left.pop("norm_topk_prob")}


def by_window(base: float, share: float) -> dict[str, Any]:
    """RoPE's defaults."""
    local = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    return {
        "full_attention": {"rope_type": "default", "rope_theta": base, "partial_rotary_factor": share},
        "sliding_attention": local,
    }


FAMILY = replace(
    llama.FAMILY,
    name="laguna",
    architectures=("LagunaForCausalLM",),
    model_type="laguna",
    base=BASE,
    rows={},
    from_hf=from_hf,
    to_hf=to_hf,
    weights=weights,
    prompt_styles=(),
    alternatives=qwen.STACKED,
    rotates_part=True,
    hf_defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "sliding_window": 512,
        "gating": True,
        "moe_routed_scaling_factor": 1.0,
        "rope_parameters": by_window(500000.0, 0.5),
    },
    hf_constants={"moe_apply_router_weight_on_input": False},
)

MELLUM = replace(
    FAMILY,
    name="mellum",
    architectures=("MellumForCausalLM",),
    model_type="mellum",
    base={**qwen.BASE_3, "mlp_class_name": "LLaMAMoE"},
    from_hf=mellum_from_hf,
    to_hf=lambda config: {**push_layers(config), "norm_topk_prob": not config.router_softmax_over_all},
    weights=changed(qwen.WEIGHTS_3_MOE, Drop("mtp.*")),
    hf_defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 896,
        "sliding_window": 1024,
        "norm_topk_prob": True,
        "rope_parameters": by_window(500000.0, 1.0),
    },
    hf_spellings={"num_local_experts": "num_experts"},
    hf_constants={},
)

"""Hunyuan: Llama whose queries and keys are normed after they rotate; Mixtral's experts beside one for every token; and
Hy3: DeepSeek's router, norms before (https://github.com/Tencent-Hunyuan)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.errors import LitGPTError, quoted
from litgpt.families import deepseek, llama, qwen
from litgpt.families.base import Drop, Same, changed, said, without
from litgpt.families.hf_config import pop_needed


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    for key in ("rope_parameters", "rope_scaling"):
        rope = left.get(key)
        if isinstance(rope, dict) and rope.get("alpha") and "dynamic" in (rope.get("rope_type"), rope.get("type")):
            size = left.get("head_dim") or left["hidden_size"] // left["num_attention_heads"]
            base = rope.get("rope_theta") or left.get("rope_theta") or 10000.0
            left[key] = {"rope_type": "default", "rope_theta": base * rope["alpha"] ** (size / (size - 2))}
    found = llama.from_hf(left)
    for key in ("eod_token_id", "use_qk_norm", "use_cla", "cla_share_factor", "pad_id", "im_start_id", "im_end_id"):
        left.pop(key, None)
    return found


def to_hf(config: Any) -> dict[str, Any]:
    return {**without(llama.to_hf(config), "mlp_bias"), "pad_token_id": None}


FAMILY = replace(
    llama.FAMILY,
    name="hunyuan_v1_dense",
    architectures=("HunYuanDenseV1ForCausalLM",),
    model_type="hunyuan_v1_dense",
    base={**llama.BASE, "norm_qk": True, "norm_qk_rotated": True},
    rows={},
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        llama.WEIGHTS,
        Same("model.layers.{i}.self_attn.query_layernorm", "transformer.h.{i}.attn.norm_q"),
        Same("model.layers.{i}.self_attn.key_layernorm", "transformer.h.{i}.attn.norm_k"),
    ),
    prompt_styles=(),
    hf_defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
)


def one_for_all(left: dict[str, Any], key: str) -> Any:
    """Takes a number out of a `config.json` that may be said layer by layer."""
    value = left.pop(key)
    numbers = value if isinstance(value, list) else [value]
    if not numbers or numbers.count(numbers[0]) != len(numbers):
        raise LitGPTError(f"config.json has `{key}`: {quoted(value)}; layers here have equally many.")
    return numbers[0]


def moe_from_hf(left: dict[str, Any]) -> dict[str, Any]:
    experts, used = one_for_all(left, "num_experts"), one_for_all(left, "moe_topk")
    return {
        **from_hf(left),
        "n_expert": experts,
        "n_expert_per_token": used,
        "shared_intermediate_size": left["intermediate_size"],
    }


def moe_to_hf(config: Any) -> dict[str, Any]:
    return {**to_hf(config), "num_experts": config.n_expert, "moe_topk": config.n_expert_per_token}


GATE, SHARED = "model.layers.{i}.mlp.gate.wg", "model.layers.{i}.mlp.shared_mlp"
OURS = "transformer.h.{i}.mlp"
SHARED_RULES = tuple(
    Same(f"{SHARED}.{theirs}", f"{OURS}.shared_experts.{ours}")
    for theirs, ours in (("gate_proj", "fc_1"), ("up_proj", "fc_2"), ("down_proj", "proj"))
)

MOE = replace(
    FAMILY,
    name="hunyuan_v1_moe",
    architectures=("HunYuanMoEV1ForCausalLM",),
    model_type="hunyuan_v1_moe",
    base={**FAMILY.base, "mlp_class_name": "LLaMAMoE", "n_shared_expert": 1},
    from_hf=moe_from_hf,
    to_hf=moe_to_hf,
    weights=changed(
        (*FAMILY.rules(None), *qwen.MIXTURE), Same(GATE, f"{OURS}.gate"), *SHARED_RULES, without=llama.DENSE
    ),
    hf_defaults={**FAMILY.hf_defaults, "num_experts": 1, "moe_topk": 1},
    hf_spellings={"num_experts_per_tok": "moe_topk", "num_local_experts": "num_experts"},
    alternatives=qwen.STACKED,
)


def hy3_from_hf(left: dict[str, Any]) -> dict[str, Any]:
    deepseek.complete_layer_types(left)
    kinds = left.pop("mlp_layer_types")
    left.pop("enable_moe_fp32_combine", None)  # of rounding
    return {
        **llama.from_hf(left),
        "n_expert": pop_needed(left, "num_experts"),
        "n_expert_per_token": pop_needed(left, "num_experts_per_tok"),
        "n_shared_expert": left.pop("num_shared_experts"),
        "moe_intermediate_size": left.pop("moe_intermediate_size"),
        "moe_layers": [int(kind == "sparse") for kind in kinds],
        "routed_scaling_factor": left.pop("router_scaling_factor"),
    }


def hy3_to_hf(config: Any) -> dict[str, Any]:
    return {
        **llama.to_hf(config),
        "num_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
        "num_shared_experts": config.n_shared_expert,
        "moe_intermediate_size": config.moe_intermediate_size,
        "mlp_layer_types": deepseek.layer_types(config),
        "router_scaling_factor": config.routed_scaling_factor,
    }


HY_3 = replace(
    llama.FAMILY,
    name="hy_v3",
    architectures=("HYV3ForCausalLM",),
    model_type="hy_v3",
    base={
        **llama.BASE,
        "mlp_class_name": "LLaMAMoE",
        "norm_qk": True,
        "router_scores": "sigmoid",
        "n_expert_groups": 1,
        "n_topk_groups": 1,
        "norm_topk_prob": True,
    },
    rows={},
    published={"tencent/Hy3-preview": said(4096, 80, 64, 13312, 120832)},
    from_hf=hy3_from_hf,
    to_hf=hy3_to_hf,
    weights=changed(
        (*llama.WEIGHTS, *qwen.MIXTURE, *llama.NORMED_QK),
        Same("model.layers.{i}.mlp.router.gate", f"{OURS}.gate"),
        Same("model.layers.{i}.mlp.expert_bias", f"{OURS}.gate.e_score_correction_bias"),
        *SHARED_RULES,
        Drop("model.layers.{n}.*"),  # a layer that predicts the token after the next
    ),
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 11158840.0,
        "num_experts": 192,
        "num_experts_per_tok": 8,
        "num_shared_experts": 1,
        "moe_intermediate_size": 1536,
        "router_scaling_factor": 2.826,
    },
    hf_spellings={"num_local_experts": "num_experts"},
)

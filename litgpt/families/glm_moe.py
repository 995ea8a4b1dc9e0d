"""GLM-4.5 to 4.7 and Solar Open: DeepSeek's mixtures behind grouped queries; GLM-4.7-Flash: behind latent attention.

https://arxiv.org/abs/2508.06471.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.errors import UnsupportedError
from litgpt.families import deepseek, llama
from litgpt.families.base import changed, named, size, without
from litgpt.families.hf_config import pop_rope, pop_silu, push_rope
from litgpt.families.qwen import STACKED

BASE = {**llama.BASE, "mlp_class_name": "LLaMAMoE", "n_topk_scores_per_group": 2, "router_scores": "sigmoid"}


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    pop_silu(left)
    for key in ("num_nextn_predict_layers", "num_mtp_layers"):
        left.pop(key, None)
    bias = bool(left.pop("attention_bias", False))  # on queries, keys and values only
    return {
        "rotary_percentage": 0.5,
        **pop_rope(left),
        **llama.pop_attention(left),
        "attn_bias": bias,
        "norm_qk": bool(left.pop("use_qk_norm", False)),
        **deepseek.pop_experts(left),
        **deepseek.pop_router(left),
    }


def to_hf(config: Any) -> dict[str, Any]:
    rope = push_rope(config)
    scaling = rope["rope_scaling"] or {"rope_type": "default"}
    share = {"partial_rotary_factor": config.rotary_percentage}
    return {
        "rope_parameters": {**scaling, "rope_theta": rope["rope_theta"], **share},
        **share,
        "hidden_act": "silu",
        "num_key_value_heads": config.n_query_groups,
        "head_dim": config.head_size,
        "attention_bias": config.attn_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "use_qk_norm": config.norm_qk,
        **deepseek.push_experts(config),
        "norm_topk_prob": config.norm_topk_prob,
    }


def solar_from_hf(left: dict[str, Any]) -> dict[str, Any]:
    left |= {"first_k_dense_replace": 0, "use_qk_norm": False}  # their class has neither
    found = {"rotary_percentage": 1.0, **from_hf(left)}
    return {**found, "intermediate_size": left.pop("intermediate_size", None) or found["moe_intermediate_size"]}


SHARED = dict(vocab_size=151552, padded_vocab_size=151552, rope_base=1000000, rotary_percentage=0.5, attn_bias=True)
ROUTER = dict(n_expert_groups=1, n_topk_groups=1, norm_topk_prob=True)
LARGE = size(92, 96, 5120, 12288, 8, moe_intermediate_size=1536, n_expert=160, first_k_dense_replace=3, norm_qk=True)
LARGE |= dict(routed_scaling_factor=2.5)
AIR = size(46, 96, 4096, 10944, 8, moe_intermediate_size=1408, n_expert=128, first_k_dense_replace=1)

DEFAULTS = {
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.5,
    "moe_intermediate_size": 1408,
    "num_experts_per_tok": 8,
    "n_shared_experts": 1,
    "n_routed_experts": 128,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
GLM_4V = {**DEFAULTS, "max_position_embeddings": 65536, "attention_bias": True}

MOE = replace(
    llama.FAMILY,
    name="glm4_moe",
    architectures=("Glm4MoeForCausalLM",),
    model_type="glm4_moe",
    base=BASE,
    rows=named(
        "zai-org",
        {
            "GLM-4.5{,-Base}": {**LARGE, "block_size": 131072},
            "GLM-4.5-Air{,-Base}": {**AIR, "block_size": 131072},
            "GLM-{4.6,4.7}": {**LARGE, "block_size": 202752},
        },
        SHARED,
        ROUTER,
        dict(head_size=128, n_expert_per_token=8, n_shared_expert=1),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(llama.WEIGHTS, *llama.NORMED_QK, *deepseek.MIXTURE),
    prompt_styles=(),
    hf_defaults=DEFAULTS,
    hf_spellings={"num_experts": "n_routed_experts", "num_local_experts": "n_routed_experts"},
    alternatives=STACKED,
    rotates_part=True,
    inside={"glm4v_moe_text": GLM_4V},
)

SOLAR = replace(
    MOE,
    name="solar_open",
    architectures=("SolarOpenForCausalLM",),
    model_type="solar_open",
    rows={},
    published={
        "upstage/Solar-Open-100B": {
            "hidden_size": 4096,
            "num_hidden_layers": 48,
            "num_attention_heads": 64,
            "vocab_size": 196608,
        }
    },
    hf_fields=tuple(pair for pair in llama.HF_FIELDS if pair[0] != "intermediate_size"),  # all layers have experts
    from_hf=solar_from_hf,
    to_hf=lambda config: without(to_hf(config), "use_qk_norm", "first_k_dense_replace"),
    hf_defaults={
        **without(MOE.hf_defaults, "partial_rotary_factor"),
        "head_dim": 128,
        "moe_intermediate_size": 1280,
        "first_k_dense_replace": 0,
        "rope_theta": 1000000.0,
        "partial_rotary_factor": 1.0,
    },
)


def lite_to_hf(config: Any) -> dict[str, Any]:
    written = without(deepseek.to_hf_3(config), "first_k_dense_replace")
    return {**written, "mlp_layer_types": deepseek.layer_types(config)}


def lite_from_hf(left: dict[str, Any]) -> dict[str, Any]:
    deepseek.complete_layer_types(left)
    share = (left.get("rope_parameters") or {}).get("partial_rotary_factor", left.get("partial_rotary_factor"))
    if share not in (None, 1):
        raise UnsupportedError("config.json has `partial_rotary_factor`; what rotates here rotates whole.")
    return deepseek.from_hf_3(left)


LITE = replace(
    deepseek.V3,
    name="glm4_moe_lite",
    architectures=("Glm4MoeLiteForCausalLM",),
    model_type="glm4_moe_lite",
    rows=named(
        "zai-org",
        {"GLM-4.7-Flash": size(47, 20, 2048, 10240, moe_intermediate_size=1536, n_expert=64, n_expert_per_token=4)},
        dict(block_size=202752, vocab_size=154880, padded_vocab_size=154880, rope_base=1000000, norm_eps=1e-5),
        dict(n_shared_expert=1, moe_layers=[0] + [1] * 46, routed_scaling_factor=1.8, n_topk_scores_per_group=2),
        dict(
            latent_attention=dict(
                q_lora_rank=768, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=192, v_head_dim=256
            )
        ),
        ROUTER,
    ),
    from_hf=lite_from_hf,
    to_hf=lite_to_hf,
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 202752,
        "moe_intermediate_size": 1536,
        "n_shared_experts": 1,
        "n_routed_experts": 64,
        "routed_scaling_factor": 1.8,
        "kv_lora_rank": 512,
        "q_lora_rank": 768,
        "qk_rope_head_dim": 64,
        "v_head_dim": 256,
        "qk_nope_head_dim": 192,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 4,
    },
    alternatives=STACKED,
)

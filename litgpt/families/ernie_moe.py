"""ERNIE 4.5's mixtures: a softmax router with a bias, experts for all, dense first layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.errors import LitGPTError
from litgpt.families import deepseek, llama, qwen
from litgpt.families.base import Drop, Same, changed, named, size
from litgpt.families.hf_config import pop_rope, pop_silu, push_rope

BASE = {
    **llama.BASE,
    "mlp_class_name": "LLaMAMoE",
    "rope_interleave": True,
    "router_scores": "softmax",
    "router_bias": True,
    "n_expert_groups": 1,
    "n_topk_groups": 1,
    "norm_topk_prob": True,
}


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    pop_silu(left)
    if left.pop("use_bias", False):
        raise LitGPTError("config.json has `use_bias`: true, which no mixture here has.")
    left.pop("moe_norm_min", None)  # of a sum of the largest shares, which is far above it
    for key in ("moe_capacity", "moe_use_aux_free", "num_nextn_predict_layers", "mtp_loss_scaling_factor"):
        left.pop(key, None)
    start, end = left.pop("moe_layer_start_index"), left.pop("moe_layer_end_index")
    step, n_layer = left.pop("moe_layer_interval"), left["num_hidden_layers"]
    last = n_layer - 1 if end == -1 else end
    left["n_shared_experts"] = left.pop("moe_num_shared_experts")
    left["mlp_layer_types"] = [
        "sparse" if (layer + 1) % step == 0 and start <= layer <= last else "dense" for layer in range(n_layer)
    ]
    left["routed_scaling_factor"] = 1.0
    return {**pop_rope(left), **llama.pop_attention(left), **deepseek.pop_experts(left)}


def to_hf(config: Any) -> dict[str, Any]:
    mixtures = [layer for layer in range(config.n_layer) if not config.dense(layer)]
    first, last = mixtures[0], mixtures[-1]
    step = 1 if len(mixtures) == last - first + 1 else mixtures[1] - first
    return {
        **push_rope(config),
        "hidden_act": "silu",
        "num_key_value_heads": config.n_query_groups,
        "head_dim": config.head_size,
        "tie_word_embeddings": config.tie_embeddings,
        "use_bias": False,
        "moe_num_experts": config.n_expert,
        "moe_k": config.n_expert_per_token,
        "moe_num_shared_experts": config.n_shared_expert or 0,
        "moe_intermediate_size": config.moe_intermediate_size,
        "moe_layer_start_index": first,
        "moe_layer_end_index": last,
        "moe_layer_interval": step,
    }


FAMILY = replace(
    llama.FAMILY,
    name="ernie4_5_moe",
    architectures=("Ernie4_5_MoeForCausalLM",),
    model_type="ernie4_5_moe",
    base=BASE,
    rows=named(
        "baidu",
        {
            "ERNIE-4.5-21B-A3B-{Base-PT,PT,Thinking}": size(
                28, 20, 2560, 12288, 4, moe_layers=[0] + [1] * 27, tie_embeddings=True
            )
        },
        dict(block_size=131072, vocab_size=103424, padded_vocab_size=103424, rope_base=500000, norm_eps=1e-5),
        dict(n_expert=64, n_expert_per_token=6, n_shared_expert=2, moe_intermediate_size=1536, head_size=128),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        llama.WEIGHTS,
        *deepseek.MIXTURE,
        Same(
            "model.layers.{i}.mlp.moe_statics.e_score_correction_bias",
            "transformer.h.{i}.mlp.gate.e_score_correction_bias",
            row=True,
        ),
        Drop("model.mtp*"),
    ),
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "moe_intermediate_size": 1536,
        "num_experts_per_tok": 6,
        "n_routed_experts": 64,
        "moe_num_shared_experts": 2,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
        "rope_theta": 500000.0,
    },
    hf_spellings={
        "moe_k": "num_experts_per_tok",
        "moe_num_experts": "n_routed_experts",
        "num_experts": "n_routed_experts",
    },
    alternatives=qwen.STACKED,
)

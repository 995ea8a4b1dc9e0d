"""LFM2: gated short convolutions in most layers, grouped queries in some; mixtures too (https://arxiv.org/abs/2511.23404)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import Rule, Same, changed, said, spelled, without
from litgpt.families.hf_config import pop_rope, push_rope

BASE = dict(**llama.BASE, norm_qk=True)
THEIRS, ATTN, MLP = "model.layers.{i}", "transformer.h.{i}.attn", "transformer.h.{i}.mlp"
CONV = (
    Same(f"{THEIRS}.conv.in_proj", f"{ATTN}.in_proj"),
    Same(f"{THEIRS}.conv.conv", f"{ATTN}.conv"),
    Same(f"{THEIRS}.conv.out_proj", f"{ATTN}.proj"),
)
PARTS = (("w1", "fc_1"), ("w3", "fc_2"), ("w2", "proj"))
WEIGHTS = changed(
    llama.WEIGHTS,
    Same(f"{THEIRS}.operator_norm", "transformer.h.{i}.norm_1"),
    Same(f"{THEIRS}.ffn_norm", "transformer.h.{i}.norm_2"),
    Same(f"{THEIRS}.self_attn.out_proj", f"{ATTN}.proj"),
    Same(f"{THEIRS}.self_attn.q_layernorm", f"{ATTN}.norm_q"),
    Same(f"{THEIRS}.self_attn.k_layernorm", f"{ATTN}.norm_k"),
    *(Same(f"{THEIRS}.feed_forward.{theirs}", f"{MLP}.{ours}") for theirs, ours in PARTS),
    Same("model.embedding_norm", "transformer.ln_f"),
)
EXPERTS = (
    Same(f"{THEIRS}.feed_forward.gate", f"{MLP}.gate"),
    Same(f"{THEIRS}.feed_forward.expert_bias", f"{MLP}.gate.e_score_correction_bias"),
    *(Same(f"{THEIRS}.feed_forward.experts.{{e}}.{theirs}", f"{MLP}.experts.{{e}}.{ours}") for theirs, ours in PARTS),
)
FIELDS = (*(pair for pair in llama.HF_FIELDS if pair[1] != "norm_eps"), ("norm_eps", "norm_eps"))


def weights(config: Any) -> tuple[Rule, ...]:
    special = [spelled(rule, layer) for layer in range(config.n_layer) if config.linear(layer) for rule in CONV]
    return (*WEIGHTS, *(EXPERTS if config.n_expert else ()), *special)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    attending, layers = left.pop("full_attn_idxs", None), range(left["num_hidden_layers"])
    kinds = left.pop("layer_types", None) or [
        "conv" if attending is not None and layer not in attending else "full_attention" for layer in layers
    ]
    conv = {"kernel_size": left.pop("conv_L_cache"), "bias": bool(left.pop("conv_bias"))}
    recurrent = [int(kind == "conv") for kind in kinds]
    left.setdefault("tie_word_embeddings", left.pop("tie_embedding", True))
    for key in ("conv_dim", "conv_dim_out", "conv_use_xavier_init", "block_use_swiglu", "block_norm_eps"):
        left.pop(key, None)
    for key in ("block_use_xavier_init", "block_dim", "block_mlp_init_scale", "block_out_init_scale", "num_heads"):
        left.pop(key, None)
    return {
        **pop_rope(left),
        **llama.pop_attention(left),
        "short_conv": conv if any(recurrent) else None,
        "linear_attention_indices": recurrent if any(recurrent) else None,
    }


def from_hf_dense(left: dict[str, Any]) -> dict[str, Any]:
    size, factor = left["intermediate_size"], left.pop("block_ffn_dim_multiplier")
    multiple = left.pop("block_multiple_of")
    if left.pop("block_auto_adjust_ff_dim"):
        size = int(2 * size / 3)
        if factor is not None:
            size = -(-int(factor * size) // multiple) * multiple
    left.pop("block_ff_dim", None)
    return {**from_hf(left), "intermediate_size": size}


def to_hf(config: Any) -> dict[str, Any]:
    conv = config.short_conv or {"kernel_size": 3, "bias": False}
    recurrent = config.linear_attention_indices or [0] * config.n_layer
    return {
        **push_rope(config),
        **without(llama.push_attention(config), "attention_bias", "head_dim"),
        "layer_types": ["conv" if state else "full_attention" for state in recurrent],
        "conv_L_cache": conv["kernel_size"],
        "conv_bias": conv["bias"],
    }


DEFAULTS = {
    "norm_eps": 1e-5,
    "max_position_embeddings": 128000,
    "num_key_value_heads": 8,
    "rope_theta": 1000000.0,
    "conv_bias": False,
    "conv_L_cache": 3,
}

ATTENDING = dict(full_attn_idxs=[2, 5, 8, 10, 12, 14])
DENSE = replace(
    llama.FAMILY,
    name="lfm2",
    architectures=("Lfm2ForCausalLM",),
    model_type="lfm2",
    base=BASE,
    rows={},
    published={
        "LiquidAI/LFM2-350M": said(1024, 16, 16, 6656, 65536, **ATTENDING),
        "LiquidAI/LFM2-700M": said(1536, 16, 24, 10240, 65536, **ATTENDING),
        "LiquidAI/LFM2-1.2B": said(2048, 16, 32, 12288, 65536, **ATTENDING),
    },
    hf_fields=FIELDS,
    from_hf=from_hf_dense,
    to_hf=lambda config: {**to_hf(config), "block_auto_adjust_ff_dim": False},
    weights=weights,
    prompt_styles=(),
    hf_defaults={
        **DEFAULTS,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
    },
)


def from_hf_moe(left: dict[str, Any]) -> dict[str, Any]:
    return {
        **from_hf(left),
        "n_expert": left.pop("num_experts"),
        "n_expert_per_token": left.pop("num_experts_per_tok"),
        "moe_intermediate_size": left.pop("moe_intermediate_size"),
        "first_k_dense_replace": left.pop("num_dense_layers"),
        "routed_scaling_factor": left.pop("routed_scaling_factor"),
        "norm_topk_prob": bool(left.pop("norm_topk_prob")),
        "router_bias": bool(left.pop("use_expert_bias")),
    }


def to_hf_moe(config: Any) -> dict[str, Any]:
    return {
        **to_hf(config),
        "num_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
        "moe_intermediate_size": config.moe_intermediate_size,
        "num_dense_layers": config.first_k_dense_replace or 0,
        "routed_scaling_factor": config.routed_scaling_factor,
        "norm_topk_prob": config.norm_topk_prob,
        "use_expert_bias": config.router_bias,
    }


MOE = replace(
    DENSE,
    name="lfm2_moe",
    architectures=("Lfm2MoeForCausalLM",),
    model_type="lfm2_moe",
    base={
        **BASE,
        "mlp_class_name": "LLaMAMoE",
        "router_scores": "sigmoid",
        "router_eps": 1e-6,
        "n_expert_groups": 1,
        "n_topk_groups": 1,
    },
    published={"LiquidAI/LFM2-8B-A1B": said(2048, 24, 32, 7168, 65536, full_attn_idxs=[2, 6, 10, 14, 18, 21])},
    from_hf=from_hf_moe,
    to_hf=to_hf_moe,
    hf_defaults={
        **DEFAULTS,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1792,
        "num_dense_layers": 2,
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": True,
        "use_expert_bias": True,
    },
)

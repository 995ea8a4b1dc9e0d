"""Kimi Linear: three layers of a delta rule that forgets channel by channel, then one of latent attention that rotates
nothing; DeepSeek's mixtures (https://arxiv.org/abs/2510.26692)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import deepseek
from litgpt.families.base import Join, Rule, Same, changed, without
from litgpt.families.qwen_next import in_their_layers

THEIRS, ATTN = "model.layers.{i}.self_attn", "transformer.h.{i}.attn"
MLP, ROUTED = "transformer.h.{i}.mlp", "model.layers.{i}.block_sparse_moe"
LINEARS = (("gate_proj", "fc_1"), ("up_proj", "fc_2"), ("down_proj", "proj"))
DELTA: tuple[Rule, ...] = (
    Join(tuple(f"{THEIRS}.{part}_proj" for part in "qkv"), f"{ATTN}.qkv"),
    Join(tuple(f"{THEIRS}.{part}_conv1d" for part in "qkv"), f"{ATTN}.conv"),
    *(Same(f"{THEIRS}.{theirs}", f"{ATTN}.{theirs}") for theirs in ("A_log", "dt_bias")),
    *(Same(f"{THEIRS}.f_{'ab'[half]}_proj", f"{ATTN}.decay.{half}") for half in (0, 1)),
    *(Same(f"{THEIRS}.g_{'ab'[half]}_proj", f"{ATTN}.gate.{half}") for half in (0, 1)),
    Same(f"{THEIRS}.b_proj", f"{ATTN}.beta"),
    Same(f"{THEIRS}.o_norm", f"{ATTN}.norm"),
)
WEIGHTS = changed(
    deepseek.WEIGHTS,
    Same(f"{ROUTED}.gate", f"{MLP}.gate"),
    *(
        Same(f"{ROUTED}.experts.{{e}}.{theirs}", f"{MLP}.experts.{{e}}.{ours}")
        for theirs, ours in (("w1", "fc_1"), ("w3", "fc_2"), ("w2", "proj"))
    ),
    *(Same(f"{ROUTED}.shared_experts.{theirs}", f"{MLP}.shared_experts.{ours}") for theirs, ours in LINEARS),
    *(Same(f"{ROUTED}.{theirs}", f"{MLP}.{ours}") for theirs, ours in LINEARS),
)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    said, layers = left.pop("linear_attn_config", None) or {}, range(left["num_hidden_layers"])
    sizes = {
        ours: said.get(key, left.pop(f"linear_{theirs}"))
        for key, theirs, ours in (
            ("head_dim", "head_dim", "key_size"),
            ("num_heads", "num_heads", "n_key_heads"),
            ("short_conv_kernel_size", "conv_kernel_dim", "kernel_size"),
        )
    }
    kinds = left.pop("layer_types", None)
    if kinds is not None:
        attending = [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]
    elif "full_attn_layers" in said:  # which count from 1
        attending = [layer - 1 for layer in said["full_attn_layers"]]
    else:
        attending = [layer for layer in layers if layer and layer % 4 == 0]
    deepseek.complete_layer_types(left)
    for key in ("rope_theta", "rope_scaling", "rope_parameters", "mla_use_nope", "use_grouped_topk"):
        left.pop(key, None)
    return {
        **without(deepseek.from_hf(left), "rope_base", "rope_adjustments"),
        **deepseek.pop_router(left),
        "linear_attention": {
            **sizes,
            "n_value_heads": sizes["n_key_heads"],
            "value_size": sizes["key_size"],
            "by_channel": True,
        },
        "linear_attention_indices": [int(layer not in attending) for layer in layers],
        "rope_layers": [0 for _ in layers],
    }


NAMES = {
    "n_group": "num_expert_group",
    "n_routed_experts": "num_experts",
    "num_experts_per_tok": "num_experts_per_token",
    "n_shared_experts": "num_shared_experts",
    "norm_topk_prob": "moe_renormalize",
}
"""What keys of DeepSeek's are called here."""


def to_hf(config: Any) -> dict[str, Any]:
    said = {**deepseek.to_hf(config), "norm_topk_prob": config.norm_topk_prob}
    sizes = config.linear_attention
    return {
        **{NAMES.get(key, key): value for key, value in said.items() if not key.startswith(("rope_", "first_k"))},
        "mlp_layer_types": deepseek.layer_types(config),
        "layer_types": [
            "linear_attention" if linear else "full_attention" for linear in config.linear_attention_indices
        ],
        "linear_head_dim": sizes["key_size"],
        "linear_num_heads": sizes["n_key_heads"],
        "linear_conv_kernel_dim": sizes["kernel_size"],
        "pad_token_id": None,
    }


FAMILY = replace(
    deepseek.V3,
    name="kimi_linear",
    architectures=("KimiLinearForCausalLM",),
    model_type="kimi_linear",
    rows={},
    hf_fields=tuple(("model_max_length" if ours == "block_size" else key, ours) for key, ours in deepseek.V3.hf_fields),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=lambda config: (*WEIGHTS, *in_their_layers(config, DELTA)),
    alternatives=tuple(
        Same(f"model.layers.{{i}}.mlp.{theirs}.weight", f"{MLP}.{ours}.weight") for theirs, ours in LINEARS
    ),
    hf_defaults={
        **without(deepseek.V3.hf_defaults, "max_position_embeddings", "first_k_dense_replace"),
        "rms_norm_eps": 1e-5,
        "model_max_length": 1048576,
        "moe_intermediate_size": 1024,
        "routed_scaling_factor": 2.446,
        "q_lora_rank": None,
        "n_group": 1,
        "topk_group": 1,
        "linear_head_dim": 128,
        "linear_num_heads": 32,
        "linear_conv_kernel_dim": 4,
    },
    hf_constants={"moe_router_activation_func": "sigmoid"},
    hf_spellings={
        **{theirs: ours for ours, theirs in NAMES.items()},
        "num_local_experts": "n_routed_experts",
        "max_position_embeddings": "model_max_length",
    },
)

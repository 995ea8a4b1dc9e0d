"""Qwen3-Next and Qwen 3.5 (text): three layers of gated delta rule, then one of attention with gates; and so on.

https://qwen.ai/blog?id=qwen3-next.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama, qwen
from litgpt.families.base import Dealt, Drop, Rule, Same, changed, named, said, size, spelled, without
from litgpt.families.hf_config import pop_rope, pop_silu, push_rope

BASE = dict(**{**qwen.BASE_3, "rotary_percentage": 0.25}, norm_unit_offset=True, attention_gate=True)
SIZES = tuple(
    (f"linear_{theirs}", ours)
    for theirs, ours in (
        ("num_key_heads", "n_key_heads"),
        ("num_value_heads", "n_value_heads"),
        ("key_head_dim", "key_size"),
        ("value_head_dim", "value_size"),
        ("conv_kernel_dim", "kernel_size"),
    )
)
"""`config.json` key ↔ key of `linear_attention`."""

THEIRS, ATTN = "model.layers.{i}.linear_attn", "transformer.h.{i}.attn"
DELTA = (
    Same(f"{THEIRS}.conv1d", f"{ATTN}.conv"),
    Same(f"{THEIRS}.dt_bias", f"{ATTN}.dt_bias"),
    Same(f"{THEIRS}.A_log", f"{ATTN}.A_log"),
    Same(f"{THEIRS}.norm", f"{ATTN}.norm"),
    Same(f"{THEIRS}.out_proj", f"{ATTN}.proj"),
)
SEPARATE = (
    *DELTA,
    Same(f"{THEIRS}.in_proj_qkv", f"{ATTN}.qkv"),
    Same(f"{THEIRS}.in_proj_z", f"{ATTN}.gate"),
    Same(f"{THEIRS}.in_proj_b", f"{ATTN}.beta"),
    Same(f"{THEIRS}.in_proj_a", f"{ATTN}.decay"),
)
MIXTURE = (
    Same("model.layers.{i}.mlp.shared_expert.gate_proj", "transformer.h.{i}.mlp.shared_experts.fc_1"),
    Same("model.layers.{i}.mlp.shared_expert.up_proj", "transformer.h.{i}.mlp.shared_experts.fc_2"),
    Same("model.layers.{i}.mlp.shared_expert.down_proj", "transformer.h.{i}.mlp.shared_experts.proj"),
    Same("model.layers.{i}.mlp.shared_expert_gate.weight", "transformer.h.{i}.mlp.shared_gate"),
    Drop("mtp.*"),  # extra layers that predict the token after the next
)


def weights(config: Any) -> tuple[Rule, ...]:
    assert config.linear_attention is not None
    groups = config.linear_attention["n_key_heads"]
    keys, _, values = (rows // groups for rows in config.qkv_rows(config.linear_attention_indices.index(1)))
    heads = config.linear_attention["n_value_heads"] // groups
    fused = (
        *DELTA,
        Dealt(f"{THEIRS}.in_proj_qkvz", (f"{ATTN}.qkv", f"{ATTN}.gate"), ((keys, keys, values), (values,)), groups),
        Dealt(f"{THEIRS}.in_proj_ba", (f"{ATTN}.beta", f"{ATTN}.decay"), ((heads,), (heads,)), groups),
    )
    return (*changed(qwen.WEIGHTS_3_MOE, *MIXTURE), *in_their_layers(config, fused))


def separate_weights(config: Any) -> tuple[Rule, ...]:
    return (*changed(qwen.WEIGHTS_3, Drop("mtp.*")), *in_their_layers(config, SEPARATE))


def separate_mixture(config: Any) -> tuple[Rule, ...]:
    return (*changed(qwen.WEIGHTS_3_MOE, *MIXTURE), *in_their_layers(config, SEPARATE))


def in_their_layers(config: Any, rules: tuple[Rule, ...]) -> list[Rule]:
    """These rules for the layers of linear attention; what the others have at those places stands before."""
    return [spelled(rule, layer) for layer in range(config.n_layer) if config.linear(layer) for rule in rules]


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    pop_silu(left)
    if not left.pop("use_sliding_window", False):
        left.pop("sliding_window", None)
        left.pop("max_window_layers", None)
    for key in ("mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"):
        left.pop(key, None)
    every, layers = left.pop("full_attention_interval", 4), range(left["num_hidden_layers"])
    kinds = left.pop("layer_types", None) or ["full" if (layer + 1) % every == 0 else "linear" for layer in layers]
    linear = [int(kind.startswith("linear")) for kind in kinds]
    sizes = {ours: left.pop(theirs) for theirs, ours in SIZES}
    return {
        **pop_rope(left),
        **llama.pop_attention(left),
        "linear_attention": sizes if any(linear) else None,
        "linear_attention_indices": linear if any(linear) else None,
    }


def to_hf(config: Any) -> dict[str, Any]:
    indices = config.linear_attention_indices or [0] * config.n_layer
    return {
        **push_rope(config),
        **{theirs: config.linear_attention[ours] for theirs, ours in SIZES},
        "hidden_act": "silu",
        "num_key_value_heads": config.n_query_groups,
        "head_dim": config.head_size,
        "partial_rotary_factor": config.rotary_percentage,
        "attention_bias": config.attn_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "layer_types": ["linear_attention" if linear else "full_attention" for linear in indices],
    }


def from_hf_next(left: dict[str, Any]) -> dict[str, Any]:
    shared = left.pop("shared_expert_intermediate_size")
    width = shared if shared != left["moe_intermediate_size"] else None
    return {**from_hf(left), **qwen.pop_experts(left), "shared_intermediate_size": width}


def to_hf_next(config: Any) -> dict[str, Any]:
    shared = config.shared_intermediate_size or config.n_shared_expert * config.moe_intermediate_size
    return {**to_hf(config), **qwen.push_experts(config), "shared_expert_intermediate_size": shared}


def pattern(n_layer: int) -> dict[str, Any]:
    return dict(linear_attention_indices=[int((layer + 1) % 4 != 0) for layer in range(n_layer)])


LINEAR = dict(linear_num_key_heads=16, linear_num_value_heads=32, linear_key_head_dim=128, linear_value_head_dim=128)
DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    **LINEAR,
    "linear_conv_kernel_dim": 4,
}
GATED = {"attn_output_gate": True, "output_gate_type": ("silu", "swish")}

NEXT = replace(
    qwen.QWEN_3_MOE,
    name="qwen3_next",
    architectures=("Qwen3NextForCausalLM",),
    model_type="qwen3_next",
    base={**BASE, "mlp_class_name": "LLaMAMoE", "n_shared_expert": 1, "shared_expert_gate": True},
    rows=named(
        "Qwen",
        {
            "Qwen3-Next-80B-A3B-{Instruct,Thinking}": size(
                48, 16, 2048, 5120, 2, head_size=256, moe_intermediate_size=512, n_expert=512, n_expert_per_token=10
            )
        },
        dict(vocab_size=151643, padded_vocab_size=151936, norm_eps=1e-6, block_size=262144, rope_base=10000000),
        dict(linear_attention={ours: DEFAULTS[theirs] for theirs, ours in SIZES}),
        pattern(48),
    ),
    from_hf=from_hf_next,
    to_hf=to_hf_next,
    weights=weights,
    hf_defaults={
        **DEFAULTS,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 2,
        "num_experts": 512,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_experts_per_tok": 10,
        "norm_topk_prob": True,
    },
    hf_constants=GATED,
    rotates_part=True,
)

FAR = dict(max_position_embeddings=262144, rope_theta=10000000)
SMALL = dict(**FAR, linear_num_value_heads=16, tie_word_embeddings=True)
LARGE = dict(**FAR, linear_num_value_heads=64, moe_intermediate_size=1024, shared_expert_intermediate_size=1024)
TEXT = replace(
    qwen.QWEN_3,
    name="qwen3_5",
    architectures=("Qwen3_5ForCausalLM",),
    model_type="qwen3_5_text",
    base=BASE,
    rows={},
    published={
        "Qwen/Qwen3.5-0.8B": said(1024, 24, 8, 3584, 248320, num_key_value_heads=2, **SMALL),
        "Qwen/Qwen3.5-2B": said(2048, 24, 8, 6144, 248320, num_key_value_heads=2, **SMALL),
        "Qwen/Qwen3.5-4B": said(2560, 32, 16, 9216, 248320, **{**SMALL, "linear_num_value_heads": 32}),
        "Qwen/Qwen3.5-9B": said(4096, 32, 16, 12288, 248320, **FAR),
        "Qwen/Qwen{3.5,3.6}-27B": said(5120, 64, 24, 17408, 248320, linear_num_value_heads=48, **FAR),
    },
    inside={},
    from_hf=from_hf,
    to_hf=to_hf,
    weights=separate_weights,
    hf_defaults={**DEFAULTS, "max_position_embeddings": 32768, "num_key_value_heads": 4},
    hf_constants=GATED,
    rotates_part=True,
)

MOE_FIELDS = tuple(pair for pair in llama.HF_FIELDS if pair[0] != "intermediate_size")


def to_hf_moe(config: Any) -> dict[str, Any]:
    unsaid = (
        "norm_topk_prob",
        "decoder_sparse_step",
        "mlp_only_layers",
    )
    return without(to_hf_next(config), *unsaid)


def from_hf_moe(left: dict[str, Any]) -> dict[str, Any]:
    left["norm_topk_prob"] = True
    width = left.pop("intermediate_size", None) or left["moe_intermediate_size"]  # of no layer, for all have experts
    return {**from_hf_next(left), "intermediate_size": width}


TEXT_MOE = replace(
    NEXT,
    name="qwen3_5_moe",
    architectures=("Qwen3_5MoeForCausalLM",),
    model_type="qwen3_5_moe_text",
    rows={},
    published={
        "Qwen/Qwen{3.5,3.6}-35B-A3B": said(2048, 40, 16, 512, 248320, **FAR),
        "Qwen/Qwen3.5-122B-A10B": said(3072, 48, 32, 1024, 248320, **LARGE),
        "Qwen/Qwen3.5-397B-A17B": said(4096, 60, 32, 1024, 248320, num_experts=512, num_experts_per_tok=10, **LARGE),
    },
    hf_fields=MOE_FIELDS,
    from_hf=from_hf_moe,
    to_hf=to_hf_moe,
    weights=separate_mixture,
    hf_defaults={
        **without(NEXT.hf_defaults, "norm_topk_prob"),
        "num_experts": 256,
        "num_experts_per_tok": 8,
    },
)

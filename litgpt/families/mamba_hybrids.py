"""Granite 4 and Bamba: Mamba 2 in most layers, attention in some (https://arxiv.org/abs/2405.21060)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from litgpt.errors import UnsupportedError
from litgpt.families import granite, granite_moe, llama
from litgpt.families.base import Rule, Same, Split, changed, spelled, without
from litgpt.families.hf_config import pop_choice, pop_rope, pop_silu, push_rope

ATTN, MLP = "transformer.h.{i}.attn", "transformer.h.{i}.mlp"
MAMBA = (
    *(Same(f"model.layers.{{i}}.mamba.{name}", f"{ATTN}.{name}") for name in ("in_proj", "dt_bias", "A_log", "D")),
    Same("model.layers.{i}.mamba.conv1d", f"{ATTN}.conv"),
    Same("model.layers.{i}.mamba.norm.weight", f"{ATTN}.norm"),
    Same("model.layers.{i}.mamba.out_proj", f"{ATTN}.proj"),
)
SIZES = (
    ("mamba_n_heads", "n_heads"),
    ("mamba_d_head", "head_size"),
    ("mamba_n_groups", "n_groups"),
    ("mamba_d_state", "state_size"),
    ("mamba_d_conv", "kernel_size"),
    ("mamba_conv_bias", "conv_bias"),
    ("mamba_proj_bias", "bias"),
)
"""`config.json` key ↔ key of `state_space`."""
DEFAULTS = {
    "mamba_n_heads": 128,
    "mamba_n_groups": 1,
    "mamba_d_state": 256,
    "mamba_d_head": "auto",
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
}


def in_their_layers(config: Any) -> list[Rule]:
    """The rules of the layers that keep states."""
    return [spelled(rule, layer) for layer in range(config.n_layer) if config.linear(layer) for rule in MAMBA]


def pop_states(left: dict[str, Any], recurrent: list[int]) -> dict[str, Any]:
    """Takes the settings of Mamba 2 out of a `config.json`."""
    width = left.pop("mamba_expand") * left["hidden_size"]
    if left["mamba_d_head"] == "auto":
        left["mamba_d_head"] = width // left["mamba_n_heads"]
    for key in ("mamba_chunk_size", "normalization_function", "time_step_floor", "time_step_max", "time_step_min"):
        left.pop(key, None)
    sizes = {**{ours: left.pop(theirs) for theirs, ours in SIZES}, **pop_limits(left)}
    if not any(recurrent):
        return {}
    return {"state_space": sizes, "linear_attention_indices": recurrent}


def pop_limits(left: dict[str, Any]) -> dict[str, float]:
    """Takes the bounds of how far a token moves the state out of a `config.json`, where there are some."""
    least, most = (number(limit) for limit in left.pop("time_step_limit", None) or (0.0, math.inf))
    return {**({} if least == 0 else {"least_time": least}), **({} if most == math.inf else {"most_time": most})}


def push_limits(sizes: dict[str, Any]) -> dict[str, Any]:
    """And back, where they can be written in JSON."""
    return {"time_step_limit": [sizes.get("least_time", 0.0), sizes["most_time"]]} if "most_time" in sizes else {}


def number(limit: Any) -> float:
    """Files write infinity as `{"__float__": "Infinity"}`."""
    return float(limit["__float__"]) if isinstance(limit, dict) else float(limit)


def push_states(config: Any) -> dict[str, Any]:
    """And back."""
    sizes = config.state_space
    if sizes is None:
        raise UnsupportedError(f"A {config.family.architectures[0]} has layers of Mamba 2, and this model has none.")
    return {
        **{theirs: sizes[ours] for theirs, ours in SIZES},
        "mamba_expand": sizes["n_heads"] * sizes["head_size"] // config.n_embd,
        **push_limits(sizes),
    }


def granite_from_hf(left: dict[str, Any]) -> dict[str, Any]:
    pop_silu(left)  # which the states have as well
    kinds = left.pop("layer_types", None) or left.pop("layers_block_type", None)
    recurrent = [int(kind in ("mamba", "linear_attention")) for kind in kinds or ["mamba"] * left["num_hidden_layers"]]
    turns = pop_choice(left, "position_embedding_type", {"rope": True, "nope": False}, "nope")
    shared, experts = left["shared_intermediate_size"], left["num_local_experts"]
    found = {
        **pop_states(left, recurrent),
        **granite_moe.from_hf(left),
        "rope_layers": None if turns else [0] * left["num_hidden_layers"],
    }
    if experts:
        return {**found, "mlp_class_name": "LLaMAMoE"}
    dense = {"intermediate_size": shared, "n_expert_per_token": 0, "n_shared_expert": None}
    return {**found, **dense, "shared_intermediate_size": None, "mlp_class_name": "LLaMAMLP"}


def granite_to_hf(config: Any) -> dict[str, Any]:
    return {
        **granite_moe.shared_to_hf(config),
        **push_states(config),
        "num_local_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
        "shared_intermediate_size": config.shared_intermediate_size if config.n_expert else config.intermediate_size,
        "position_embedding_type": "rope" if config.rope_layers is None else "nope",
        "layer_types": ["mamba" if state else "attention" for state in config.linear_attention_indices],
    }


DENSE = changed(
    llama.WEIGHTS,
    Split("model.layers.{i}.shared_mlp.input_linear", (f"{MLP}.fc_1", f"{MLP}.fc_2")),
    Same("model.layers.{i}.shared_mlp.output_linear", f"{MLP}.proj"),
    without=llama.DENSE,
)


def granite_weights(config: Any) -> tuple[Rule, ...]:
    return (*(granite_moe.SHARING.rules(None) if config.n_expert else DENSE), *in_their_layers(config))


GRANITE = replace(
    granite.FAMILY,
    name="granitemoehybrid",
    architectures=("GraniteMoeHybridForCausalLM",),
    model_type="granitemoehybrid",
    rows={},
    from_hf=granite_from_hf,
    to_hf=granite_to_hf,
    weights=granite_weights,
    hf_defaults={**granite_moe.DEFAULTS, **DEFAULTS, "shared_intermediate_size": 1024},
)


def bamba_from_hf(left: dict[str, Any]) -> dict[str, Any]:
    pop_silu(left)
    attending = left.pop("attn_layer_indices", None) or ()
    for key in ("num_logits_to_keep", "z_loss_coefficient", "layers_block_type", "layer_types", "attn_rotary_emb"):
        left.pop(key, None)
    recurrent = [int(layer not in attending) for layer in range(left["num_hidden_layers"])]
    return {**pop_rope(left), "rotary_percentage": 0.5, **llama.pop_attention(left), **pop_states(left, recurrent)}


def bamba_to_hf(config: Any) -> dict[str, Any]:
    attending = [layer for layer in range(config.n_layer) if not config.linear(layer)]
    return {
        **push_rope(config),
        "hidden_act": "silu",
        **without(llama.push_attention(config), "head_dim"),
        "mlp_bias": config.bias,
        **push_states(config),
        "attn_layer_indices": attending,
    }


BAMBA_WEIGHTS = changed(
    llama.WEIGHTS,
    Same("model.layers.{i}.pre_ff_layernorm", "transformer.h.{i}.norm_2"),
    Same("model.layers.{i}.feed_forward.gate_proj", f"{MLP}.fc_1"),
    Same("model.layers.{i}.feed_forward.up_proj", f"{MLP}.fc_2"),
    Same("model.layers.{i}.feed_forward.down_proj", f"{MLP}.proj"),
    Same("model.final_layernorm", "transformer.ln_f"),
)
BAMBA = replace(
    llama.FAMILY,
    name="bamba",
    architectures=("BambaForCausalLM",),
    model_type="bamba",
    rows={},
    from_hf=bamba_from_hf,
    to_hf=bamba_to_hf,
    weights=lambda config: (*BAMBA_WEIGHTS, *in_their_layers(config)),
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 262144,
        "num_key_value_heads": 8,
        **DEFAULTS,
    },
    rotates_part=True,
)

"""Gemma 4 (text): other heads in layers without a window, shared keys, embeddings for each layer, experts beside MLPs.

https://ai.google.dev/gemma/docs/core.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.errors import LitGPTError, UnsupportedError
from litgpt.families import gemma, llama
from litgpt.families.base import Drop, Join, Rule, Same, Stacked, changed, spelled, without
from litgpt.families.hf_config import (
    GELU,
    pop_choice,
    pop_rope_by_window,
    pop_windows,
    push_rope_by_window,
    push_windows,
)

BASE = {
    **gemma.LATER,
    "norm_unit_offset": False,
    "norm_qk": True,
    "norm_values": True,
    "attention_scores_scalar": 1.0,
    "layer_scalars": True,
}
THEIRS, OURS = "model.layers.{i}", "transformer.h.{i}"
ALWAYS = changed(
    (*gemma.SANDWICH, *llama.NORMED_QK),
    Same(f"{THEIRS}.layer_scalar", f"{OURS}.layer_scalar"),
    Same(f"{THEIRS}.per_layer_input_gate", f"{OURS}.layer_input.gate"),
    Same(f"{THEIRS}.per_layer_projection", f"{OURS}.layer_input.projection"),
    Same(f"{THEIRS}.post_per_layer_input_norm", f"{OURS}.layer_input.norm"),
    Same("model.embed_tokens_per_layer", "transformer.layer_inputs.wte"),
    Same("model.per_layer_model_projection", "transformer.layer_inputs.projection"),
    Same("model.per_layer_projection_norm", "transformer.layer_inputs.norm"),
)
MIXTURE, EXPERT = f"{OURS}.mixture", f"{OURS}.mixture.experts.{{e}}"
EXPERTS = (
    Same(f"{THEIRS}.router.proj", f"{MIXTURE}.gate"),
    Same(f"{THEIRS}.router.scale", f"{MIXTURE}.input_scale"),
    Same(f"{THEIRS}.router.per_expert_scale", f"{MIXTURE}.expert_scale"),
    Stacked(
        f"{THEIRS}.experts.gate_up_proj", (f"{EXPERT}.fc_1.weight", f"{EXPERT}.fc_2.weight"), by_turns=False, rows=True
    ),
    Stacked(f"{THEIRS}.experts.down_proj", (f"{EXPERT}.proj.weight",), rows=True),
    Same(f"{THEIRS}.post_feedforward_layernorm_1", f"{MIXTURE}.mlp_norm"),
    Same(f"{THEIRS}.pre_feedforward_layernorm_2", f"{MIXTURE}.norm"),
    Same(f"{THEIRS}.post_feedforward_layernorm_2", f"{MIXTURE}.post_norm"),
)
QUERY, KEY = (f"{THEIRS}.self_attn.{name}_proj" for name in "qk")
OF_KEYS = tuple(Drop(f"{THEIRS}.self_attn.{name}.weight") for name in ("k_proj", "v_proj", "k_norm", "v_norm"))

SHARING: tuple[Rule, ...] = (Same(QUERY, f"{OURS}.attn.qkv"), *OF_KEYS)


def weights(config: Any) -> tuple[Rule, ...]:
    special: list[Rule] = []
    for layer in range(config.n_layer):
        _, keys, values = config.qkv_rows(layer)
        if config.shares_kv(layer):  # files may have weights that make keys for nobody
            special += (spelled(rule, layer) for rule in SHARING)
        elif keys and not values:
            special.append(spelled(Join((QUERY, KEY), f"{OURS}.attn.qkv"), layer))
    return (*ALWAYS, *(EXPERTS if config.mixture_beside_mlp else ()), *special)


def pop_global_heads(left: dict[str, Any], indices: list[int]) -> dict[str, Any]:
    """Takes the heads of layers without a window out of a `config.json`."""
    size, groups = left.pop("global_head_dim", None), left.pop("num_global_key_value_heads", None)
    as_keys, by_layer = bool(left.pop("attention_k_eq_v", False)), left.pop("per_layer_config", None)
    if by_layer is not None:
        said = list(by_layer.values())
        whole = [layer for layer, windowed in enumerate(indices) if not windowed]
        allowed = {"head_dim", "num_key_value_heads"}
        if sorted(map(int, by_layer)) != whole or any(said[0] != other or {*other} - allowed for other in said):
            raise LitGPTError(
                "config.json has a `per_layer_config` of other things than one kind of heads in the layers without a"
                " window, which no layer here has."
            )
        size, groups = said[0].get("head_dim", left["head_dim"]), said[0].get("num_key_value_heads")
    elif not as_keys:
        groups = None
    return {
        "head_size": 512 if size is None else size,
        "n_query_groups": groups or left["num_key_value_heads"],
        "keys_are_values": as_keys,
    }


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    if left.pop("use_bidirectional_attention", None) == "all":
        raise UnsupportedError("Gemma4ForCausalLM needs attention to later tokens, which no layer here has.")
    windows = pop_windows(left, every=6)
    indices = windows["sliding_window_indices"] or [0] * left["num_hidden_layers"]
    indices[-1] = 0  # whatever a file says of the last layer
    heads = pop_global_heads(left, indices)
    size, vocabulary = left.pop("hidden_size_per_layer_input", 0), left.pop("vocab_size_per_layer_input")
    return {
        **windows,
        **pop_rope_by_window(left),
        "rope_indices": indices,
        **llama.pop_attention(left),
        "gelu_approximate": pop_choice(left, "hidden_activation", GELU, "gelu_pytorch_tanh"),
        "final_logit_softcapping": left.pop("final_logit_softcapping", None),
        "global_heads": heads,
        "shared_kv_layers": left.pop("num_kv_shared_layers", 0) or 0,
        "wide_sharing_mlp": bool(left.pop("use_double_wide_mlp", False)),
        "layer_inputs": {"size": size, "vocab_size": vocabulary} if size else None,
        **pop_experts(left),
    }


def pop_experts(left: dict[str, Any]) -> dict[str, Any]:
    """Takes the settings of experts out of a `config.json`; they are of no effect where there are none."""
    keys = (("num_experts", "n_expert"), ("top_k_experts", "n_expert_per_token"))
    found = {ours: left.pop(theirs, None) for theirs, ours in (*keys, ("moe_intermediate_size",) * 2)}
    return {**found, "mixture_beside_mlp": True} if left.pop("enable_moe_block", False) else {}


def push_experts(config: Any) -> dict[str, Any]:
    """And back."""
    if not config.mixture_beside_mlp:
        return {"enable_moe_block": False}
    return {
        "enable_moe_block": True,
        "num_experts": config.n_expert,
        "top_k_experts": config.n_expert_per_token,
        "moe_intermediate_size": config.moe_intermediate_size,
    }


def to_hf(config: Any) -> dict[str, Any]:
    heads, given = config.global_heads, config.layer_inputs
    return {
        **push_windows(config),
        **push_rope_by_window(config),
        "hidden_activation": "gelu" if config.gelu_approximate == "none" else "gelu_pytorch_tanh",
        **llama.push_attention(config),
        "final_logit_softcapping": config.final_logit_softcapping,
        "global_head_dim": heads["head_size"],
        "num_global_key_value_heads": heads["n_query_groups"] if heads["keys_are_values"] else None,
        "attention_k_eq_v": heads["keys_are_values"],
        "num_kv_shared_layers": config.shared_kv_layers,
        "use_double_wide_mlp": config.wide_sharing_mlp,
        "hidden_size_per_layer_input": 0 if given is None else given["size"],
        "vocab_size_per_layer_input": config.padded_vocab_size if given is None else given["vocab_size"],
        **push_experts(config),
    }


def unified_to_hf(config: Any) -> dict[str, Any]:
    absent = ("hidden_size_per_layer_input", "vocab_size_per_layer_input", "enable_moe_block")
    return {**without(to_hf(config), *absent), "use_bidirectional_attention": None}


FULL = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0}
FAMILY = replace(
    gemma.GEMMA_3,
    name="gemma4",
    architectures=("Gemma4ForCausalLM",),
    model_type="gemma4_text",
    base=BASE,
    rows={},
    from_hf=from_hf,
    to_hf=to_hf,
    weights=weights,
    prompt_styles=(),
    hf_constants={},
    hf_defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "head_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 262144,
        "sliding_window": 512,
        "tie_word_embeddings": True,
        "hidden_size_per_layer_input": 256,
        "vocab_size_per_layer_input": 262144,
        "rope_parameters": {
            "full_attention": FULL,
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
)
UNIFIED = replace(
    FAMILY,
    name="gemma4_unified",
    architectures=("Gemma4UnifiedForCausalLM",),
    model_type="gemma4_unified_text",
    to_hf=unified_to_hf,
    hf_defaults={
        **FAMILY.hf_defaults,
        "max_position_embeddings": 262144,
        "sliding_window": 1024,
        "hidden_size_per_layer_input": 0,
    },
)

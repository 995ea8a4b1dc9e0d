"""Granite with windows, learned shares of attention that go nowhere, and a rotary base for each layer.

https://huggingface.co/ibm-granite.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.errors import LitGPTError
from litgpt.families import granite, granite_moe
from litgpt.families.base import Same, Stacked, changed, without
from litgpt.families.hf_config import push_windows


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    layers = range(left["num_hidden_layers"])
    if left.get("layer_types") is None:
        left["layer_types"] = ["sliding_attention" if layer % 4 else "full_attention" for layer in layers]
    bases = left.pop("layer_rope_theta", None)
    found = granite.from_hf(left)
    if bases is None:
        return found
    kinds = sorted({base for base in bases if base}, key=bases.index)
    if len(bases) != len(layers) or len(kinds) > 2 or (len(kinds) > 1 and found.get("rope_adjustments")):
        raise LitGPTError("config.json has a `layer_rope_theta` of more than two bases, or beside a RoPE scaling.")
    if kinds:
        found["rope_base"] = kinds[0]
    if len(kinds) == 2:
        found |= {"rope_local_base_freq": kinds[1], "rope_indices": [int(base == kinds[1]) for base in bases]}
    return {**found, "rope_layers": None if all(bases) else [int(bool(base)) for base in bases]}


def to_hf(config: Any) -> dict[str, Any]:
    local, rotates = config.rope_indices or [0] * config.n_layer, config.rope_layers or [1] * config.n_layer
    bases = [
        float(turns and (config.rope_local_base_freq if index else config.rope_base))
        for index, turns in zip(local, rotates, strict=True)
    ]
    return {**granite.to_hf(config), **push_windows(config), "layer_rope_theta": bases, "pad_token_id": None}


FAMILY = replace(
    granite.FAMILY,
    name="granite_swa",
    architectures=("GraniteSWAForCausalLM",),
    model_type="granite_swa",
    base={**granite.FAMILY.base, "attention_sinks": True},
    rows={},
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        granite.FAMILY.rules(None), Same("model.layers.{i}.self_attn.sinks", "transformer.h.{i}.attn.sinks")
    ),
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "sliding_window": 128,
    },
)


def moe_from_hf(left: dict[str, Any]) -> dict[str, Any]:
    experts = {key: left.pop(key) for key in ("num_local_experts", "num_experts_per_tok", "shared_intermediate_size")}
    if left.get("layer_types") is None:
        layers = range(left["num_hidden_layers"])
        left["layer_types"] = ["sliding_attention" if layer % 4 else "full_attention" for layer in layers]
    shared = experts["shared_intermediate_size"]
    return {
        **from_hf(left),
        "n_expert": experts["num_local_experts"],
        "n_expert_per_token": experts["num_experts_per_tok"],
        "n_shared_expert": 1 if shared else None,
        "shared_intermediate_size": shared or None,
    }


def moe_to_hf(config: Any) -> dict[str, Any]:
    return {**without(to_hf(config), "mlp_bias"), **granite_moe.shared_to_hf(config), **push_windows(config)}


SINKS = Same("model.layers.{i}.self_attn.sinks", "transformer.h.{i}.attn.sinks")
ROUTED, EXPERT = "model.layers.{i}.block_sparse_moe", "transformer.h.{i}.mlp.experts.{e}"
MOE = replace(
    FAMILY,
    name="granitemoe_swa",
    architectures=("GraniteMoeSWAForCausalLM",),
    model_type="granitemoe_swa",
    base={**FAMILY.base, "mlp_class_name": "LLaMAMoE"},
    from_hf=moe_from_hf,
    to_hf=moe_to_hf,
    weights=(
        *changed(granite_moe.SHARING.rules(None), SINKS, without=tuple(str(r.ours) for r in granite_moe.EXPERTS)),
        Same(f"{ROUTED}.router", "transformer.h.{i}.mlp.gate"),
        Stacked(
            f"{ROUTED}.experts.gate_up_proj",
            (f"{EXPERT}.fc_1.weight", f"{EXPERT}.fc_2.weight"),
            by_turns=False,
            rows=True,
        ),
        Stacked(f"{ROUTED}.experts.down_proj", (f"{EXPERT}.proj.weight",), rows=True),
    ),
    hf_defaults={
        **granite_moe.DEFAULTS,
        "sliding_window": 128,
        "shared_intermediate_size": 0,
    },
)

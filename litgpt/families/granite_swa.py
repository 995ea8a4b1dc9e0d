"""Granite with windows, learned shares of attention that go nowhere, and a rotary base for each layer.

https://huggingface.co/ibm-granite.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.errors import LitGPTError
from litgpt.families import granite
from litgpt.families.base import Same, changed
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

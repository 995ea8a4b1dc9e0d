"""Muse Glimmer (text): gated, normed attention, which rotates in windows only; norms on both sides; soft-capped logits.

https://huggingface.co/meta-models/Muse-Glimmer-30B.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.errors import LitGPTError, quoted
from litgpt.families import gemma, llama
from litgpt.families.base import GatedJoin, changed
from litgpt.families.hf_config import pop_activation, pop_rope, pop_windows, push_activation, push_rope, push_windows

BASE = {
    **llama.BASE,
    "attention_gate": True,
    "post_attention_norm": True,
    "post_mlp_norm": True,
    "norm_embeddings": True,
    "norm_qk": True,
    "norm_unit_offset": True,
}
PLAIN = {"qk": {"affine": False}, "embeddings": {"affine": False}, "last": {"unit_offset": False}}
THEIRS = "model.layers.{i}.self_attn"


def pop_turning(left: dict[str, Any], base: float) -> list[int] | None:
    """Takes out which layers rotate, all of them by one base; None: all do."""
    layers = left["num_hidden_layers"]
    bases = left.pop("layer_rope_theta", None) or [(layers - 1 - layer) % 4 and base for layer in range(layers)]
    # Of a base that is not 0, their class takes that of all layers.
    if len(bases) < layers:
        raise LitGPTError(f"config.json has `layer_rope_theta`: {quoted(bases)}, which is not one for each layer.")
    turning = [int(bool(one)) for one in bases[:layers]]
    return None if all(turning) else turning


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    kinds, layers = left.pop("layer_types", None), left["num_hidden_layers"]
    left["layer_types"] = kinds or [
        "sliding_attention" if (layers - 1 - layer) % 4 else "full_attention" for layer in range(layers)
    ]
    rope = pop_rope(left)
    found = {**rope, **pop_windows(left), **llama.pop_attention(left)}
    scale, size = left.pop("qk_scale_factor"), found["head_size"]
    return {
        **found,
        **pop_activation(left, "silu", "hidden_activation", gated=True),
        "rope_layers": pop_turning(left, rope["rope_base"]),
        "norm_exceptions": {**PLAIN, "post": {"eps": left.pop("post_norm_eps")}},
        "attention_scores_scalar": size / scale**2,
        "logits_divisor": 1 / left.pop("output_multiplier"),
        "final_logit_softcapping": left.pop("final_logit_softcapping"),
    }


def to_hf(config: Any) -> dict[str, Any]:
    turning = config.rope_layers or [1] * config.n_layer
    rope = push_rope(config)
    return {
        "rope_parameters": {"rope_type": "default", **(rope["rope_scaling"] or {}), "rope_theta": rope["rope_theta"]},
        **push_windows(config),
        **llama.push_attention(config),
        "hidden_activation": push_activation(config),
        "layer_rope_theta": [float(config.rope_base) if turns else 0 for turns in turning],
        "post_norm_eps": config.norm_exceptions["post"]["eps"],
        "qk_scale_factor": (config.head_size / config.attention_scores_scalar) ** 0.5,
        "output_multiplier": 1 / config.logits_divisor,
        "final_logit_softcapping": config.final_logit_softcapping,
    }


FAMILY = replace(
    llama.FAMILY,
    name="muse_glimmer",
    architectures=("MuseGlimmerForCausalLM",),
    model_type="muse_glimmer_text",
    base=BASE,
    rows={},
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        gemma.SANDWICH,
        GatedJoin(
            (f"{THEIRS}.gate_proj", f"{THEIRS}.q_proj", f"{THEIRS}.k_proj", f"{THEIRS}.v_proj"),
            "transformer.h.{i}.attn.qkv",
        ),
        without=("transformer.ln_e",),
    ),
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "sliding_window": 2048,
        "rope_theta": 10000.0,
        "final_logit_softcapping": 20.0,
        "qk_scale_factor": 3.87,
        "output_multiplier": 0.19611613513818404,
        "post_norm_eps": 1e-8,
    },
)

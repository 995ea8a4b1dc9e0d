"""HyperCLOVA X SEED: Granite with norms of what comes out of attention and MLP as well (https://arxiv.org/abs/2404.01954)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import granite, llama
from litgpt.families.base import Rule, Same, changed


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    size = left.get("head_dim") or left["hidden_size"] // left["num_attention_heads"]
    left["attention_multiplier"] = left.get("attention_multiplier") or size**-0.5
    normed, scaling = bool(left.pop("use_post_norm", True)), left.pop("logits_scaling", 1.0)
    found = granite.from_hf(left)
    return {**found, "logits_divisor": 1 / scaling, "post_attention_norm": normed, "post_mlp_norm": normed}


def to_hf(config: Any) -> dict[str, Any]:
    said = {"head_dim": config.head_size, "use_post_norm": config.post_mlp_norm, "pad_token_id": None}
    return {**granite.to_hf(config), **said, "logits_scaling": 1 / config.logits_divisor}


def weights(config: Any) -> tuple[Rule, ...]:
    return changed(
        llama.WEIGHTS,
        Same("model.layers.{i}.post_norm1", "transformer.h.{i}.post_attention_norm"),
        Same("model.layers.{i}.post_norm2", "transformer.h.{i}.post_mlp_norm"),
    )


FAMILY = replace(
    granite.FAMILY,
    name="hyperclovax",
    architectures=("HyperCLOVAXForCausalLM",),
    model_type="hyperclovax",
    rows={},
    from_hf=from_hf,
    to_hf=to_hf,
    weights=weights,
    hf_defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "use_post_norm": True},
)

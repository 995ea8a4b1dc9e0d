"""Llama 4's text model: mixtures with a sigmoid router, attention in chunks, and layers without positions.

https://ai.meta.com/blog/llama-4-multimodal-intelligence/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import Same, Stacked, changed
from litgpt.families.gguf import EXPERT_FIELDS, EXPERTS, SHARED_EXPERTS, WINDOW, Key, Metadata
from litgpt.families.hf_config import pop_rope, pop_silu, push_rope
from litgpt.families.smollm3 import rotating

BASE = dict(
    **{**llama.BASE, "mlp_class_name": "LLaMAMoE"},
    rope_interleave=True,
    n_shared_expert=1,
    router_scores="sigmoid",
    router_scales_inputs=True,
    chunked_windows=True,
)
MLP, EXPERT = "transformer.h.{i}.mlp", "transformer.h.{i}.mlp.experts.{e}"
THEIRS = "model.layers.{i}.feed_forward"

WEIGHTS = changed(
    llama.WEIGHTS,
    Same(f"{THEIRS}.gate_proj", f"{MLP}.fc_1"),
    Same(f"{THEIRS}.up_proj", f"{MLP}.fc_2"),
    Same(f"{THEIRS}.down_proj", f"{MLP}.proj"),
    Same(f"{THEIRS}.router", f"{MLP}.gate"),
    Same(f"{THEIRS}.shared_expert.gate_proj", f"{MLP}.shared_experts.fc_1"),
    Same(f"{THEIRS}.shared_expert.up_proj", f"{MLP}.shared_experts.fc_2"),
    Same(f"{THEIRS}.shared_expert.down_proj", f"{MLP}.shared_experts.proj"),
    Stacked(f"{THEIRS}.experts.gate_up_proj", (f"{EXPERT}.fc_1.weight", f"{EXPERT}.fc_2.weight"), by_turns=False),
    Stacked(f"{THEIRS}.experts.down_proj", (f"{EXPERT}.proj.weight",)),
)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    pop_silu(left)
    n_layer, step = left["num_hidden_layers"], left.pop("interleave_moe_layer_step", 1)
    mixtures = left.pop("moe_layers", None)
    mixtures = range(step - 1, n_layer, step) if mixtures is None else mixtures
    interval = left.pop("no_rope_layer_interval", 4)
    rotating_layers = left.pop("no_rope_layers", None) or rotating(n_layer, interval)
    kinds = left.pop("layer_types", None) or ["chunked_attention" if rotates else "" for rotates in rotating_layers]
    chunk, chunked = left.pop("attention_chunk_size", 8192), [int(kind == "chunked_attention") for kind in kinds]
    chunk = chunk if any(chunked) else None
    tuning = {"scale": left.pop("attn_scale", 0.1), "floor": left.pop("floor_scale", 8192), "offset": 1}
    return {
        **pop_rope(left),
        **llama.pop_attention(left),
        "sliding_window_size": chunk,
        "sliding_window_indices": chunked if chunk else None,
        "rope_layers": rotating_layers,
        "norm_turned": left.pop("use_qk_norm", True),
        "query_tuning": {**tuning, "unturned_only": True} if left.pop("attn_temperature_tuning", True) else None,
        "moe_layers": [int(layer in mixtures) for layer in range(n_layer)],
        "n_expert": left.pop("num_local_experts"),
        "n_expert_per_token": left.pop("num_experts_per_tok"),
    }


def to_hf(config: Any) -> dict[str, Any]:
    tuning = config.query_tuning or {"scale": 0.1, "floor": 8192}
    rotating_layers = config.rope_layers or [1] * config.n_layer
    chunked = config.sliding_window_indices or [0] * config.n_layer
    mixtures = config.moe_layers or [1] * config.n_layer
    return {
        **push_rope(config),
        "hidden_act": "silu",
        **llama.push_attention(config),
        "attention_chunk_size": config.sliding_window_size,
        "layer_types": ["chunked_attention" if index else "full_attention" for index in chunked],
        "no_rope_layers": rotating_layers,
        "use_qk_norm": config.norm_turned,
        "attn_temperature_tuning": config.query_tuning is not None,
        "attn_scale": tuning["scale"],
        "floor_scale": tuning["floor"],
        "moe_layers": [layer for layer, mixture in enumerate(mixtures) if mixture],
        "num_local_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
    }


FAMILY = replace(
    llama.FAMILY,
    name="llama4",
    architectures=("Llama4ForCausalLM",),
    model_type="llama4_text",
    base=BASE,
    rows={},
    hf_fields=(
        *(pair for pair in llama.HF_FIELDS if pair[0] != "intermediate_size"),
        ("intermediate_size", "moe_intermediate_size"),
        ("intermediate_size_mlp", "intermediate_size"),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=WEIGHTS,
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "intermediate_size_mlp": 16384,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "rope_theta": 500000.0,
    },
)

CHUNK = 8192


def gguf_implied(found: Mapping[str, Any]) -> Metadata:
    chunked, n_layer = found["sliding_window_size"] is not None, found["n_layer"]
    rotating_layers = rotating(n_layer) if chunked else [1] * n_layer
    tuning = dict(scale=0.1, floor=CHUNK, offset=1, unturned_only=True)
    return {
        "sliding_window_indices": rotating_layers if chunked else None,
        "rope_layers": rotating_layers,
        "query_tuning": tuning if chunked else None,
        "norm_turned": found["n_expert"] != 128,
    }


AS_GGUF = replace(
    llama.AS_GGUF,
    arch="llama4",
    weights=(*llama.AS_GGUF.weights, *EXPERTS, *SHARED_EXPERTS),
    fields=(*EXPERT_FIELDS, Key("expert_feed_forward_length", "moe_intermediate_size")),
    more=(
        Key(
            "interleave_moe_layer_step",
            "moe_layers",
            read=lambda step, found: [int((layer + 1) % step == 0) for layer in range(found["n_layer"])],
            write=lambda layers, _: (layers or [1]).index(1) + 1,
        ),
        Key("leading_dense_block_count"),
        replace(
            WINDOW,
            default=CHUNK,
            read=lambda size, _: CHUNK if size > 0 else None,
            write=lambda size, _: None if size else 0,
        ),
    ),
    implied=gguf_implied,
    paired=(),
)

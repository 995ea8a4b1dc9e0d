"""LFM3: LFM2 with norms on both sides of a half, windows in some layers, gated heads, and a part of each head rotating.

https://huggingface.co/LiquidAI/LFM3-1.7B.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.errors import LitGPTError, quoted
from litgpt.families import lfm, llama
from litgpt.families.base import Rule, Same, changed, said, spelled, without
from litgpt.families.hf_config import pop_rope_by_window, pop_windows, push_rope_by_window

THEIRS, OURS = "model.layers.{i}", "transformer.h.{i}"
WEIGHTS = changed(
    lfm.WEIGHTS,
    *llama.NORMED_QK,
    Same(f"{THEIRS}.self_attn.o_proj", f"{OURS}.attn.proj"),
    Same(f"{THEIRS}.self_attn.gate_proj", f"{OURS}.attn.gate"),
    Same(f"{THEIRS}.post_operator_norm", f"{OURS}.post_attention_norm"),
    Same(f"{THEIRS}.post_ffn_norm", f"{OURS}.post_mlp_norm"),
)
KINDS = {"full_attention", "sliding_attention", "conv"}


def weights(config: Any) -> tuple[Rule, ...]:
    special = [spelled(rule, layer) for layer in range(config.n_layer) if config.linear(layer) for rule in lfm.CONV]
    return (*WEIGHTS, *special)


def pop_kinds(left: dict[str, Any]) -> list[str]:
    """Takes what each layer is out of a `config.json`."""
    kinds = left.pop("layer_types", None) or [
        "full_attention" if layer % 4 == 2 else "conv" if layer % 4 or not layer else "sliding_attention"
        for layer in range(left["num_hidden_layers"])
    ]
    if {*kinds} - KINDS:
        raise LitGPTError(f"config.json has `layer_types`: {quoted(kinds)}, which are not all known here.")
    return list(kinds)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    kinds = pop_kinds(left)
    left["layer_types"] = kinds
    windows, rope = pop_windows(left), pop_rope_by_window(left)
    if windows["sliding_window_size"] is None and "sliding_attention" in kinds:
        raise LitGPTError("config.json has no `sliding_window`, which its layers of the kind sliding_attention need.")
    sandwich = bool(left.pop("use_sandwich_norm"))
    left["layer_types"] = kinds
    return {
        **lfm.from_hf(left),
        **rope,
        **windows,
        "rope_indices": windows["sliding_window_indices"],
        "post_attention_norm": sandwich,
        "post_mlp_norm": sandwich,
        "head_gates": bool(left.pop("use_attention_gate")),
    }


def to_hf(config: Any) -> dict[str, Any]:
    plain = lfm.to_hf(config)
    indices = config.sliding_window_indices or [0] * config.n_layer
    kinds = ["sliding_attention" if index else kind for index, kind in zip(indices, plain["layer_types"], strict=True)]
    return {
        **without(plain, "rope_theta", "rope_scaling"),
        **push_rope_by_window(config),
        "head_dim": config.head_size,
        "layer_types": kinds,
        "sliding_window": config.sliding_window_size,
        "attention_bias": config.bias or config.attn_bias,
        "use_sandwich_norm": config.post_mlp_norm,
        "use_attention_gate": config.head_gates,
        "pad_token_id": None,
    }


FAMILY = replace(
    lfm.DENSE,
    name="lfm3",
    architectures=("Lfm3ForCausalLM",),
    model_type="lfm3",
    from_hf=from_hf,
    to_hf=to_hf,
    weights=weights,
    published={"LiquidAI/LFM3-1.7B": said(2048, 24, 16, 7680, 128000)},
    hf_defaults={
        "norm_eps": 1e-5,
        "max_position_embeddings": 128000,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "sliding_window": 256,
        "conv_bias": False,
        "conv_L_cache": 7,
        "use_sandwich_norm": True,
        "use_attention_gate": True,
        "rope_parameters": {
            "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
)

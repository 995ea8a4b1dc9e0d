"""Gemma 3n (text): Gemma 3 with several residual streams, sparse MLPs, and embeddings for each layer.

https://ai.google.dev/gemma/docs/gemma-3n.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.errors import LitGPTError, quoted
from litgpt.families import gemma4
from litgpt.families.base import Rule, Same, spelled, without

THEIRS, OURS = "model.layers.{i}", "transformer.h.{i}"
STREAMS = (
    *(
        Same(f"{THEIRS}.altup.{theirs}", f"{OURS}.streams.{ours}")
        for theirs, ours in (
            ("correct_output_scale", "scale"),
            ("correction_coefs", "correction"),
            ("prediction_coefs", "prediction"),
            ("modality_router", "router"),
            ("router_norm", "router_norm"),
        )
    ),
    Same(f"{THEIRS}.laurel.linear_left", f"{OURS}.low_rank.left"),
    Same(f"{THEIRS}.laurel.linear_right", f"{OURS}.low_rank.right"),
    Same(f"{THEIRS}.laurel.post_laurel_norm", f"{OURS}.low_rank.norm"),
)


def weights(config: Any) -> tuple[Rule, ...]:
    others: list[Rule] = []
    for stream in range(config.streams["count"] - 1):
        others.append(Same(f"model.altup_projections.{stream}", f"transformer.spread.{stream}"))
        others.append(Same(f"model.altup_unembed_projections.{stream}", f"transformer.ln_f.gather.{stream}"))
    sharing = range(config.n_layer - config.shared_kv_layers, config.n_layer)
    special = [spelled(rule, layer) for layer in sharing for rule in gemma4.SHARING]
    return (*gemma4.ALWAYS, *STREAMS, *others, *special)


def one_of(left: dict[str, Any], key: str) -> Any:
    """Takes a size out of a `config.json` that may be said layer by layer."""
    value = left[key]
    sizes = value if isinstance(value, list) else [value]
    if not sizes or sizes.count(sizes[0]) != len(sizes):
        raise LitGPTError(f"config.json has `{key}`: {quoted(value)}; layers here are equally wide.")
    return sizes[0]


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    n_layer = left["num_hidden_layers"]
    kinds = left.get("layer_types") or ["" if (i + 1) % 5 == 0 else "sliding_attention" for i in range(n_layer)]
    last = kinds[-1] == "sliding_attention"
    left["layer_types"] = kinds
    shares = left.pop("activation_sparsity_pattern", None)
    if shares is None:
        sparse = 10 if n_layer > 10 else 0
        shares = [0.95] * sparse + [0.0] * (n_layer - sparse)
    streams = {"count": left.pop("altup_num_inputs"), "active": left.pop("altup_active_idx")}
    streams["scaled"] = bool(left.pop("altup_correct_scale"))
    left.pop("altup_coef_clip", None)  # of training
    width, rank = one_of(left, "intermediate_size"), left.pop("laurel_rank")
    left.pop("intermediate_size")
    found = gemma4.from_hf(left)
    if last:  # Gemma 4's last layer has no window
        raise LitGPTError("config.json has a window in its last layer, which no Gemma 3n here has.")
    return {
        **found,
        "intermediate_size": width,
        "global_heads": None,
        "streams": streams,
        "residual_rank": rank,
        "mlp_sparsity": shares if any(shares) else None,
    }


def to_hf(config: Any) -> dict[str, Any]:
    heads = {"head_size": config.head_size, "n_query_groups": config.n_query_groups, "keys_are_values": False}
    absent = ("global_head_dim", "num_global_key_value_heads", "attention_k_eq_v", "enable_moe_block")
    said = gemma4.to_hf(replace(config, global_heads=heads))
    return {
        **without(said, *absent, "use_double_wide_mlp"),
        "intermediate_size": [config.intermediate_size] * config.n_layer,
        "activation_sparsity_pattern": config.mlp_sparsity or [0.0] * config.n_layer,
        "altup_num_inputs": config.streams["count"],
        "altup_active_idx": config.streams["active"],
        "altup_correct_scale": config.streams["scaled"],
        "laurel_rank": config.residual_rank,
    }


FAMILY = replace(
    gemma4.FAMILY,
    name="gemma3n",
    architectures=("Gemma3nForCausalLM",),
    model_type="gemma3n_text",
    base={**gemma4.BASE, "layer_scalars": False},
    published={
        "google/gemma-3n-E4B{,-it}": dict(
            hidden_size=2048, num_hidden_layers=35, num_attention_heads=8, vocab_size=262400
        )
    },
    hf_fields=tuple(pair for pair in gemma4.FAMILY.hf_fields if pair[1] != "intermediate_size"),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=weights,
    hf_defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "head_dim": 256,
        "num_key_value_heads": 2,
        "sliding_window": 512,
        "tie_word_embeddings": True,
        "final_logit_softcapping": 30.0,
        "hidden_size_per_layer_input": 256,
        "vocab_size_per_layer_input": 262144,
        "num_kv_shared_layers": 15,
        "altup_num_inputs": 4,
        "altup_active_idx": 0,
        "altup_correct_scale": True,
        "laurel_rank": 64,
        "intermediate_size": 16384,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    },
)

"""Falcon-H1: attention and Mamba 2 beside each other in every layer, and multipliers (https://arxiv.org/abs/2507.22448)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama, mamba_hybrids
from litgpt.families.base import changed, without
from litgpt.families.hf_config import pop_silu

PLAIN: tuple[tuple[str, str], ...] = (
    ("key_multiplier", "keys"),
    ("attention_in_multiplier", "attention_in"),
    ("attention_out_multiplier", "attention_out"),
    ("ssm_in_multiplier", "state_in"),
    ("ssm_out_multiplier", "state_out"),
)
"""`config.json` key ↔ key of `multipliers`."""


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    pop_silu(left)  # which the states have as well
    for key in ("num_logits_to_keep", "layers_block_type", "layer_types", "mamba_chunk_size", "mamba_use_mlp"):
        left.pop(key, None)
    inner = left.pop("mamba_d_ssm") or left["mamba_expand"] * left["hidden_size"]
    if left["mamba_d_head"] == "auto":
        left["mamba_d_head"] = inner // left["mamba_n_heads"]
    state = mamba_hybrids.pop_states(left, [1])["state_space"]
    norm, last = bool(left.pop("mamba_rms_norm")), bool(left.pop("mamba_norm_before_gate"))
    multipliers = {ours: left.pop(theirs) for theirs, ours in PLAIN}
    multipliers["gate"], multipliers["mlp_out"] = left.pop("mlp_multipliers", None) or (1.0, 1.0)
    multipliers["state_parts"] = left.pop("ssm_multipliers", None) or [1.0] * 5
    return {
        "state_space": {**state, "norm": norm, "gate_last": last, "out_bias": bool(left.pop("projectors_bias"))},
        "multipliers": multipliers,
        "embedding_multiplier": left.pop("embedding_multiplier"),
        "logits_divisor": 1 / left.pop("lm_head_multiplier"),
        **llama.from_hf(left),
    }


def to_hf(config: Any) -> dict[str, Any]:
    by, state = config.multipliers, config.state_space
    return {
        **llama.to_hf(config),
        **without(mamba_hybrids.push_states(config), "mamba_expand"),
        "mamba_d_ssm": state["n_heads"] * state["head_size"],
        "mamba_rms_norm": state["norm"],
        "mamba_norm_before_gate": state["gate_last"],
        "projectors_bias": state["out_bias"],
        **{theirs: by[ours] for theirs, ours in PLAIN},
        "mlp_multipliers": [by["gate"], by["mlp_out"]],
        "ssm_multipliers": by["state_parts"],
        "embedding_multiplier": config.embedding_multiplier,
        "lm_head_multiplier": 1 / config.logits_divisor,
    }


FAMILY = replace(
    llama.FAMILY,
    name="falcon_h1",
    architectures=("FalconH1ForCausalLM",),
    model_type="falcon_h1",
    base={**llama.BASE, "state_beside_attention": True},
    rows={},
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        mamba_hybrids.BAMBA_WEIGHTS,
        *(replace(rule, ours=str(rule.ours).replace(".attn.", ".state.")) for rule in mamba_hybrids.MAMBA),
    ),
    prompt_styles=(),
    hf_defaults={
        **mamba_hybrids.DEFAULTS,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "num_key_value_heads": 8,
        "mamba_d_ssm": 1024,
        "mamba_norm_before_gate": True,
        "mamba_rms_norm": False,
        "projectors_bias": False,
        "embedding_multiplier": 1.0,
        "lm_head_multiplier": 1.0,
        **{theirs: 1.0 for theirs, _ in PLAIN},
    },
)

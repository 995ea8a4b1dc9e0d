"""Granite 3's mixtures: Granite with many small experts, stacked in its files, and maybe one for every token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import granite, llama
from litgpt.families.base import Same, Split, Stacked, changed, named, size, without

MLP, EXPERT = "transformer.h.{i}.mlp", "transformer.h.{i}.mlp.experts.{e}"
THEIRS = "model.layers.{i}.block_sparse_moe"
EXPERTS = (
    Same(f"{THEIRS}.router.layer", f"{MLP}.gate"),
    Stacked(
        f"{THEIRS}.input_linear.weight",
        (f"{EXPERT}.fc_1.weight", f"{EXPERT}.fc_2.weight"),
        by_turns=False,
        rows=True,
    ),
    Stacked(f"{THEIRS}.output_linear.weight", (f"{EXPERT}.proj.weight",), rows=True),
)
SHARED = (
    Split("model.layers.{i}.shared_mlp.input_linear", (f"{MLP}.shared_experts.fc_1", f"{MLP}.shared_experts.fc_2")),
    Same("model.layers.{i}.shared_mlp.output_linear", f"{MLP}.shared_experts.proj"),
)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    shared = left.pop("shared_intermediate_size", 0)
    return {
        **granite.from_hf(left),
        "n_expert": left.pop("num_local_experts"),
        "n_expert_per_token": left.pop("num_experts_per_tok"),
        "n_shared_expert": 1 if shared else None,
        "shared_intermediate_size": shared or None,
    }


def to_hf(config: Any) -> dict[str, Any]:
    return {
        **without(granite.to_hf(config), "mlp_bias"),
        "num_local_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
    }


def shared_to_hf(config: Any) -> dict[str, Any]:
    return {**to_hf(config), "shared_intermediate_size": config.shared_intermediate_size or 0}


DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}

MOE = replace(
    granite.FAMILY,
    name="granitemoe",
    architectures=("GraniteMoeForCausalLM",),
    model_type="granitemoe",
    base={**llama.BASE, "mlp_class_name": "LLaMAMoE"},
    rows=named(
        "ibm-granite",
        {
            "granite-3.1-1b-a400m-{base,instruct}": size(24, 16, 1024, 512, 8, n_expert=32),
            "granite-3.1-3b-a800m-{base,instruct}": size(32, 24, 1536, 512, 8, n_expert=40),
        },
        {**granite.SHARED, "rope_base": 1500000, "norm_eps": 1e-6},
        dict(n_expert_per_token=8, attention_scores_scalar=0.015625**-2, logits_divisor=6.0),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(llama.WEIGHTS, *EXPERTS, without=llama.DENSE),
    hf_defaults=DEFAULTS,
)

SHARING = replace(
    MOE,
    name="granitemoeshared",
    architectures=("GraniteMoeSharedForCausalLM",),
    model_type="granitemoeshared",
    rows={},
    to_hf=shared_to_hf,
    weights=changed(MOE.rules(None), *SHARED),
)

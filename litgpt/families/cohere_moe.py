"""Command A+: Command A with experts, some of them for every token, behind one norm with attention.

https://huggingface.co/CohereLabs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import cohere, qwen
from litgpt.families.base import changed
from litgpt.families.deepseek import MIXTURE, layer_types
from litgpt.families.hf_config import pop_choice


def complete_layer_types(left: dict[str, Any]) -> None:
    """Puts lists of each layer's kinds in the place of numbers and patterns."""
    dense, n_layer = left.pop("first_k_dense_replace", 0), left["num_hidden_layers"]
    every, first = left.pop("sliding_window_pattern", 4), left.get("prefix_dense_sliding_window_pattern", 1)
    if left.get("layer_types") is None:
        counts = [(i, first) for i in range(dense)] + [(i, every) for i in range(n_layer - dense)]
        left["layer_types"] = ["sliding_attention" if (i + 1) % each else "full_attention" for i, each in counts]
    left["mlp_layer_types"] = left.get("mlp_layer_types") or ["dense"] * dense + ["sparse"] * (n_layer - dense)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    complete_layer_types(left)
    kinds, turned = left.pop("mlp_layer_types"), left.pop("prefix_dense_sliding_window_pattern", 1) == 1
    sigmoid = pop_choice(left, "expert_selection_fn", {"softmax": False, "sigmoid": True}, "softmax")
    average = pop_choice(left, "shared_expert_combination_strategy", {"average": True, "sum": False}, "average")
    eps, dense = left.pop("rms_norm_eps", None), left.pop("prefix_dense_intermediate_size", None)
    shared = left.pop("num_shared_experts")
    found = {
        **cohere.from_hf_2(left),
        "n_expert": left.pop("num_experts"),
        "n_expert_per_token": left.pop("num_experts_per_tok"),
        "n_shared_expert": shared or None,
        "intermediate_size": dense or left["intermediate_size"],
        "moe_intermediate_size": left["intermediate_size"],
        "moe_layers": [int(kind == "sparse") for kind in kinds],
        "mixture_divisor": 2.0 if average and shared else 1.0,
        "router_scores": "sigmoid" if sigmoid else "softmax",
        "norm_topk_prob": bool(left.pop("norm_topk_prob", True)) if sigmoid else False,
    }
    left.pop("norm_topk_prob", None)
    if turned:
        rotates = zip(found["rope_layers"], kinds, strict=False)
        found["rope_layers"] = [int(bool(windowed) or kind == "dense") for windowed, kind in rotates]
    return found if eps is None else {**found, "norm_class_name": "RMSNorm", "norm_eps": eps}


def to_hf(config: Any) -> dict[str, Any]:
    kinds, rotates = layer_types(config), config.rope_layers or [1] * config.n_layer
    unwindowed = [rotates[layer] for layer in range(config.n_layer) if config.dense(layer) and not config.window(layer)]
    return {
        **cohere.to_hf_2(config),
        "head_dim": config.head_size,
        "rms_norm_eps": config.norm_eps if config.norm_class_name == "RMSNorm" else None,
        "intermediate_size": config.moe_intermediate_size,
        "prefix_dense_intermediate_size": config.intermediate_size,
        "prefix_dense_sliding_window_pattern": 1 if all(unwindowed) else 4,
        "mlp_layer_types": kinds,
        "num_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
        "num_shared_experts": config.n_shared_expert or 0,
        "shared_expert_combination_strategy": "average" if config.mixture_divisor == 2 else "sum",
        "expert_selection_fn": config.router_scores,
        "norm_topk_prob": config.norm_topk_prob,
    }


FAMILY = replace(
    cohere.COHERE_2,
    name="cohere2_moe",
    architectures=("Cohere2MoeForCausalLM",),
    model_type="cohere2_moe",
    base={**cohere.COHERE.base, "mlp_class_name": "LLaMAMoE"},
    rows={},
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(cohere.COHERE_2.rules(None), *MIXTURE[:-1]),
    hf_defaults={
        **cohere.COHERE_2.hf_defaults,
        "head_dim": 128,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_shared_experts": 0,
    },
    alternatives=qwen.STACKED,
)

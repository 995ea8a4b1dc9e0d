"""Command R and Aya: attention and MLP side by side after one LayerNorm without bias, scaled logits; Command R7B and A
see a window where they rotate and everything where they don't (https://arxiv.org/abs/2504.00698)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import changed, named, size, without
from litgpt.families.hf_config import push_windows


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    scale = left.pop("logit_scale", None) or 1.0
    return {**llama.from_hf(left), "logits_divisor": 1 / scale, "norm_qk": bool(left.pop("use_qk_norm", False))}


def from_hf_2(left: dict[str, Any]) -> dict[str, Any]:
    every = left.pop("sliding_window_pattern", None) or 4
    if left.get("layer_types") is None:
        layers = range(left["num_hidden_layers"])
        left["layer_types"] = ["sliding_attention" if (i + 1) % every else "full_attention" for i in layers]
    rotates = [int(kind == "sliding_attention" and bool(left.get("sliding_window"))) for kind in left["layer_types"]]
    return {**from_hf(left), "rope_layers": rotates}


def to_hf(config: Any) -> dict[str, Any]:
    said = {"logit_scale": 1 / config.logits_divisor, "use_qk_norm": config.norm_qk, "pad_token_id": None}
    return {**without(llama.to_hf(config), "mlp_bias", "head_dim"), **said}


def to_hf_2(config: Any) -> dict[str, Any]:
    return {**without(to_hf(config), "use_qk_norm"), **push_windows(config)}


SHARED = dict(vocab_size=256000, padded_vocab_size=256000, tie_embeddings=True)

COHERE = replace(
    llama.FAMILY,
    name="cohere",
    architectures=("CohereForCausalLM",),
    model_type="cohere",
    base={
        **llama.BASE,
        "norm_class_name": "LayerNorm",
        "norm_bias": False,
        "norm_qk_type": "by_head",
        "parallel_residual": True,
        "shared_attention_norm": True,
        "rope_interleave": True,
    },
    rows=named(
        "CohereLabs",
        {
            "c4ai-command-r-v01": size(40, 64, 8192, 22528, rope_base=8000000, logits_divisor=16.0),
            "c4ai-command-r-08-2024": size(40, 64, 8192, 24576, 8, rope_base=4000000, logits_divisor=16.0),
        },
        dict(block_size=131072),
        SHARED,
    ),
    hf_fields=llama.LAYER_NORM_FIELDS,
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(llama.WEIGHTS, *llama.NORMED_QK, without=("transformer.h.{i}.norm_2",)),
    prompt_styles=(),
    hf_defaults={
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "logit_scale": 0.0625,
        "tie_word_embeddings": True,
        "rope_theta": 500000.0,
    },
)

COHERE_2 = replace(
    COHERE,
    name="cohere2",
    architectures=("Cohere2ForCausalLM",),
    model_type="cohere2",
    rows=named(
        "CohereLabs",
        {"c4ai-command-a-03-2025": size(64, 96, 12288, 36864, 8, rope_base=50000, logits_divisor=4.0)},
        dict(block_size=131072, sliding_window_size=4096, sliding_window_indices=[1, 1, 1, 0] * 16),
        dict(rope_layers=[1, 1, 1, 0] * 16),
        SHARED,
    ),
    from_hf=from_hf_2,
    to_hf=to_hf_2,
    weights=changed(llama.WEIGHTS, without=("transformer.h.{i}.norm_2",)),
    hf_defaults={
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "logit_scale": 0.0625,
        "tie_word_embeddings": True,
        "sliding_window": 4096,
    },
)

"""Nemotron 3 and 4, Minitron: LayerNorm that scales by 1 + weight, squared ReLU, half of each head rotates.

https://arxiv.org/abs/2402.16819, https://arxiv.org/abs/2407.14679.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import arcee, llama
from litgpt.families.base import changed, named, size
from litgpt.families.hf_config import push_rope


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    return {"rotary_percentage": 0.5, **arcee.from_hf(left)}


def to_hf(config: Any) -> dict[str, Any]:
    rope = push_rope(config)
    scaling = {"rope_type": "default", **(rope["rope_scaling"] or {}), "rope_theta": rope["rope_theta"]}
    share = {"partial_rotary_factor": config.rotary_percentage}
    return {**llama.to_hf(config), **share, "rope_parameters": {**scaling, **share}, "pad_token_id": None}


FAMILY = replace(
    llama.FAMILY,
    name="nemotron",
    architectures=("NemotronForCausalLM",),
    model_type="nemotron",
    base={
        **arcee.FAMILY.base,
        "norm_class_name": "LayerNorm",
        "norm_unit_offset": True,
        "rotary_percentage": 0.5,
    },
    rows=named(
        "nvidia",
        {
            "Nemotron-Mini-4B-Instruct": size(32, 24, 3072, 9216, 8, head_size=128),
            "Minitron-4B-Base": size(32, 24, 3072, 9216, 8, head_size=128),
            "Minitron-8B-Base": size(32, 48, 4096, 16384, 8, head_size=128),
        },
        dict(block_size=4096, vocab_size=256000, padded_vocab_size=256000),
    ),
    hf_fields=(*llama.HF_FIELDS[:-1], ("norm_eps", "norm_eps")),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        llama.WEIGHTS, *arcee.UNGATED, without=("transformer.h.{i}.mlp.fc_1", "transformer.h.{i}.mlp.fc_2")
    ),
    prompt_styles=(),
    hf_defaults={"norm_eps": 1e-5, "max_position_embeddings": 4096, "hidden_act": "relu2"},
    rotates_part=True,
)

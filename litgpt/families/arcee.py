"""AFM: Llama with a plain MLP and squared ReLU (https://www.arcee.ai/blog/deep-dive-afm-4-5b-the-first-arcee-foundation-model)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import Same, changed
from litgpt.families.hf_config import pop_activation, pop_rope

UNGATED = (
    Same("model.layers.{i}.mlp.up_proj", "transformer.h.{i}.mlp.fc"),
    Same("model.layers.{i}.mlp.down_proj", "transformer.h.{i}.mlp.proj"),
)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    activation = pop_activation(left, "relu2")
    return {**pop_rope(left), **llama.pop_attention(left), **activation}


FAMILY = replace(
    llama.FAMILY,
    name="arcee",
    architectures=("ArceeForCausalLM",),
    model_type="arcee",
    base={**llama.BASE, "mlp_class_name": "GptNeoxMLP", "activation": "relu2"},
    rows={},
    from_hf=from_hf,
    weights=changed(llama.WEIGHTS, *UNGATED, without=("transformer.h.{i}.mlp.fc_1", "transformer.h.{i}.mlp.fc_2")),
    prompt_styles=(),
    hf_defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "hidden_act": "relu2"},
)

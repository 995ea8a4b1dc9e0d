"""Apertus: queries and keys normed, and a plain MLP whose activation learns (xIELU, https://arxiv.org/abs/2509.14233)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import Same, changed, named, size, without
from litgpt.families.hf_config import pop_activation, pop_rope, push_activation

ROPE = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    activation = pop_activation(left, "xielu")
    if left.get("rope_parameters") is None and left.get("rope_scaling") is None:
        left["rope_parameters"] = {"rope_type": "llama3", "rope_theta": left.pop("rope_theta", 12000000.0), **ROPE}
    left.pop("post_norm", None)
    left.pop("qk_norm", None)
    return {**pop_rope(left), **llama.pop_attention(left), **activation}


def to_hf(config: Any) -> dict[str, Any]:
    plain = without(llama.to_hf(config), "mlp_bias", "head_dim")
    return {**plain, "hidden_act": push_activation(config), "pad_token_id": None}


FAMILY = replace(
    llama.FAMILY,
    name="apertus",
    architectures=("ApertusForCausalLM",),
    model_type="apertus",
    base={**llama.BASE, "mlp_class_name": "GptNeoxMLP", "activation": "xielu", "norm_qk": True},
    rows=named(
        "swiss-ai",
        {
            "Apertus-8B-{2509,Instruct-2509}": size(32, 32, 4096, 21504, 8),
            "Apertus-70B-{2509,Instruct-2509}": size(80, 64, 8192, 43008, 8),
        },
        dict(block_size=65536, vocab_size=131072, padded_vocab_size=131072, rope_base=12000000),
        llama.LLAMA_31,
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        llama.WEIGHTS,
        Same("model.layers.{i}.attention_layernorm", "transformer.h.{i}.norm_1"),
        Same("model.layers.{i}.feedforward_layernorm", "transformer.h.{i}.norm_2"),
        Same("model.layers.{i}.mlp.up_proj", "transformer.h.{i}.mlp.fc"),
        Same("model.layers.{i}.mlp.act_fn", "transformer.h.{i}.mlp.act"),
        *llama.NORMED_QK,
        without=("transformer.h.{i}.mlp.fc_1", "transformer.h.{i}.mlp.fc_2"),
    ),
    prompt_styles=(),
    hf_defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 65536},
)

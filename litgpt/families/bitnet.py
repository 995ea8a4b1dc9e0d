"""BitNet b1.58, dequantized: Llama with squared ReLU, and norms before both output projections (https://arxiv.org/abs/2504.12285)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import Same, changed, said, without


def to_hf(config: Any) -> dict[str, Any]:
    return {**without(llama.to_hf(config), "mlp_bias", "head_dim"), "pad_token_id": None}


FAMILY = replace(
    llama.FAMILY,
    name="bitnet",
    architectures=("BitNetForCausalLM",),
    model_type="bitnet",
    base={**llama.BASE, "norm_inner": True},
    rows={},
    published={
        "microsoft/bitnet-b1.58-2B-4T{,-bf16}": said(
            2560, 30, 20, 6912, 128256, max_position_embeddings=4096, tie_word_embeddings=True
        )
    },
    to_hf=to_hf,
    weights=changed(
        llama.WEIGHTS,
        Same("model.layers.{i}.self_attn.attn_sub_norm", "transformer.h.{i}.attn.norm_inner"),
        Same("model.layers.{i}.mlp.ffn_sub_norm", "transformer.h.{i}.mlp.norm_inner"),
    ),
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "num_key_value_heads": 5,
        "hidden_act": "relu2",
        "rope_theta": 500000.0,
    },
)

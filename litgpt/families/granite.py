"""Granite 3: Llama with four multipliers, on embeddings, attention, residuals and logits (https://arxiv.org/abs/2405.04324)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import named, size, without
from litgpt.families.gguf import UNSET, Key


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    attention = left.pop("attention_multiplier", 1.0)
    return {
        **llama.from_hf(left),
        "attention_scores_scalar": attention**-2,
        "embedding_multiplier": left.pop("embedding_multiplier", 1.0),
        "residual_multiplier": left.pop("residual_multiplier", 1.0),
        "logits_divisor": left.pop("logits_scaling", 1.0),
    }


def to_hf(config: Any) -> dict[str, Any]:
    return {
        **without(llama.to_hf(config), "head_dim"),
        "attention_multiplier": (config.attention_scores_scalar or config.head_size) ** -0.5,
        "embedding_multiplier": config.embedding_multiplier,
        "residual_multiplier": config.residual_multiplier,
        "logits_scaling": config.logits_divisor,
    }


SHARED = dict(
    block_size=131072,
    vocab_size=49152,
    padded_vocab_size=49155,
    rope_base=10000000,
    embedding_multiplier=12.0,
    residual_multiplier=0.22,
    tie_embeddings=True,
)

FAMILY = replace(
    llama.FAMILY,
    name="granite",
    architectures=("GraniteForCausalLM",),
    model_type="granite",
    rows=named(
        "ibm-granite",
        {
            "granite-3.3-2b-{base,instruct}": size(
                40, 32, 2048, 8192, 8, attention_scores_scalar=0.015625**-2, logits_divisor=8.0
            ),
            "granite-3.3-8b-{base,instruct}": size(
                40, 32, 4096, 12800, 8, attention_scores_scalar=0.0078125**-2, logits_divisor=16.0
            ),
        },
        SHARED,
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    prompt_styles=(),
)


SCALE = Key(
    *("attention.scale", "attention_scores_scalar", UNSET),
    read=lambda scale, _: scale**-2,
    write=lambda scalar, config: (scalar or config.head_size) ** -0.5,
)
AS_GGUF = replace(
    llama.AS_GGUF,
    arch="granite",
    fields=(Key("logit_scale", "logits_divisor"),),
    optional=(Key("embedding_scale", "embedding_multiplier"), Key("residual_scale", "residual_multiplier")),
    more=(SCALE,),
)

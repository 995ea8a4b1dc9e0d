"""Mixtral: Mistral with eight experts where the MLP was, two of them a token (https://arxiv.org/abs/2401.04088)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import Same, changed, named, size
from litgpt.families.gguf import EXPERT_FIELDS, EXPERTS


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    return {
        **llama.from_hf(left),
        "n_expert": left.pop("num_local_experts"),
        "n_expert_per_token": left.pop("num_experts_per_tok"),
    }


def to_hf(config: Any) -> dict[str, Any]:
    return {
        **llama.mistral_to_hf(config),
        "num_local_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
    }


FAMILY = replace(
    llama.MISTRAL,
    name="mixtral",
    architectures=("MixtralForCausalLM",),
    model_type="mixtral",
    base={**llama.BASE, "mlp_class_name": "LLaMAMoE"},
    rows=named(
        "mistralai",
        {
            "Mixtral-8x7B{,-Instruct}-v0.1": size(
                32, 32, 4096, 14336, 8, block_size=32768, vocab_size=32000, padded_vocab_size=32000
            ),
            "Mixtral-8x22B{,-Instruct}-v0.1": size(56, 48, 6144, 16384, 8, block_size=65536, vocab_size=32768),
        },
        dict(rope_base=1000000, n_expert=8, n_expert_per_token=2),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        llama.WEIGHTS,
        Same("model.layers.{i}.block_sparse_moe.gate", "transformer.h.{i}.mlp.gate"),
        Same("model.layers.{i}.block_sparse_moe.experts.{e}.w1", "transformer.h.{i}.mlp.experts.{e}.fc_1"),
        Same("model.layers.{i}.block_sparse_moe.experts.{e}.w3", "transformer.h.{i}.mlp.experts.{e}.fc_2"),
        Same("model.layers.{i}.block_sparse_moe.experts.{e}.w2", "transformer.h.{i}.mlp.experts.{e}.proj"),
        without=llama.DENSE,
    ),
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rope_theta": 1000000.0,
    },
    hf_spellings={"num_experts": "num_local_experts"},
)

AS_GGUF = replace(
    llama.AS_GGUF,
    weights=changed((*llama.AS_GGUF.weights, *EXPERTS), without=llama.DENSE),
    fields=EXPERT_FIELDS,
    only_with="expert_count",
)

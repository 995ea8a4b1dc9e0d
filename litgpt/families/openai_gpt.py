"""GPT and CTRL: GPT-2's predecessor, whose norms come after each half, and its heir with fixed positions.

Radford et al. 2018, https://arxiv.org/abs/1909.05858.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import gpt2
from litgpt.families.base import Drop, Join, Same, changed, named, size
from litgpt.families.hf_config import pop_choice

ACTIVATIONS = {
    "gelu": {"gelu_approximate": "tanh"},  # this class's own
    "relu": {"activation": "relu"},
    "silu": {"activation": "silu"},
    "swish": {"activation": "silu"},
}


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    return {
        **pop_choice(left, "afn", ACTIVATIONS, "gelu"),
        "tie_embeddings": bool(left.pop("tie_word_embeddings", True)),
    }


def to_hf(config: Any) -> dict[str, Any]:
    return {"afn": config.activation or "gelu", "tie_word_embeddings": config.tie_embeddings}


def from_hf_ctrl(left: dict[str, Any]) -> dict[str, Any]:
    tied = bool(left.pop("tie_word_embeddings", True))
    return {"sinusoidal_span": left["n_embd"] / 2, "tie_embeddings": tied}


def to_hf_ctrl(config: Any) -> dict[str, Any]:
    return {"tie_word_embeddings": config.tie_embeddings, "layer_norm_epsilon": 1e-6}


GPT = replace(
    gpt2.FAMILY,
    name="openai-gpt",
    architectures=("OpenAIGPTLMHeadModel",),
    model_type="openai-gpt",
    base={**gpt2.FAMILY.base, "norm_after_residual": True, "final_norm": False, "block_size": 512},
    rows=named(
        "openai-community",
        {"openai-gpt": size(12, 12, 768, 3072, vocab_size=40478, padded_vocab_size=40478)},
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        gpt2.WEIGHTS,
        Same("transformer.tokens_embed", "transformer.wte"),
        Same("transformer.positions_embed", "transformer.wpe"),
        without=("transformer.ln_f",),
    ),
    hf_defaults={"layer_norm_epsilon": 1e-5, "n_positions": 512},
    hf_constants={},
)

CTRL = replace(
    gpt2.FAMILY,
    name="ctrl",
    architectures=("CTRLLMHeadModel",),
    model_type="ctrl",
    base=dict(
        rotary_percentage=0.0,
        parallel_residual=False,
        activation="relu",
        scale_embeddings=True,
        lm_head_bias=True,
        tie_embeddings=True,
        norm_eps=1e-6,
    ),
    rows=named(
        "Salesforce",
        {"ctrl": size(48, 16, 1280, 8192, sinusoidal_span=640.0)},
        dict(block_size=256, vocab_size=246534, padded_vocab_size=246534),
    ),
    hf_fields=(*gpt2.FAMILY.hf_fields[:-1], ("dff", "intermediate_size")),
    from_hf=from_hf_ctrl,
    to_hf=to_hf_ctrl,
    weights=(
        Same("transformer.w", "transformer.wte"),
        Same("transformer.h.{i}.layernorm1", "transformer.h.{i}.norm_1"),
        Join(
            tuple(f"transformer.h.{{i}}.multi_head_attention.W{part}" for part in "qkv"), "transformer.h.{i}.attn.qkv"
        ),
        Same("transformer.h.{i}.multi_head_attention.dense", "transformer.h.{i}.attn.proj"),
        Same("transformer.h.{i}.layernorm2", "transformer.h.{i}.norm_2"),
        Same("transformer.h.{i}.ffn.0", "transformer.h.{i}.mlp.fc"),
        Same("transformer.h.{i}.ffn.2", "transformer.h.{i}.mlp.proj"),
        Same("transformer.layernorm", "transformer.ln_f"),
        Same("lm_head", "lm_head"),
        Drop("transformer.pos_encoding"),
    ),
    hf_defaults={"n_positions": 256, "layer_norm_epsilon": 1e-6},
    hf_constants={"layer_norm_epsilon": 1e-6},
)

"""gpt-oss: a mixture with biases everywhere, attention sinks, every other layer with a window, bounded SwiGLU.

OpenAI 2025, https://arxiv.org/abs/2508.10925.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import Same, Stacked, changed, named, size
from litgpt.families.gguf import (
    COMMON,
    EXPERT_FIELDS,
    EXPERTS,
    SPLIT_QKV,
    WINDOW,
    Key,
    Metadata,
    windowed_layers,
)
from litgpt.families.hf_config import pop_rope, pop_silu, pop_windows, push_adjustments, push_rope, push_windows

BASE = dict(
    **{**llama.BASE, "mlp_class_name": "LLaMAMoE"},
    attention_sinks=True,
    expert_bias=True,
    attn_bias=True,
    attn_proj_bias=True,
    swiglu_limit=7.0,
)
EXPERT = "transformer.h.{i}.mlp.experts.{e}"

WEIGHTS = changed(
    llama.WEIGHTS,
    Same("model.layers.{i}.self_attn.sinks", "transformer.h.{i}.attn.sinks"),
    Same("model.layers.{i}.mlp.router", "transformer.h.{i}.mlp.gate"),
    Stacked("model.layers.{i}.mlp.experts.gate_up_proj", (f"{EXPERT}.fc_1.weight", f"{EXPERT}.fc_2.weight")),
    Stacked("model.layers.{i}.mlp.experts.gate_up_proj_bias", (f"{EXPERT}.fc_1.bias", f"{EXPERT}.fc_2.bias")),
    Stacked("model.layers.{i}.mlp.experts.down_proj", (f"{EXPERT}.proj.weight",)),
    Stacked("model.layers.{i}.mlp.experts.down_proj_bias", (f"{EXPERT}.proj.bias",)),
    without=llama.DENSE,
)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    pop_silu(left)
    for key in ("initial_context_length", "experts_per_token"):
        left.pop(key, None)
    return {
        **pop_rope(left),
        **pop_windows(left, every=2),
        **llama.pop_attention(left),
        "n_expert": left.pop("num_local_experts"),
        "n_expert_per_token": left.pop("num_experts_per_tok"),
        "swiglu_limit": left.pop("swiglu_limit", 7.0),
    }


def to_hf(config: Any) -> dict[str, Any]:
    return {
        **push_rope(config),
        **push_windows(config),
        "hidden_act": "silu",
        **llama.push_attention(config),
        "num_local_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
        "swiglu_limit": config.swiglu_limit,
    }


YARN = dict(factor=32.0, beta_fast=32.0, beta_slow=1.0, original_max_seq_len=4096, truncate=False)


def alternating(n_layer: int, n_expert: int) -> dict[str, Any]:
    windows = [int(layer % 2 == 0) for layer in range(n_layer)]
    return size(n_layer, 64, 2880, 2880, 8, n_expert=n_expert, sliding_window_indices=windows)


FAMILY = replace(
    llama.FAMILY,
    name="gpt_oss",
    architectures=("GptOssForCausalLM",),
    model_type="gpt_oss",
    base=BASE,
    rows=named(
        "openai",
        {"gpt-oss-20b": alternating(24, 32), "gpt-oss-120b": alternating(36, 128)},
        dict(head_size=64, block_size=131072, vocab_size=201088, padded_vocab_size=201088, rope_base=150000),
        dict(sliding_window_size=128, n_expert_per_token=4, rope_adjustments=YARN),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=WEIGHTS,
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "head_dim": 64,
        "num_key_value_heads": 8,
        "attention_bias": True,
        "sliding_window": 128,
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "rope_theta": 150000.0,
        "rope_parameters": push_adjustments("yarn", YARN),
    },
    hf_spellings={"num_experts": "num_local_experts"},
    hf_constants={"swiglu_alpha": 1.702},
)


def gguf_implied(found: Mapping[str, Any]) -> Metadata:
    adjust = found.get("rope_adjustments")
    return {} if adjust is None else {"rope_adjustments": {**adjust, "truncate": False}}


AS_GGUF = replace(
    llama.AS_GGUF,
    arch="gpt-oss",
    weights=changed(
        (*COMMON, *SPLIT_QKV, *EXPERTS),
        Same("blk.{i}.attn_sinks.weight", "transformer.h.{i}.attn.sinks"),
        Same("blk.{i}.post_attention_norm", "transformer.h.{i}.norm_2"),
        without=llama.DENSE,
    ),
    fields=(
        *EXPERT_FIELDS,
        Key("expert_feed_forward_length", "intermediate_size"),
        WINDOW,
    ),
    more=(windowed_layers(every=2),),
    implied=gguf_implied,
    head_may_be_left_out=False,
    paired=(),
)

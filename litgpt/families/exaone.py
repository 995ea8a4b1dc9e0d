"""EXAONE 3: Llama by other names. EXAONE 4: what comes out of attention and MLP is normed, and layers that see
everything don't rotate (https://arxiv.org/abs/2408.03541, https://arxiv.org/abs/2507.11407)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import Join, Same, changed, named, size, without
from litgpt.families.hf_config import push_windows


def from_hf_4(left: dict[str, Any]) -> dict[str, Any]:
    every = left.pop("sliding_window_pattern", None)
    if isinstance(every, str):  # a letter a layer, L: local
        layers = [every[i % len(every)] == "L" for i in range(left["num_hidden_layers"])]
    else:
        layers = [bool((i + 1) % (every or 4)) for i in range(left["num_hidden_layers"])]
    if left.get("layer_types") is None:
        left["layer_types"] = ["sliding_attention" if local else "full_attention" for local in layers]
    windowed = left.get("sliding_window") is not None
    rotates = [int(not windowed or kind == "sliding_attention") for kind in left["layer_types"]]
    return {**llama.from_hf(left), "rope_layers": rotates}


def to_hf_4(config: Any) -> dict[str, Any]:
    plain = without(llama.to_hf(config), "attention_bias", "mlp_bias")
    return {**plain, **push_windows(config), "sliding_window_pattern": None, "pad_token_id": None}


EXAONE_3 = replace(
    llama.FAMILY,
    name="exaone",
    architectures=("ExaoneForCausalLM", "LlamaForCausalLM"),
    model_type="exaone",
    rows=named(
        "LGAI-EXAONE",
        {
            "EXAONE-3.5-2.4B-Instruct": size(30, 32, 2560, 7168, 8, tie_embeddings=True),
            "EXAONE-3.5-7.8B-Instruct": size(32, 32, 4096, 14336, 8),
            "EXAONE-3.5-32B-Instruct": size(64, 40, 5120, 27392, 8),
        },
        dict(block_size=32768, vocab_size=102400, padded_vocab_size=102400, rope_base=1000000),
        dict(rope_adjustments=dict(llama.LLAMA_31["rope_adjustments"])),
    ),
    weights=(
        Same("transformer.wte", "transformer.wte"),
        Same("transformer.h.{i}.ln_1", "transformer.h.{i}.norm_1"),
        Join(
            (
                "transformer.h.{i}.attn.attention.q_proj",
                "transformer.h.{i}.attn.attention.k_proj",
                "transformer.h.{i}.attn.attention.v_proj",
            ),
            "transformer.h.{i}.attn.qkv",
        ),
        Same("transformer.h.{i}.attn.attention.out_proj", "transformer.h.{i}.attn.proj"),
        Same("transformer.h.{i}.ln_2", "transformer.h.{i}.norm_2"),
        Same("transformer.h.{i}.mlp.c_fc_0", "transformer.h.{i}.mlp.fc_1"),
        Same("transformer.h.{i}.mlp.c_fc_1", "transformer.h.{i}.mlp.fc_2"),
        Same("transformer.h.{i}.mlp.c_proj", "transformer.h.{i}.mlp.proj"),
        Same("transformer.ln_f", "transformer.ln_f"),
        Same("lm_head", "lm_head"),
    ),
    prefix="transformer.",
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 8,
        "rope_theta": 500000.0,
    },
    hf_spellings={
        "num_layers": "num_hidden_layers",
        "layer_norm_epsilon": "rms_norm_eps",
        "activation_function": "hidden_act",
    },
)

EXAONE_4 = replace(
    llama.FAMILY,
    name="exaone4",
    architectures=("Exaone4ForCausalLM",),
    model_type="exaone4",
    base=dict(**llama.BASE, norm_qk=True, norm_1=False, norm_2=False, post_attention_norm=True, post_mlp_norm=True),
    rows=named(
        "LGAI-EXAONE",
        {"EXAONE-4.0-1.2B": size(30, 32, 2048, 4096, 8, tie_embeddings=True, block_size=65536, rope_layers=[1] * 30)},
        dict(vocab_size=102400, padded_vocab_size=102400, rope_base=1000000),
        dict(rope_adjustments={**llama.LLAMA_31["rope_adjustments"], "factor": 16.0}),
    ),
    from_hf=from_hf_4,
    to_hf=to_hf_4,
    weights=changed(
        llama.WEIGHTS,
        Same("model.layers.{i}.post_attention_layernorm", "transformer.h.{i}.post_attention_norm"),
        Same("model.layers.{i}.post_feedforward_layernorm", "transformer.h.{i}.post_mlp_norm"),
        *llama.NORMED_QK,
        without=("transformer.h.{i}.norm_1", "transformer.h.{i}.norm_2"),
    ),
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
    },
)

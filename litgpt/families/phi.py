"""Phi 1.5 and 2: attention and MLP share one norm. Phi 3 and 4: Llama with fused projections.

https://arxiv.org/abs/2309.05463, https://arxiv.org/abs/2404.14219, https://arxiv.org/abs/2412.08905.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import Family, Join, Same, Split, changed, named, size, without
from litgpt.families.gguf import COMMON, FUSED_GATE, FUSED_QKV, GGUF, PLAIN_MLP, SPLIT_QKV, WINDOW
from litgpt.families.hf_config import pop_activation, pop_rope, pop_windows, push_activation, push_rope

NORMED_QK = (
    Same("model.layers.{i}.self_attn.q_layernorm", "transformer.h.{i}.attn.norm_q"),
    Same("model.layers.{i}.self_attn.k_layernorm", "transformer.h.{i}.attn.norm_k"),
)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    left.pop("rotary_dim", None)  # what `partial_rotary_factor` says too
    return {
        "rotary_percentage": 0.5,
        **pop_rope(left),
        "n_query_groups": left.pop("num_key_value_heads", None),
        **pop_activation(left, "gelu_new"),
        "norm_qk": bool(left.pop("qk_layernorm", False)),
        "tie_embeddings": bool(left.pop("tie_word_embeddings", False)),
    }


def to_hf(config: Any) -> dict[str, Any]:
    return {
        **push_rope(config),
        "partial_rotary_factor": config.rotary_percentage,
        "num_key_value_heads": config.n_query_groups,
        "hidden_act": push_activation(config, "gelu_new"),
        "qk_layernorm": config.norm_qk,
        "tie_word_embeddings": config.tie_embeddings,
    }


def from_hf_3(left: dict[str, Any]) -> dict[str, Any]:
    activation = pop_activation(left, "silu", gated=True)
    rope = pop_rope(left)
    left.pop("original_max_position_embeddings", None)  # it is said where nothing is stretched as well
    return {**rope, **llama.pop_attention(left), **pop_windows(left), **activation}


def to_hf_3(config: Any) -> dict[str, Any]:
    return {
        **without(llama.to_hf(config), "mlp_bias", "head_dim"),
        "partial_rotary_factor": config.rotary_percentage,
        "original_max_position_embeddings": (config.rope_adjustments or {}).get(
            "original_max_seq_len", config.block_size
        ),
        "sliding_window": config.sliding_window_size,
        "pad_token_id": None,  # the default lies beyond small vocabularies
    }


PHI = Family(
    name="phi",
    architectures=("PhiForCausalLM",),
    model_type="phi",
    base=dict(shared_attention_norm=True, lm_head_bias=True, gelu_approximate="tanh"),
    rows=named(
        "microsoft",
        {
            "phi-1_5": size(24, 32, 2048, 8192, rotary_percentage=0.5),
            "phi-2": size(32, 32, 2560, 10240, rotary_percentage=0.4),
        },
        dict(block_size=2048, vocab_size=50257, padded_vocab_size=51200),
    ),
    hf_fields=llama.LAYER_NORM_FIELDS,
    from_hf=from_hf,
    to_hf=to_hf,
    weights=(
        Same("model.embed_tokens", "transformer.wte"),
        Same("model.layers.{i}.input_layernorm", "transformer.h.{i}.norm_1"),
        Join(
            (
                "model.layers.{i}.self_attn.q_proj",
                "model.layers.{i}.self_attn.k_proj",
                "model.layers.{i}.self_attn.v_proj",
            ),
            "transformer.h.{i}.attn.qkv",
        ),
        Same("model.layers.{i}.self_attn.dense", "transformer.h.{i}.attn.proj"),
        Same("model.layers.{i}.mlp.fc1", "transformer.h.{i}.mlp.fc"),
        Same("model.layers.{i}.mlp.fc2", "transformer.h.{i}.mlp.proj"),
        *NORMED_QK,
        Same("model.final_layernorm", "transformer.ln_f"),
        Same("lm_head", "lm_head"),
    ),
    prefix="model.",
    prompt_styles=((r"phi-1", "phi-1"), (r"phi-2", "phi-2")),
    hf_defaults={"layer_norm_eps": 1e-5, "max_position_embeddings": 2048},
    rotates_part=True,
)

MINI = size(32, 32, 3072, 8192, vocab_size=32000, padded_vocab_size=32064)
MINI_4 = size(32, 24, 3072, 8192, 8, vocab_size=200019, padded_vocab_size=200064, tie_embeddings=True)
FULL_4 = size(40, 40, 5120, 17920, 10, vocab_size=100352)

PHI_3 = replace(
    llama.FAMILY,
    name="phi3",
    architectures=("Phi3ForCausalLM",),
    model_type="phi3",
    rows=named(
        "microsoft",
        {
            "Phi-3-mini-4k-instruct": {**MINI, "sliding_window_size": 2048},
            "Phi-3-mini-128k-instruct": {**MINI, "block_size": 131072, "sliding_window_size": 262145},
            "Phi-3.5-mini-instruct": MINI,
            "phi-4": {**FULL_4, "block_size": 16384, "rope_base": 250000},
            "Phi-4-reasoning{,-plus}": {**FULL_4, "block_size": 32768, "rope_base": 500000},
            "Phi-4-mini-{instruct,reasoning}": {
                **MINI_4,
                "block_size": 131072,
                "sliding_window_size": 262145,
                "rotary_percentage": 0.75,
            },
        },
    ),
    from_hf=from_hf_3,
    to_hf=to_hf_3,
    weights=changed(
        llama.WEIGHTS,
        Same("model.layers.{i}.self_attn.qkv_proj", "transformer.h.{i}.attn.qkv"),
        Split("model.layers.{i}.mlp.gate_up_proj", ("transformer.h.{i}.mlp.fc_1", "transformer.h.{i}.mlp.fc_2")),
        without=("transformer.h.{i}.mlp.fc_1", "transformer.h.{i}.mlp.fc_2"),
    ),
    hf_defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 4096},
    rotates_part=True,
    hf_constants={"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False},
    prompt_styles=(
        (r"Phi-3", "phi-3"),
        (r"Phi-4-reasoning", "phi-4-reasoning"),
        (r"Phi-4-mini-reasoning", "phi-4-mini-reasoning"),
        (r"Phi-4-mini", "phi-4-mini"),
        (r"phi-4", "phi-4"),
    ),
)

AS_GGUF = GGUF(
    arch="phi2",
    eps="attention.layer_norm_epsilon",
    weights=changed((*COMMON, *SPLIT_QKV, *PLAIN_MLP), without=("transformer.h.{i}.norm_2",)),
    always_biased=True,
    head_may_be_left_out=False,
    pre_tokenizer="gpt-2",
)
AS_GGUF_3 = replace(
    llama.AS_GGUF,
    arch="phi3",
    weights=(*COMMON, *FUSED_QKV, *FUSED_GATE),
    optional=(WINDOW,),
    implied=lambda found: {"sliding_window_size": found.get("sliding_window_size") or None},
    paired=(),
)

"""Llama and what is built like it: RMSNorm before attention and MLP, RoPE, grouped queries, SwiGLU, no biases.

Touvron et al. 2023, https://arxiv.org/abs/2302.13971; Mistral's sliding window: https://arxiv.org/abs/2310.06825.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families.base import Drop, Family, Join, Same, named, size, without
from litgpt.families.gguf import COMMON, GATED_MLP, GGUF, PAIRED_HEADS, SPLIT_QKV, STRETCHED, WINDOW
from litgpt.families.hf_config import pop_activation, pop_rope, pop_windows, push_activation, push_rope

BASE = dict(
    rotary_percentage=1.0,
    parallel_residual=False,
    bias=False,
    norm_class_name="RMSNorm",
    mlp_class_name="LLaMAMLP",
)

WEIGHTS = (
    Same("model.embed_tokens", "transformer.wte"),
    Same("model.layers.{i}.input_layernorm", "transformer.h.{i}.norm_1"),
    Join(
        ("model.layers.{i}.self_attn.q_proj", "model.layers.{i}.self_attn.k_proj", "model.layers.{i}.self_attn.v_proj"),
        "transformer.h.{i}.attn.qkv",
    ),
    Same("model.layers.{i}.self_attn.o_proj", "transformer.h.{i}.attn.proj"),
    Same("model.layers.{i}.post_attention_layernorm", "transformer.h.{i}.norm_2"),
    Same("model.layers.{i}.mlp.gate_proj", "transformer.h.{i}.mlp.fc_1"),
    Same("model.layers.{i}.mlp.up_proj", "transformer.h.{i}.mlp.fc_2"),
    Same("model.layers.{i}.mlp.down_proj", "transformer.h.{i}.mlp.proj"),
    Same("model.norm", "transformer.ln_f"),
    Same("lm_head", "lm_head"),
    Drop("model.layers.{i}.self_attn.rotary_emb.inv_freq"),
)

NORMED_QK = (
    Same("model.layers.{i}.self_attn.q_norm", "transformer.h.{i}.attn.norm_q"),
    Same("model.layers.{i}.self_attn.k_norm", "transformer.h.{i}.attn.norm_k"),
)
"""Norms of queries and keys, which later families have."""

DENSE = ("transformer.h.{i}.mlp.fc_1", "transformer.h.{i}.mlp.fc_2", "transformer.h.{i}.mlp.proj")
"""Our modules of an MLP, which experts take the place of."""

HF_FIELDS = (
    ("hidden_size", "n_embd"),
    ("num_hidden_layers", "n_layer"),
    ("num_attention_heads", "n_head"),
    ("intermediate_size", "intermediate_size"),
    ("vocab_size", "padded_vocab_size"),
    ("max_position_embeddings", "block_size"),
    ("rms_norm_eps", "norm_eps"),
)

LAYER_NORM_FIELDS = (*HF_FIELDS[:-1], ("layer_norm_eps", "norm_eps"))


def pop_attention(left: dict[str, Any]) -> dict[str, Any]:
    """Takes heads, biases and head tying out of a `config.json`."""
    attention_bias, mlp_bias = bool(left.pop("attention_bias", False)), bool(left.pop("mlp_bias", False))
    return {
        "n_query_groups": left.pop("num_key_value_heads", None),
        "head_size": left.pop("head_dim", None),
        "tie_embeddings": bool(left.pop("tie_word_embeddings", False)),
        "bias": mlp_bias and attention_bias,
        "mlp_bias": mlp_bias and not attention_bias,
        "attn_bias": attention_bias and not mlp_bias,
        "attn_proj_bias": attention_bias and not mlp_bias,
    }


def push_attention(config: Any) -> dict[str, Any]:
    """And back, but for the bias of MLPs."""
    return {
        "num_key_value_heads": config.n_query_groups,
        "head_dim": config.head_size,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.bias or config.attn_bias,
    }


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    activation = pop_activation(left, "silu", gated=True)
    return {**pop_rope(left), **pop_attention(left), **pop_windows(left), **activation}


def to_hf(config: Any) -> dict[str, Any]:
    return {
        **push_rope(config),
        "hidden_act": push_activation(config),
        **push_attention(config),
        "mlp_bias": config.bias or config.mlp_bias,
    }


def mistral_to_hf(config: Any) -> dict[str, Any]:
    plain = without(to_hf(config), "attention_bias", "mlp_bias")
    return {**plain, "sliding_window": config.sliding_window_size}


LLAMA_31 = dict(rope_adjustments=dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=8192))
LLAMA_32 = dict(
    rope_adjustments=dict(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_seq_len=8192)
)

S_7B = size(32, 32, 4096, 11008)
S_13B = size(40, 40, 5120, 13824)
S_70B = size(80, 64, 8192, 28672, 8)
S_8B = size(32, 32, 4096, 14336, 8)

LLAMA_2 = dict(vocab_size=32000, padding_multiple=64)
LLAMA_3_SHARED = dict(vocab_size=128000, padded_vocab_size=128256, rope_base=500000)
CODE = dict(vocab_size=32016, padding_multiple=16)
PLAIN = dict(vocab_size=32000, padded_vocab_size=32000)
LONG = dict(block_size=131072)

ROWS = {
    **named(
        "meta-llama",
        {
            "Llama-2-7b{,-chat}-hf": S_7B,
            "Llama-2-13b{,-chat}-hf": S_13B,
            "Llama-2-70b{,-chat}-hf": S_70B,
        },
        LLAMA_2,
    ),
    **named(
        "meta-llama",
        {"Llama-3-8B{,-Instruct}": S_8B, "Llama-3-70B{,-Instruct}": S_70B},
        dict(block_size=8192),
        LLAMA_3_SHARED,
        hf="Meta-{}".format,
    ),
    **named(
        "meta-llama",
        {
            "Llama-3.1-8B{,-Instruct}": S_8B,
            "Llama-3.1-70B{,-Instruct}": S_70B,
            "Llama-3.1-405B{,-Instruct}": size(126, 128, 16384, 53248, 8),
            "Llama-3.3-70B-Instruct": {**S_70B, "hf": "Llama-3.3-70B-Instruct"},
        },
        LONG,
        LLAMA_3_SHARED,
        LLAMA_31,
        hf="Meta-{}".format,
    ),
    **named(
        "meta-llama",
        {
            "Llama-3.2-1B{,-Instruct}": size(16, 32, 2048, 8192, 8),
            "Llama-3.2-3B{,-Instruct}": size(28, 24, 3072, 8192, 8),
        },
        dict(tie_embeddings=True),
        LONG,
        LLAMA_3_SHARED,
        LLAMA_32,
    ),
    **named("nvidia", {"Llama-3.1-Nemotron-70B-Instruct-HF": S_70B}, LONG, LLAMA_3_SHARED, LLAMA_31),
    **named(
        "deepseek-ai",
        {"R1-Distill-Llama-8B": S_8B, "R1-Distill-Llama-70B": S_70B},
        LONG,
        LLAMA_3_SHARED,
        LLAMA_31,
        hf="DeepSeek-{}".format,
    ),
    **named(
        "openlm-research",
        {"open_llama_3b": size(26, 32, 3200, 8640), "open_llama_7b": S_7B, "open_llama_13b": S_13B},
        dict(block_size=2048, norm_eps=1e-6),
        LLAMA_2,
    ),
    **named(
        "codellama",
        {
            "CodeLlama-7b{,-Instruct}-hf": {**S_7B, **CODE},
            "CodeLlama-13b-hf": {**S_13B, **CODE},
            "CodeLlama-13b-Instruct-hf": {**S_13B, **CODE, "block_size": 2048},
            "CodeLlama-70b{,-Python}-hf": {**S_70B, **CODE},
            "CodeLlama-70b-Instruct-hf": {**S_70B, **CODE, "vocab_size": 32015},
            "CodeLlama-7b-Python-hf": {**S_7B, **PLAIN},
            "CodeLlama-13b-Python-hf": {**S_13B, **PLAIN},
            "CodeLlama-34b{,-Python,-Instruct}-hf": size(48, 64, 8192, 22016, 8, **PLAIN),
        },
        dict(block_size=16384, rope_base=1000000),
    ),
    **named("stabilityai", {"FreeWilly2": S_70B}, LLAMA_2),
    **named(
        "garage-bAInd",
        {
            "Platypus-30B": size(60, 52, 6656, 17920, block_size=2048, norm_eps=1e-6),
            "Platypus2-7B": S_7B,
            "{,Camel-,Stable-}Platypus2-13B": S_13B,
            # LitGPT gives this one 64 key-value heads where its siblings have 8.
            "Platypus2-70B": size(80, 64, 8192, 28672),
            "{Camel-Platypus2-70B,Platypus2-70B-instruct}": S_70B,
        },
        PLAIN,
    ),
    **named("togethercomputer", {"LLaMA-2-7B-32K": S_7B}, dict(rope_condense_ratio=8), LLAMA_2),
    **named("Trelis", {"Llama-2-7b-chat-hf-function-calling-v2": S_7B}, dict(norm_eps=1e-6), LLAMA_2),
    **named(
        "TinyLlama",
        {
            "tiny-llama-1.1b": size(22, 32, 2048, 5632, 4, hf="TinyLlama-1.1B-intermediate-step-1431k-3T"),
            "tiny-llama-1.1b-chat": size(22, 32, 2048, 5632, 4, hf="TinyLlama-1.1B-Chat-v1.0"),
        },
        dict(block_size=2048),
        LLAMA_2,
    ),
    **named(
        "keeeeenw", {"micro-llama-300M": size(12, 16, 1024, 5632, 4, hf="MicroLlama")}, dict(block_size=2048), LLAMA_2
    ),
    **named(
        "BSC-LT",
        {
            "salamandra-2b{,-instruct}": size(24, 16, 2048, 5440),
            "salamandra-7b{,-instruct}": size(32, 32, 4096, 11008, 8, norm_eps=1e-6),
        },
        dict(block_size=8192, vocab_size=256000),
    ),
    **named(
        "HuggingFaceTB",
        {
            "SmolLM2-135M{,-Instruct}": size(30, 9, 576, 1536, 3, rope_base=100000),
            "SmolLM2-360M{,-Instruct}": size(32, 15, 960, 2560, 5, rope_base=100000),
            "SmolLM2-1.7B{,-Instruct}": size(24, 32, 2048, 8192, rope_base=130000),
        },
        dict(block_size=8192, vocab_size=49152, tie_embeddings=True),
    ),
    **named(
        "tiiuae",
        {
            "Falcon3-1B-{Base,Instruct}": size(18, 8, 2048, 8192, 4, block_size=4096),
            "Falcon3-3B-{Base,Instruct}": size(22, 12, 3072, 9216, 4),
            "Falcon3-7B-{Base,Instruct}": size(28, 12, 3072, 23040, 4),
            "Falcon3-10B-{Base,Instruct}": size(40, 12, 3072, 23040, 4),
        },
        dict(block_size=32768, vocab_size=131072, norm_eps=1e-6, rope_base=1000042),
    ),
}

FAMILY = Family(
    name="llama",
    architectures=("LlamaForCausalLM",),
    model_type="llama",
    base=BASE,
    rows=ROWS,
    hf_fields=HF_FIELDS,
    from_hf=from_hf,
    to_hf=to_hf,
    weights=WEIGHTS,
    prefix="model.",
    hf_defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    prompt_styles=(
        (r"Falcon3.*-Instruct", "falcon3"),
        (r"function-calling", "llama2-function-calling"),
        (r"Llama-2-.*-chat", "llama2"),
        (r"(?<!Code)Llama-3.*-Instruct", "llama3"),
        (r"R1-Distill", "r1"),
        (r"FreeWilly2", "freewilly2"),
        (r"Platypus", "platypus"),
        (r"CodeLlama", "codellama"),
        (r"(?i)tiny-?llama.*-chat", "tinyllama"),
        (r"SmolLM2.*-Instruct", "smollm2"),
        (r"salamandra-.*-instruct", "salamandra"),
    ),
)

V3 = dict(vocab_size=32768, padded_vocab_size=32768)
FAR = dict(block_size=32768, rope_base=1000000)
SMALL_3 = size(40, 32, 5120, 32768, 8)

MISTRAL = replace(
    FAMILY,
    name="mistral",
    architectures=("MistralForCausalLM",),
    model_type="mistral",
    to_hf=mistral_to_hf,
    hf_defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "num_key_value_heads": 8,
    },
    rows={
        **named(
            "mistralai",
            {
                "Mathstral-7B-v0.1": {**S_8B, **V3, **FAR, "hf": "mathstral-7B-v0.1", "sliding_window_size": 4096},
                "Mistral-7B{,-Instruct}-v0.1": {**S_8B, "sliding_window_size": 4096},
                "Mistral-7B-Instruct-v0.2": {**S_8B, **FAR},
                "Mistral-7B{,-Instruct}-v0.3": {**S_8B, **V3, **FAR},
                "Mistral-Large-Instruct-{2407,2411}": {**size(88, 96, 12288, 28672, 8), **V3, **FAR},
            },
            PLAIN,
        ),
        **named(
            "mistralai",
            {
                "Mistral-Nemo-{Base,Instruct}-2407": {**size(40, 32, 5120, 14336, 8), **LONG, "rope_base": 1000000},
                "Mistral-Small-24B-{Base,Instruct}-2501": {**SMALL_3, "block_size": 32768, "rope_base": 100000000},
                "Mistral-Small-3.1-24B-{Base,Instruct}-2503": {**SMALL_3, **LONG, "rope_base": 1000000000},
                "Mistral-Small-3.2-24B-Instruct-2506": {**SMALL_3, **LONG, "rope_base": 1000000000},
                # Its window is as wide as its context.
                "Ministral-8B-Instruct-2410": size(
                    36, 32, 4096, 12288, 8, block_size=32768, sliding_window_size=32768, rope_base=100000000
                ),
            },
            dict(head_size=128, vocab_size=131072, padded_vocab_size=131072),
        ),
        **named("unsloth", {"Mistral-7B-v0.2": {**S_8B, **FAR}}, PLAIN),
    },
    prompt_styles=((r"M[ix]\w*tral.*-Instruct", "codellama"),),
)

AS_GGUF = GGUF(
    arch="llama",
    eps="attention.layer_norm_rms_epsilon",
    weights=(*COMMON, *SPLIT_QKV, *GATED_MLP, *STRETCHED),
    paired=PAIRED_HEADS,
)
# llama.cpp itself looks back without a limit here, whatever the file says.
MISTRAL_AS_GGUF = replace(AS_GGUF, only_with=WINDOW.name, optional=(WINDOW,))

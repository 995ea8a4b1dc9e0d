"""Small models of every family, for tests: as a `transformers` configuration, as a saved folder, and as a `Config`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from litgpt.families.base import without

NEOX_LIKE = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
)
LLAMA_LIKE = dict(**NEOX_LIKE, num_key_value_heads=2)
GPT2_LIKE = dict(vocab_size=96, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=1, eos_token_id=2)

LLAMA3_ROPE = dict(
    rope_type="llama3",
    rope_theta=10000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=16,
)

PARTIAL = dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.75)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=16)
YARN_BY_LAYER = dict(full_attention=YARN, sliding_attention=dict(rope_type="default", rope_theta=10000.0))
FALCON_LIKE = dict(
    vocab_size=96,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
)
QWEN_EXPERTS = dict(head_dim=8, num_experts=8, num_experts_per_tok=3, moe_intermediate_size=24)
DEEPSEEK = dict(
    **NEOX_LIKE,
    num_key_value_heads=4,
    q_lora_rank=12,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=6,
    n_routed_experts=8,
    num_experts_per_tok=3,
    n_shared_experts=2,
    moe_intermediate_size=24,
    first_k_dense_replace=1,
    routed_scaling_factor=1.5,
)
LLAMA_4 = dict(
    **{**LLAMA_LIKE, "num_hidden_layers": 5},
    head_dim=8,
    intermediate_size_mlp=40,
    num_local_experts=5,
    num_experts_per_tok=2,
    attention_chunk_size=7,
    floor_scale=6,
    attn_scale=0.3,
)
GPT_OSS = dict(
    **{**LLAMA_LIKE, "intermediate_size": 32},
    head_dim=8,
    num_local_experts=5,
    num_experts_per_tok=2,
    sliding_window=7,
    rope_parameters={**YARN, "truncate": False},
)
QWEN_NEXT = dict(
    **{**LLAMA_LIKE, "num_hidden_layers": 4},
    **QWEN_EXPERTS,
    shared_expert_intermediate_size=48,
    linear_num_key_heads=2,
    linear_num_value_heads=6,
    linear_key_head_dim=8,
    linear_value_head_dim=10,
    linear_conv_kernel_dim=3,
    rms_norm_eps=1e-2,  # heads that find next to nothing are not blown up to rounding errors
    rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5),
)


QWEN_35 = {key: value for key, value in QWEN_NEXT.items() if key not in QWEN_EXPERTS and "expert" not in key} | dict(
    head_dim=16, num_hidden_layers=3, full_attention_interval=2
)


def long_rope(original: int) -> dict[str, Any]:
    factors = dict(short_factor=[1.0, 1.1, 1.3, 1.7], long_factor=[1.0, 2.0, 3.0, 5.0])
    rope = dict(rope_type="longrope", rope_theta=10000.0, original_max_position_embeddings=original, **factors)
    return dict(original_max_position_embeddings=original, rope_parameters=rope)


TWO_LAYERS = {**LLAMA_LIKE, "num_hidden_layers": 2}
FEW_EXPERTS = dict(num_experts=6, num_experts_per_tok=2, pad_token_id=None)
SOME_EXPERTS = dict(num_experts=6, num_experts_per_tok=2, moe_intermediate_size=24)
ROUTED = dict(
    **TWO_LAYERS,
    n_routed_experts=8,
    num_experts_per_tok=3,
    n_shared_experts=1,
    moe_intermediate_size=24,
    first_k_dense_replace=1,
    routed_scaling_factor=1.5,
)
LATENT = {**DEEPSEEK, "num_hidden_layers": 2}
GRANITE_LIKE = dict(
    **TWO_LAYERS,
    num_local_experts=5,
    num_experts_per_tok=2,
    embedding_multiplier=3.0,
    attention_multiplier=0.5,
    residual_multiplier=0.7,
    logits_scaling=4.0,
)
GEMMA_4 = dict(
    **{**LLAMA_LIKE, "num_hidden_layers": 4},
    head_dim=8,
    global_head_dim=16,
    sliding_window=7,
    layer_types=["sliding_attention", "full_attention"] * 2,
    hidden_size_per_layer_input=6,
    vocab_size_per_layer_input=96,
    final_logit_softcapping=3.0,
    rms_norm_eps=1e-2,
)
GEMMAS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma4-shared-keys": (
        "Gemma4TextConfig",
        {**GEMMA_4, "num_kv_shared_layers": 2, "use_double_wide_mlp": True, "tie_word_embeddings": False},
    ),
    "gemma4-experts": (
        "Gemma4TextConfig",
        {**GEMMA_4, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
        | dict(enable_moe_block=True, num_experts=5, top_k_experts=2, moe_intermediate_size=24, num_hidden_layers=2)
        | dict(layer_types=["sliding_attention", "full_attention"]),
    ),
    "gemma4-unified": ("Gemma4UnifiedTextConfig", {key: GEMMA_4[key] for key in GEMMA_4 if "per_layer" not in key}),
}
STATES = dict(mamba_n_heads=4, mamba_d_head=16, mamba_n_groups=2, mamba_d_state=8, mamba_d_conv=3)
GRANITE_HYBRID = dict(**{**GRANITE_LIKE, "num_hidden_layers": 3}, **STATES, shared_intermediate_size=40)
GRANITE_HYBRID |= dict(layer_types=["linear_attention", "full_attention", "linear_attention"], rms_norm_eps=1e-2)
RECURRENT: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2": (
        "Lfm2Config",
        {**LLAMA_LIKE, "layer_types": ["conv", "full_attention", "conv"], "conv_bias": True, "block_multiple_of": 8},
    ),
    "lfm2-moe": (
        "Lfm2MoeConfig",
        {**LLAMA_LIKE, **SOME_EXPERTS, "layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1}
        | dict(routed_scaling_factor=1.5, conv_L_cache=4),
    ),
    "lfm3": (
        "Lfm3Config",
        {**LLAMA_LIKE, "num_hidden_layers": 4, "head_dim": 16, "sliding_window": 7, "conv_L_cache": 5}
        | dict(layer_types=["conv", "sliding_attention", "full_attention", "conv"], pad_token_id=0),
    ),
    "granite-hybrid": ("GraniteMoeHybridConfig", GRANITE_HYBRID),
    "granite-hybrid-dense": (
        "GraniteMoeHybridConfig",
        {**GRANITE_HYBRID, "num_local_experts": 0, "position_embedding_type": "rope", "time_step_limit": (0.1, 2.0)},
    ),
    "bamba": (
        "BambaConfig",
        {**LLAMA_LIKE, **STATES, "attn_layer_indices": [1], "rms_norm_eps": 1e-2, "mamba_proj_bias": True},
    ),
}
"""Layers that keep a state, and a convolution's last inputs."""
MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2-moe": ("Qwen2MoeConfig", {**TWO_LAYERS, **SOME_EXPERTS, "shared_expert_intermediate_size": 40}),
    "qwen2-moe-window": (
        "Qwen2MoeConfig",
        {**TWO_LAYERS, **SOME_EXPERTS, "use_sliding_window": True, "sliding_window": 7, "qkv_bias": False},
    ),
    "qwen3.5-moe": (
        "Qwen3_5MoeTextConfig",
        {**QWEN_NEXT, "intermediate_size": 24, "num_hidden_layers": 3, "full_attention_interval": 2},
    ),
    "glm4-moe": ("Glm4MoeConfig", {**ROUTED, "use_qk_norm": True, "attention_bias": True, "head_dim": 16}),
    "solar-open": ("SolarOpenConfig", {**ROUTED, "head_dim": 16, "intermediate_size": 24}),
    "glm4-moe-lite": ("Glm4MoeLiteConfig", LATENT),
    "mistral4": (
        "Mistral4Config",
        {**LATENT, "n_group": 2, "topk_group": 1, "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.3}},
    ),
    "minimax-m2": (
        "MiniMaxM2Config",
        {**TWO_LAYERS, "head_dim": 16, "num_local_experts": 5, "num_experts_per_tok": 2, "rope_parameters": PARTIAL},
    ),
    "laguna": (
        "LagunaConfig",
        {**TWO_LAYERS, **SOME_EXPERTS, "head_dim": 8, "num_attention_heads_per_layer": [6, 4], "sliding_window": 7}
        | dict(layer_types=["sliding_attention", "full_attention"], moe_routed_scaling_factor=1.5, rms_norm_eps=1e-2),
    ),
    "laguna-gates-by-value": (
        "LagunaConfig",
        {**TWO_LAYERS, **SOME_EXPERTS, "head_dim": 8, "gating": "per-element", "sliding_window": 7}
        | dict(layer_types=["sliding_attention", "full_attention"], rms_norm_eps=1e-2),
    ),
    "mellum": (
        "MellumConfig",
        {**TWO_LAYERS, **SOME_EXPERTS, "head_dim": 8, "sliding_window": 7}
        | dict(layer_types=["sliding_attention", "full_attention"], mlp_layer_types=["dense", "sparse"]),
    ),
    "mimo-v2-flash": (
        "MiMoV2FlashConfig",
        {**TWO_LAYERS, "head_dim": 12, "v_head_dim": 8, "n_routed_experts": 6, "moe_intermediate_size": 24}
        | dict(num_experts_per_tok=2, sliding_window=7, layer_types=["sliding_attention", "full_attention"])
        | dict(num_key_value_heads=1, attention_bias=True),
    ),
    "minimax-m3": (
        "MiniMaxM3VLTextConfig",
        {**TWO_LAYERS, "head_dim": 8, "num_local_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 24}
        | dict(dense_intermediate_size=48, shared_intermediate_size=40, mlp_layer_types=["dense", "sparse"])
        | dict(layer_types=["full_attention", "minimax_m3_sparse"], index_n_heads=2, index_head_dim=9)
        | dict(index_block_size=4, index_topk_blocks=3, rope_parameters=PARTIAL, swiglu_limit=0.9),
    ),
    "phimoe": (
        "PhimoeConfig",
        {**TWO_LAYERS, "num_local_experts": 5, "sliding_window": 7, "attention_bias": True, "lm_head_bias": True}
        | dict(router_jitter_noise=0.3),
    ),
    "olmoe": ("OlmoeConfig", {**TWO_LAYERS, **FEW_EXPERTS, "clip_qkv": 0.8}),
    "flex-olmo": ("FlexOlmoConfig", {**TWO_LAYERS, **FEW_EXPERTS}),
    "granite-moe": ("GraniteMoeConfig", GRANITE_LIKE),
    "granite-moe-shared": ("GraniteMoeSharedConfig", {**GRANITE_LIKE, "shared_intermediate_size": 40}),
    "dots1": ("Dots1Config", {**ROUTED, "head_dim": 8, "sliding_window": 7, "max_window_layers": 1}),
    "exaone-moe": (
        "ExaoneMoeConfig",
        {**TWO_LAYERS, **SOME_EXPERTS, "head_dim": 8, "sliding_window": 7, "sliding_window_pattern": 2},
    ),
    "ernie4.5-moe": (
        "Ernie4_5_MoeConfig",
        {**TWO_LAYERS, "moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 24, "moe_num_shared_experts": 2},
    ),
    "afmoe": (
        "AfmoeConfig",
        {**TWO_LAYERS, **SOME_EXPERTS, "head_dim": 16, "sliding_window": 7, "mup_enabled": True}
        | dict(global_attn_every_n_layers=2, num_shared_experts=2, route_scale=1.5),
    ),
}
"""Mixtures of experts, of two layers each."""

# Case name → (class in transformers, settings).
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", LLAMA_LIKE),
    "llama-tied": ("LlamaConfig", {**LLAMA_LIKE, "tie_word_embeddings": True}),
    "llama-biased": ("LlamaConfig", {**LLAMA_LIKE, "attention_bias": True}),
    "llama-all-biases": ("LlamaConfig", {**LLAMA_LIKE, "attention_bias": True, "mlp_bias": True}),
    "llama-multi-query": ("LlamaConfig", {**LLAMA_LIKE, "num_key_value_heads": 1}),
    "llama-wide-heads": ("LlamaConfig", {**LLAMA_LIKE, "head_dim": 16}),
    "llama-3-rope": ("LlamaConfig", {**LLAMA_LIKE, "rope_parameters": LLAMA3_ROPE}),
    "llama-linear-rope": (
        "LlamaConfig",
        {**LLAMA_LIKE, "rope_parameters": dict(rope_type="linear", rope_theta=10000.0, factor=4.0)},
    ),
    "mistral": ("MistralConfig", {**LLAMA_LIKE, "sliding_window": None}),
    "mistral-window": ("MistralConfig", {**LLAMA_LIKE, "sliding_window": 7}),
    "mistral-nemo-like": ("MistralConfig", {**LLAMA_LIKE, "head_dim": 16, "sliding_window": None}),
    "ministral": (
        "MinistralConfig",
        {
            **LLAMA_LIKE,
            "head_dim": 16,
            "sliding_window": 7,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    ),
    "ministral3": (
        "Ministral3Config",
        {**LLAMA_LIKE, "head_dim": 16, "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.3}},
    ),
    "llama4": ("Llama4TextConfig", LLAMA_4),
    "llama4-dense-every-other": ("Llama4TextConfig", {**LLAMA_4, "interleave_moe_layer_step": 2, "use_qk_norm": False}),
    "llama4-untuned": (
        "Llama4TextConfig",
        {**LLAMA_4, "attn_temperature_tuning": False, "rope_parameters": LLAMA3_ROPE},
    ),
    "llama4-stretched-as-scout": (
        "Llama4TextConfig",
        {**LLAMA_4, "rope_parameters": {**LLAMA3_ROPE, "factor": 16.0, "high_freq_factor": 1.0}},
    ),
    "neox": ("GPTNeoXConfig", NEOX_LIKE),
    "neox-one-after-the-other": (
        "GPTNeoXConfig",
        {**NEOX_LIKE, "use_parallel_residual": False, "hidden_act": "gelu_new"},
    ),
    "stablelm": ("StableLmConfig", LLAMA_LIKE),
    "stablelm-biased": ("StableLmConfig", {**LLAMA_LIKE, "use_qkv_bias": True}),
    "falcon-7b-like": ("FalconConfig", {**FALCON_LIKE, "multi_query": True}),
    "falcon-40b-like": ("FalconConfig", {**FALCON_LIKE, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-11b-like": (
        "FalconConfig",
        {**FALCON_LIKE, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
    ),
    "mixtral": ("MixtralConfig", {**LLAMA_LIKE, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo": ("OlmoConfig", LLAMA_LIKE),
    "olmo-clipped": ("OlmoConfig", {**LLAMA_LIKE, "clip_qkv": 0.8}),
    "olmo2": ("Olmo2Config", LLAMA_LIKE),
    "gemma": ("GemmaConfig", {**LLAMA_LIKE, "head_dim": 16}),
    "gemma2": ("Gemma2Config", {**LLAMA_LIKE, "head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 12}),
    "gemma2-untied": ("Gemma2Config", {**LLAMA_LIKE, "head_dim": 16, "tie_word_embeddings": False}),
    "gemma3": ("Gemma3TextConfig", {**LLAMA_LIKE, "num_hidden_layers": 7, "head_dim": 16, "sliding_window": 7}),
    "phi": ("PhiConfig", NEOX_LIKE),
    "phi3": ("Phi3Config", {**LLAMA_LIKE, "pad_token_id": 0}),
    "phi3-window": ("Phi3Config", {**LLAMA_LIKE, "pad_token_id": 0, "sliding_window": 7}),
    "phi4-mini-like": (
        "Phi3Config",
        {**LLAMA_LIKE, "pad_token_id": 0, "tie_word_embeddings": True, "rope_parameters": PARTIAL},
    ),
    "phi3-longrope": ("Phi3Config", {**LLAMA_LIKE, "pad_token_id": 0, **long_rope(original=5)}),
    "phi3-longrope-within": ("Phi3Config", {**LLAMA_LIKE, "pad_token_id": 0, **long_rope(original=50)}),
    "qwen2": ("Qwen2Config", LLAMA_LIKE),
    "qwen2-window": (
        "Qwen2Config",
        {**LLAMA_LIKE, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {**LLAMA_LIKE, "head_dim": 16}),
    "qwen3-moe": ("Qwen3MoeConfig", {**LLAMA_LIKE, **QWEN_EXPERTS, "norm_topk_prob": True}),
    "qwen3-moe-shares-of-all": ("Qwen3MoeConfig", {**LLAMA_LIKE, **QWEN_EXPERTS, "norm_topk_prob": False}),
    "qwen3-moe-window": (
        "Qwen3MoeConfig",
        {**LLAMA_LIKE, **QWEN_EXPERTS, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen3-moe-dense-every-other": ("Qwen3MoeConfig", {**LLAMA_LIKE, **QWEN_EXPERTS, "decoder_sparse_step": 2}),
    "qwen3-next": ("Qwen3NextConfig", QWEN_NEXT),
    "qwen3-next-dense-first": (
        "Qwen3NextConfig",
        {
            **QWEN_NEXT,
            "num_hidden_layers": 3,
            "mlp_only_layers": [0],
            "norm_topk_prob": False,
            "full_attention_interval": 2,
        },
    ),
    "qwen3.5": ("Qwen3_5TextConfig", QWEN_35),
    "llama-yarn": ("LlamaConfig", {**LLAMA_LIKE, "rope_parameters": YARN}),
    "llama-yarn-mscale": (
        "LlamaConfig",
        {**LLAMA_LIKE, "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2}},
    ),
    "llama-yarn-untruncated": ("LlamaConfig", {**LLAMA_LIKE, "rope_parameters": {**YARN, "truncate": False}}),
    "olmo3": ("Olmo3Config", {**LLAMA_LIKE, "num_hidden_layers": 5, "sliding_window": 7}),
    "olmo3-yarn": (
        "Olmo3Config",
        {**LLAMA_LIKE, "num_hidden_layers": 5, "sliding_window": 7, "rope_parameters": YARN_BY_LAYER},
    ),
    "smollm3": ("SmolLM3Config", {**LLAMA_LIKE, "num_hidden_layers": 5, "pad_token_id": 0}),
    "smollm3-window": (
        "SmolLM3Config",
        {**LLAMA_LIKE, "num_hidden_layers": 5, "pad_token_id": 0, "use_sliding_window": True, "sliding_window": 7},
    ),
    "granite": (
        "GraniteConfig",
        {
            **LLAMA_LIKE,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.5,
            "residual_multiplier": 0.7,
            "logits_scaling": 4.0,
        },
    ),
    "glm4": (
        "Glm4Config",
        {**LLAMA_LIKE, "head_dim": 8, "pad_token_id": 0, "rope_parameters": {**PARTIAL, "partial_rotary_factor": 0.5}},
    ),
    "deepseek-v2-lite-like": ("DeepseekV2Config", {**DEEPSEEK, "q_lora_rank": None}),
    "deepseek-v2": (
        "DeepseekV2Config",
        {**DEEPSEEK, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    ),
    "deepseek-v3": ("DeepseekV3Config", {**DEEPSEEK, "n_group": 4, "topk_group": 2}),
    "deepseek-v3-yarn": (
        "DeepseekV3Config",
        {**DEEPSEEK, "n_group": 4, "topk_group": 2, "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "gpt-oss": ("GptOssConfig", GPT_OSS),
    "gpt2": ("GPT2Config", GPT2_LIKE),
    "gpt2-untied": ("GPT2Config", {**GPT2_LIKE, "tie_word_embeddings": False}),
    **MIXTURES,
    **GEMMAS,
    **RECURRENT,
}


BIGCODE = dict(**GPT2_LIKE, n_inner=48)
NEO = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    max_position_embeddings=64,
    attention_types=[[["global", "local", "global"], 1]],
    window_size=7,
    bos_token_id=1,
    eos_token_id=2,
)
OPT_LIKE = dict(**without(NEOX_LIKE, "intermediate_size"), ffn_dim=48, pad_token_id=None)
LATENT = without(
    DEEPSEEK,
    *("n_routed_experts", "num_experts_per_tok", "n_shared_experts", "moe_intermediate_size"),
    *("first_k_dense_replace", "routed_scaling_factor"),
)
MULTIPLIED = dict(embedding_multiplier=3.0, attention_multiplier=0.5, residual_multiplier=0.7, logits_scaling=4.0)
NO_PAD = dict(pad_token_id=None)
DYNAMIC_ROPE = dict(rope_type="dynamic", rope_theta=10000.0)

# The same, of families whose structure others have as well: one test of each is fast, the rest are slow.
WIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("CohereConfig", {**LLAMA_LIKE, **NO_PAD, "logit_scale": 0.25}),
    "llama-dynamic-rope": (
        "LlamaConfig",
        {**LLAMA_LIKE, "max_position_embeddings": 16, "rope_parameters": {**DYNAMIC_ROPE, "factor": 4.0}},
    ),
    "llama-biased-mlp": ("LlamaConfig", {**LLAMA_LIKE, "mlp_bias": True}),
    "llama-gelu": ("LlamaConfig", {**LLAMA_LIKE, "hidden_act": "gelu"}),
    "qwen3-relu": ("Qwen3Config", {**LLAMA_LIKE, "head_dim": 8, "hidden_act": "relu"}),
    "gemma2-mish": ("Gemma2Config", {**LLAMA_LIKE, "head_dim": 16, "sliding_window": 7, "hidden_activation": "mish"}),
    "stablelm-12b-like": ("StableLmConfig", {**LLAMA_LIKE, "qk_layernorm": True, "use_parallel_residual": True}),
    "phi-normed": ("PhiConfig", {**NEOX_LIKE, "qk_layernorm": True, "num_key_value_heads": 2}),
    "neox-unbiased-attention": ("GPTNeoXConfig", {**NEOX_LIKE, "attention_bias": False, "hidden_act": "quick_gelu"}),
    "falcon-rw-like": (
        "FalconConfig",
        {**FALCON_LIKE, "alibi": True, "parallel_attn": False, "bias": True, "multi_query": False},
    ),
    "cohere-normed": ("CohereConfig", {**LLAMA_LIKE, **NO_PAD, "use_qk_norm": True}),
    "cohere2": ("Cohere2Config", {**LLAMA_LIKE, **NO_PAD, "num_hidden_layers": 5, "sliding_window": 7}),
    "seed-oss": ("SeedOssConfig", {**LLAMA_LIKE, **NO_PAD, "head_dim": 8}),
    "seed-oss-biased": ("SeedOssConfig", {**LLAMA_LIKE, **NO_PAD, "head_dim": 8, "attention_out_bias": True}),
    "ernie": ("Ernie4_5Config", {**LLAMA_LIKE, **NO_PAD, "head_dim": 16}),
    "ernie-biased": ("Ernie4_5Config", {**LLAMA_LIKE, **NO_PAD, "head_dim": 8, "use_bias": True}),
    "hunyuan": ("HunYuanDenseV1Config", {**LLAMA_LIKE, "head_dim": 16}),
    "hunyuan-alpha": (
        "HunYuanDenseV1Config",
        {**LLAMA_LIKE, "head_dim": 8, "rope_parameters": {**DYNAMIC_ROPE, "alpha": 100.0, "factor": 1.0}},
    ),
    "exaone4": ("Exaone4Config", {**LLAMA_LIKE, "num_hidden_layers": 5, "sliding_window": 7}),
    "exaone4-without-windows": (
        "Exaone4Config",
        {**LLAMA_LIKE, "sliding_window": None, "layer_types": ["full_attention"] * 3},
    ),
    "apertus": ("ApertusConfig", {**LLAMA_LIKE, **NO_PAD}),
    "arcee": ("ArceeConfig", LLAMA_LIKE),
    "arcee-biased": ("ArceeConfig", {**LLAMA_LIKE, "mlp_bias": True}),
    "helium": ("HeliumConfig", {**LLAMA_LIKE, **NO_PAD, "head_dim": 8, "rms_norm_eps": 1e-5}),
    "nemotron": ("NemotronConfig", {**LLAMA_LIKE, **NO_PAD}),
    "jais2": ("Jais2Config", LLAMA_LIKE),
    "starcoder": ("GPTBigCodeConfig", BIGCODE),
    "starcoder-all-heads": ("GPTBigCodeConfig", {**BIGCODE, "multi_query": False}),
    "starcoder2": ("Starcoder2Config", {**LLAMA_LIKE, "sliding_window": 7}),
    "starcoder2-unbiased": ("Starcoder2Config", {**LLAMA_LIKE, "use_bias": False}),
    "gptj": ("GPTJConfig", {**GPT2_LIKE, "rotary_dim": 4}),
    "codegen": ("CodeGenConfig", {**GPT2_LIKE, "rotary_dim": 4, "n_inner": 48}),
    "gpt-neo": ("GPTNeoConfig", NEO),
    "opt": ("OPTConfig", OPT_LIKE),
    "opt-350m-like": ("OPTConfig", {**OPT_LIKE, "do_layer_norm_before": False, "enable_bias": False}),
    "biogpt": ("BioGptConfig", {**NEOX_LIKE, **NO_PAD}),
    "xglm": ("XGLMConfig", dict(vocab_size=96, d_model=32, ffn_dim=48, num_layers=3, attention_heads=4)),
    "bloom": ("BloomConfig", dict(vocab_size=96, hidden_size=36, n_layer=3, n_head=6)),
    "mpt": (
        "MptConfig",
        dict(vocab_size=96, d_model=32, n_layers=3, n_heads=4, max_seq_len=64, attn_config={"clip_qkv": 2.0}),
    ),
    "nanochat": ("NanoChatConfig", {**LLAMA_LIKE, **NO_PAD}),
    "minicpm3": ("MiniCPM3Config", {**LATENT, **NO_PAD, "dim_model_base": 16}),
    "youtu": ("YoutuConfig", {**LATENT, **NO_PAD}),
    "bitnet": ("BitNetConfig", {**LLAMA_LIKE, **NO_PAD}),
    "vaultgemma": (
        "VaultGemmaConfig",
        {**LLAMA_LIKE, **NO_PAD, "head_dim": 16, "sliding_window": 7, "query_pre_attn_scalar": 12},
    ),
    "glm": (
        "GlmConfig",
        {**LLAMA_LIKE, **NO_PAD, "head_dim": 8, "rope_parameters": {**PARTIAL, "partial_rotary_factor": 0.5}},
    ),
    "granite-swa": (
        "GraniteSWAConfig",
        {**LLAMA_LIKE, **NO_PAD, **MULTIPLIED, "sliding_window": 7, "layer_rope_theta": [10000.0, 0.0, 500.0]},
    ),
    "hyperclovax": ("HyperCLOVAXConfig", {**LLAMA_LIKE, **MULTIPLIED, "logits_scaling": 0.25}),
    "hyperclovax-prenormed": ("HyperCLOVAXConfig", {**LLAMA_LIKE, "use_post_norm": False}),
    "cwm": ("CwmConfig", {**LLAMA_LIKE, **NO_PAD, "head_dim": 8, "sliding_window": 7}),
    "persimmon": ("PersimmonConfig", {**NEOX_LIKE, **NO_PAD}),
    "openai-gpt": ("OpenAIGPTConfig", GPT2_LIKE),
    "ctrl": ("CTRLConfig", {**GPT2_LIKE, "dff": 48}),
}
SPARSE = dict(**{**DEEPSEEK, "num_hidden_layers": 3}, index_n_heads=16, index_head_dim=8, index_topk=9)
NEMOTRON_H = dict(
    **without(LLAMA_LIKE, "num_hidden_layers"),
    head_dim=8,
    layers_block_type=["linear_attention", "mlp", "full_attention", "mlp"],
    mamba_num_heads=4,
    mamba_head_dim=16,
    n_groups=2,
    ssm_state_size=8,
    layer_norm_epsilon=1e-2,
)
FALCON_H1 = dict(
    **TWO_LAYERS,
    **STATES,
    mamba_d_ssm=64,
    rms_norm_eps=1e-2,
    key_multiplier=0.4,
    attention_in_multiplier=1.3,
    attention_out_multiplier=0.7,
    ssm_in_multiplier=1.2,
    ssm_out_multiplier=0.6,
    mlp_multipliers=[0.8, 0.9],
    ssm_multipliers=[0.9, 0.8, 0.7, 1.1, 1.2],
    embedding_multiplier=3.0,
    lm_head_multiplier=0.5,
)
KIMI = dict(
    **without(NEOX_LIKE, "num_hidden_layers", "max_position_embeddings"),
    model_max_length=64,
    num_hidden_layers=3,
    layer_types=["linear_attention", "full_attention", "linear_attention"],
    num_key_value_heads=4,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=4,
    v_head_dim=6,
    num_experts=8,
    num_experts_per_token=3,
    num_shared_experts=1,
    moe_intermediate_size=24,
    linear_head_dim=8,
    linear_num_heads=4,
    linear_conv_kernel_dim=3,
    rms_norm_eps=1e-2,
    pad_token_id=None,
)
GEMMA_3N = dict(
    **{**LLAMA_LIKE, "num_hidden_layers": 4},
    head_dim=8,
    sliding_window=7,
    layer_types=["sliding_attention", "full_attention"] * 2,
    num_kv_shared_layers=2,
    hidden_size_per_layer_input=6,
    vocab_size_per_layer_input=80,
    laurel_rank=4,
    final_logit_softcapping=3.0,
    rms_norm_eps=1e-2,
)
NEWER: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek-v3.2": ("DeepseekV32Config", {**SPARSE, "n_group": 4, "topk_group": 2}),
    "glm-moe-dsa": ("GlmMoeDsaConfig", {**SPARSE, "indexer_types": ["full", "shared", "full"]}),
    "hunyuan-moe": ("HunYuanMoEV1Config", {**TWO_LAYERS, "num_experts": 6, "moe_topk": 2, "head_dim": 16}),
    "hy3": (
        "HYV3Config",
        {**TWO_LAYERS, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 16},
    ),
    "granite-moe-swa": (
        "GraniteMoeSWAConfig",
        {**GRANITE_LIKE, **NO_PAD, "sliding_window": 7, "layer_rope_theta": [10000.0, 0.0]}
        | dict(shared_intermediate_size=40),
    ),
    "cohere2-moe": (
        "Cohere2MoeConfig",
        {**TWO_LAYERS, **NO_PAD, "head_dim": 8, "num_experts": 6, "num_shared_experts": 2, "sliding_window": 7},
    ),
    "cohere2-moe-sigmoid": (
        "Cohere2MoeConfig",
        {**LLAMA_LIKE, **NO_PAD, "head_dim": 8, "num_experts": 6, "expert_selection_fn": "sigmoid"}
        | dict(first_k_dense_replace=1, prefix_dense_intermediate_size=40, rms_norm_eps=1e-5, sliding_window=7),
    ),
    "nemotron-h": ("NemotronHConfig", NEMOTRON_H),
    "nemotron-3-super-like": (
        "NemotronHConfig",
        {**NEMOTRON_H, "layers_block_type": ["moe", "full_attention", "linear_attention", "moe"]}
        | dict(n_routed_experts=6, moe_intermediate_size=24, moe_shared_expert_intermediate_size=40, moe_latent_size=16)
        | dict(routed_scaling_factor=1.5),
    ),
    "mamba2": (
        "Mamba2Config",
        dict(vocab_size=96, hidden_size=32, num_heads=4, head_dim=16, state_size=8, n_groups=2, num_hidden_layers=3)
        | dict(bos_token_id=1, eos_token_id=2, layer_norm_epsilon=1e-2),
    ),
    "falcon-h1": ("FalconH1Config", FALCON_H1),
    "falcon-h1-normed": (
        "FalconH1Config",
        {**FALCON_H1, "mamba_rms_norm": True, "mamba_norm_before_gate": False, "projectors_bias": True},
    ),
    "falcon-h1-gated-last": ("FalconH1Config", {**FALCON_H1, "mamba_rms_norm": True, "mamba_n_groups": 1}),
    "kimi-linear": ("KimiLinearConfig", KIMI),
    "kimi-linear-low-rank-queries": ("KimiLinearConfig", {**KIMI, "q_lora_rank": 12}),
    "gemma3n": ("Gemma3nTextConfig", GEMMA_3N),
    "gemma3n-sparse": (
        "Gemma3nTextConfig",
        {**GEMMA_3N, "activation_sparsity_pattern": [0.8, 0.0, 0.95, 0.0], "altup_num_inputs": 3}
        | dict(altup_correct_scale=False, altup_active_idx=1),
    ),
}
"""What came with the models of 2026."""
CASES |= WIDE | NEWER
WIDE |= {
    case: CASES[case]
    for case in """
    qwen2-moe qwen2-moe-window qwen3.5-moe glm4-moe solar-open glm4-moe-lite mistral4 phimoe olmoe flex-olmo granite-moe
    granite-moe-shared hunyuan-moe hy3 granite-moe-swa cohere2-moe cohere2-moe-sigmoid glm-moe-dsa
    nemotron-h mamba2 falcon-h1-normed falcon-h1-gated-last
    kimi-linear-low-rank-queries gemma3n-sparse laguna-gates-by-value mellum mimo-v2-flash
    dots1 exaone-moe ernie4.5-moe gemma4-experts gemma4-unified lfm2-moe granite-hybrid-dense bamba
    """.split()
}
SMALL_EYES = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
)
INSIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "muse-glimmer": (
        "MuseGlimmerConfig",
        dict(
            text_config=dict(**{**LLAMA_LIKE, "num_hidden_layers": 5}, head_dim=16, sliding_window=7),
            vision_config={**SMALL_EYES, "pos_emb_height": 2, "pos_emb_width": 2},
            **dict(out_hidden_size=64, projector_hidden_size=16),
        ),
    ),
}
"""Language models that `transformers` has no class of but inside one that sees as well."""
BY_LENGTH = {"llama-dynamic-rope"}
"""A token's position is another in a longer sequence, so that no cache or pack has what each has by itself."""


def wide_ones_slow(names: Iterable[str], kinds: Collection[str] = frozenset(WIDE)) -> list[Any]:
    """Parameters of tests that take long for each of so many families."""
    return [pytest.param(name, marks=pytest.mark.slow if name in kinds else ()) for name in names]


AROUND_ZERO = dict.fromkeys(
    ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
    ("layernorm.weight", "q_norm.weight", "k_norm.weight", "model.norm.weight", "A_log"),
)
"""By model type: parameters without dimensions to multiply in that are logarithms, or what a scale is more than one."""


def hf_model(case: str, seed: int = 0) -> Any:
    """A random `transformers` model of a case, float32, with weights large enough that every part matters."""
    import transformers

    name, settings = (CASES | INSIDE)[case]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**settings)
    kind = "ForConditionalGeneration" if case in INSIDE else "ForCausalLM"
    alone = getattr(transformers, f"{name.removesuffix('Config')}{kind}", None)  # in no list of theirs
    listed = type(config) in transformers.AutoModelForCausalLM._model_mapping or alone is None
    model = (transformers.AutoModelForCausalLM.from_config(config) if listed else alone(config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("e_score_correction_bias"):
                buffer.uniform_(8.5, 9.0)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(AROUND_ZERO.get(model.config.model_type, ())):
                parameter.sub_(1)  # or rounding grows beyond all bounds
    return model


def hf_folder(case: str, folder: Path, change: Callable[[Any], Any] = lambda model: model) -> Path:
    """The model of a case saved as a Hugging Face folder."""
    change(hf_model(case)).save_pretrained(folder)
    return folder

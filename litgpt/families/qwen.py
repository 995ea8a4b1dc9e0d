"""Qwen 2.5 and QwQ: Llama with biases on queries, keys, values; Qwen 3: with normed queries and keys; mixtures too.

https://arxiv.org/abs/2412.15115, https://arxiv.org/abs/2505.09388.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import Family, Same, Stacked, changed, named, size
from litgpt.families.gguf import EXPERT_FIELDS, EXPERTS, NORMED_HEADS, Key
from litgpt.families.hf_config import pop_activation, pop_rope, pop_windows, push_activation, push_rope, push_windows

BASE = dict(**llama.BASE, attn_bias=True)
BASE_3 = dict(**llama.BASE, norm_qk=True)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    left.pop("dual_chunk_attention_config", None)  # for servers; the model itself is computed without
    return {**from_hf_3(left), "attn_bias": True}


def from_hf_3(left: dict[str, Any]) -> dict[str, Any]:
    activation = pop_activation(left, "silu", gated=True)
    left.setdefault("use_sliding_window", False)
    return {**pop_rope(left), **pop_windows(left), **llama.pop_attention(left), **activation}


def from_hf_3_moe(left: dict[str, Any]) -> dict[str, Any]:
    left.pop("max_window_layers", None)  # of no effect in mixtures: all layers have a window, or none
    return {**from_hf_3(left), **pop_experts(left)}


def pop_experts(left: dict[str, Any]) -> dict[str, Any]:
    """Takes the settings of a mixture out of a `config.json`."""
    dense, step = left.pop("mlp_only_layers", None) or (), left.pop("decoder_sparse_step", 1)
    layers = range(left["num_hidden_layers"])
    mixtures = [int(layer not in dense and (layer + 1) % step == 0) for layer in layers]
    return {
        "moe_layers": None if all(mixtures) else mixtures,
        "n_expert": left.pop("num_experts"),
        "n_expert_per_token": left.pop("num_experts_per_tok"),
        "moe_intermediate_size": left.pop("moe_intermediate_size"),
        "router_softmax_over_all": not left.pop("norm_topk_prob", False),
    }


def to_hf(config: Any) -> dict[str, Any]:
    windowed = config.sliding_window_size is not None
    return {
        **push_rope(config),
        "hidden_act": push_activation(config),
        "num_key_value_heads": config.n_query_groups,
        "tie_word_embeddings": config.tie_embeddings,
        "use_sliding_window": windowed,
        **(push_windows(config) if windowed else {}),
    }


def to_hf_3(config: Any) -> dict[str, Any]:
    return {**to_hf(config), "head_dim": config.head_size, "attention_bias": config.attn_bias}


def to_hf_3_moe(config: Any) -> dict[str, Any]:
    return {**to_hf_3(config), **push_experts(config)}


def push_experts(config: Any) -> dict[str, Any]:
    """And back."""
    return {
        "num_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
        "moe_intermediate_size": config.moe_intermediate_size,
        "norm_topk_prob": not config.router_softmax_over_all,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [layer for layer in range(config.n_layer) if config.dense(layer)],
    }


SMALL = dict(padded_vocab_size=151936, norm_eps=1e-6)
LARGE = dict(padded_vocab_size=152064)
S_05B = size(24, 14, 896, 4864, 2, **SMALL, tie_embeddings=True)
S_15B = size(28, 12, 1536, 8960, 2, **SMALL, tie_embeddings=True)
S_3B = size(36, 16, 2048, 11008, 2, **SMALL, tie_embeddings=True)
S_7B = size(28, 28, 3584, 18944, 4, **LARGE, norm_eps=1e-6)
S_14B = size(48, 40, 5120, 13824, 8, **LARGE)
S_32B = size(64, 40, 5120, 27648, 8, **LARGE)
S_72B = size(80, 64, 8192, 29568, 8, **LARGE)
SHORT, LONG = dict(block_size=32768), dict(block_size=131072)

DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 32,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
DEFAULTS_SEEING = {
    **DEFAULTS,
    "rms_norm_eps": 1e-5,
    "num_key_value_heads": 8,
    "max_window_layers": 80,
    "rope_theta": 1000000.0,
}

QWEN_2 = Family(
    name="qwen2",
    architectures=("Qwen2ForCausalLM",),
    model_type="qwen2",
    base=BASE,
    rows=named(
        "Qwen",
        {
            "Qwen2.5-0.5B{,-Instruct}": {**S_05B, **SHORT},
            "Qwen2.5-1.5B{,-Instruct}": {**S_15B, **LONG},
            "Qwen2.5-3B{,-Instruct}": {**S_3B, **SHORT},
            "Qwen2.5-7B{,-Instruct}": {**S_7B, **LONG},
            "Qwen2.5-14B{,-Instruct}": {**S_14B, **LONG},
            "Qwen2.5-32B{,-Instruct}": {**S_32B, **LONG},
            "Qwen2.5-72B{,-Instruct}": {**S_72B, **LONG},
            "Qwen2.5-Coder-0.5B{,-Instruct}": {**S_05B, **SHORT},
            "Qwen2.5-Coder-1.5B{,-Instruct}": {**S_15B, **SHORT},
            "Qwen2.5-Coder-3B{,-Instruct}": {**S_3B, **SHORT},
            "Qwen2.5-Coder-7B{,-Instruct}": {**S_7B, **SHORT},
            "Qwen2.5-Coder-14B{,-Instruct}": {**S_14B, **SHORT},
            "Qwen2.5-Coder-32B{,-Instruct}": {**S_32B, **SHORT},
            "Qwen2.5-Math-1.5B{,-Instruct}": {**S_15B, "rope_base": 10000},
            "Qwen2.5-Math-7B{,-Instruct}": {**S_7B, "rope_base": 10000},
            "Qwen2.5-Math-72B{,-Instruct}": {**S_72B, "rope_base": 10000},
            "Qwen2.5-7B-Instruct-1M": {**S_7B, "norm_eps": 1e-5, "block_size": 1010000, "rope_base": 10000000},
            "Qwen2.5-14B-Instruct-1M": {**S_14B, "block_size": 1010000, "rope_base": 10000000},
            "QwQ-32B": {**S_32B, **LONG},
            "QwQ-32B-Preview": {**S_32B, **SHORT},
            "Qwen2-0.5B": {**S_05B, **LONG},
            "Qwen2-0.5B-Instruct": {**S_05B, **SHORT},
            "Qwen2-1.5B": {**S_15B, **LONG},
            "Qwen2-1.5B-Instruct": {**S_15B, **SHORT},
            "Qwen2-7B": {**S_7B, **LONG},
            "Qwen2-7B-Instruct": {**S_7B, **SHORT},
        },
        dict(vocab_size=151643, rope_base=1000000),
    )
    | named(
        "deepseek-ai",
        {
            "R1-Distill-Qwen-1.5B": {**S_15B, "tie_embeddings": False, "rope_base": 10000},
            "R1-Distill-Qwen-7B": {**S_7B, "rope_base": 10000},
            "R1-Distill-Qwen-14B": S_14B,
            "R1-Distill-Qwen-32B": S_32B,
        },
        dict(vocab_size=151643, rope_base=1000000),
        LONG,
        hf="DeepSeek-{}".format,
    ),
    hf_fields=llama.HF_FIELDS,
    from_hf=from_hf,
    to_hf=to_hf,
    weights=llama.WEIGHTS,
    prefix="model.",
    prompt_styles=(
        (r"R1-Distill", "r1"),
        (r"Qwen2\.5-Math", "qwen2.5-math"),
        (r"Qwen2\.5", "qwen2.5"),
        (r"QwQ", "qwq"),
    ),
    hf_defaults=DEFAULTS,
    inside={"qwen2_vl_text": DEFAULTS_SEEING, "qwen2_5_vl_text": DEFAULTS_SEEING},
)

S3_4B = size(36, 32, 2560, 9728, 8, head_size=128, tie_embeddings=True)
QWEN3_SHARED = dict(vocab_size=151643, padded_vocab_size=151936, norm_eps=1e-6, block_size=40960, rope_base=1000000)
FAR = dict(block_size=262144)

WEIGHTS_3 = changed(llama.WEIGHTS, *llama.NORMED_QK)

QWEN_3 = replace(
    QWEN_2,
    name="qwen3",
    architectures=("Qwen3ForCausalLM",),
    model_type="qwen3",
    base=BASE_3,
    rows=named(
        "Qwen",
        {
            "Qwen3-0.6B{,-Base}": size(28, 16, 1024, 3072, 8, head_size=128, tie_embeddings=True),
            "Qwen3-1.7B{,-Base}": size(28, 16, 2048, 6144, 8, tie_embeddings=True),
            "Qwen3-4B{,-Base}": S3_4B,
            "Qwen3-8B{,-Base}": size(36, 32, 4096, 12288, 8),
            "Qwen3-14B{,-Base}": size(40, 40, 5120, 17408, 8),
            "Qwen3-32B": size(64, 64, 5120, 25600, 8, head_size=128),
            "Qwen3-4B-{Thinking,Instruct}-2507": {**S3_4B, **FAR, "rope_base": 5000000},
        },
        QWEN3_SHARED,
    ),
    from_hf=from_hf_3,
    to_hf=to_hf_3,
    weights=WEIGHTS_3,
    prompt_styles=((r"Qwen3", "qwen3"),),
    hf_defaults={**QWEN_2.hf_defaults, "head_dim": 128},
    inside={
        "qwen3_vl_text": {
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 128000,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "rope_theta": 500000.0,
        }
    },
)

EXPERT = "transformer.h.{i}.mlp.experts.{e}"
STACKED = (
    Stacked(
        "model.layers.{i}.mlp.experts.gate_up_proj",
        (f"{EXPERT}.fc_1.weight", f"{EXPERT}.fc_2.weight"),
        by_turns=False,
        rows=True,
    ),
    Stacked("model.layers.{i}.mlp.experts.down_proj", (f"{EXPERT}.proj.weight",), rows=True),
)
"""Mixtures as some checkpoints hold them: all experts in one tensor."""
MIXTURE = (
    Same("model.layers.{i}.mlp.gate", "transformer.h.{i}.mlp.gate"),
    Same("model.layers.{i}.mlp.experts.{e}.gate_proj", "transformer.h.{i}.mlp.experts.{e}.fc_1"),
    Same("model.layers.{i}.mlp.experts.{e}.up_proj", "transformer.h.{i}.mlp.experts.{e}.fc_2"),
    Same("model.layers.{i}.mlp.experts.{e}.down_proj", "transformer.h.{i}.mlp.experts.{e}.proj"),
)
WEIGHTS_3_MOE = changed(WEIGHTS_3, *MIXTURE)

A3B = size(48, 32, 2048, 6144, 4, moe_intermediate_size=768)
A22B = size(94, 64, 4096, 12288, 4, moe_intermediate_size=1536)

QWEN_3_MOE = replace(
    QWEN_3,
    name="qwen3_moe",
    architectures=("Qwen3MoeForCausalLM",),
    model_type="qwen3_moe",
    base={**BASE_3, "mlp_class_name": "LLaMAMoE"},
    rows=named(
        "Qwen",
        {
            "Qwen3-30B-A3B{,-Base}": A3B,
            "Qwen3-235B-A22B": A22B,
            "Qwen3-235B-A22B-{Thinking,Instruct}-2507": {**A22B, **FAR, "rope_base": 5000000},
            "Qwen3-30B-A3B-{Thinking,Instruct}-2507": {**A3B, **FAR, "rope_base": 10000000},
        },
        QWEN3_SHARED,
        dict(head_size=128, n_expert=128, n_expert_per_token=8),
    ),
    from_hf=from_hf_3_moe,
    to_hf=to_hf_3_moe,
    weights=WEIGHTS_3_MOE,
    hf_defaults={
        **QWEN_2.hf_defaults,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    },
    hf_spellings={"num_local_experts": "num_experts"},
    alternatives=STACKED,
    inside={
        "qwen3_vl_moe_text": {
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 128000,
            "num_key_value_heads": 16,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "rope_theta": 500000.0,
            "norm_topk_prob": True,
        }
    },
)
AS_GGUF_2 = replace(llama.AS_GGUF, arch="qwen2", paired=())
AS_GGUF_3 = replace(AS_GGUF_2, arch="qwen3", weights=(*AS_GGUF_2.weights, *NORMED_HEADS))
AS_GGUF_3_MOE = replace(
    AS_GGUF_3,
    arch="qwen3moe",
    weights=changed((*AS_GGUF_3.weights, *EXPERTS), without=llama.DENSE),
    fields=(*EXPERT_FIELDS, Key("expert_feed_forward_length", "moe_intermediate_size")),
)

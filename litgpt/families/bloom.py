"""BLOOM and MPT: no positions but scores that fall with distance (ALiBi).

https://arxiv.org/abs/2211.05100, https://www.databricks.com/blog/mpt-7b.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.errors import LitGPTError, escaped, quoted
from litgpt.families.base import Family, Interleaved, Same, named, size

ALIBI = {"max_bias": 8}
BASE = dict(alibi=ALIBI, rotary_percentage=0.0, parallel_residual=False, tie_embeddings=True, block_size=2048)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    for key in ("hidden_dropout", "slow_but_exact", "skip_bias_add", "skip_bias_add_qkv", "bias_dropout_fusion"):
        left.pop(key, None)
    for key in ("attention_softmax_in_fp32", "masked_softmax_fusion", "offset_alibi"):
        left.pop(key, None)
    return {
        "tie_embeddings": bool(left.pop("tie_word_embeddings", True)),
        "block_size": left.pop("seq_length", None) or 2048,
    }


def to_hf(config: Any) -> dict[str, Any]:
    if config.intermediate_size != 4 * config.n_embd:
        raise LitGPTError("A BLOOM or MPT in transformers has four times as many hidden units as dimensions.")
    return {"tie_word_embeddings": config.tie_embeddings, "seq_length": config.block_size}


def from_hf_mpt(left: dict[str, Any]) -> dict[str, Any]:
    attention = {key: value for key, value in (left.pop("attn_config", None) or {}).items() if value is not None}
    known = {"alibi": True, "attn_type": "multihead_attention", "prefix_lm": False, "qk_ln": False}
    for key, value in {**known, "attn_uses_sequence_id": False}.items():
        if attention.get(key, value) != value:
            raise LitGPTError(
                f"config.json has `{escaped(key)}`: {quoted(attention[key])}; MPTs here have {quoted(value)} only."
            )
    for key in ("emb_pdrop", "init_device", "verbose", "init_config", "embedding_fraction", "norm_type"):
        left.pop(key, None)
    scale = attention.get("softmax_scale")
    return {
        "alibi": {"max_bias": attention.get("alibi_bias_max", 8)},
        "qkv_clip": attention.get("clip_qkv") or None,
        "attention_scores_scalar": None if scale is None else scale**-2,
        "tie_embeddings": bool(left.pop("tie_word_embeddings", True)),
    }


def to_hf_mpt(config: Any) -> dict[str, Any]:
    scalar = config.attention_scores_scalar
    attention = {"clip_qkv": config.qkv_clip, "softmax_scale": None if scalar is None else scalar**-0.5}
    return {
        **{key: value for key, value in to_hf(config).items() if key != "seq_length"},
        "attn_config": {"alibi": True, "alibi_bias_max": config.alibi["max_bias"], **attention},
    }


BLOOM = Family(
    name="bloom",
    architectures=("BloomForCausalLM",),
    model_type="bloom",
    base={**BASE, "norm_embeddings": True, "gelu_approximate": "tanh"},
    rows=named(
        "bigscience",
        {
            "bloom-560m": size(24, 16, 1024, 4096),
            "bloom-1b1": size(24, 16, 1536, 6144),
            "bloom-1b7": size(24, 16, 2048, 8192),
            "bloom-3b": size(30, 32, 2560, 10240),
            "bloom-7b1": size(30, 32, 4096, 16384),
            "bloom": size(70, 112, 14336, 57344),
        },
        dict(vocab_size=250880, padded_vocab_size=250880),
    ),
    hf_fields=(
        ("hidden_size", "n_embd"),
        ("n_layer", "n_layer"),
        ("n_head", "n_head"),
        ("vocab_size", "padded_vocab_size"),
        ("layer_norm_epsilon", "norm_eps"),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=(
        Same("transformer.word_embeddings", "transformer.wte"),
        Same("transformer.word_embeddings_layernorm", "transformer.ln_e"),
        Same("transformer.h.{i}.input_layernorm", "transformer.h.{i}.norm_1"),
        Interleaved("transformer.h.{i}.self_attention.query_key_value", "transformer.h.{i}.attn.qkv"),
        Same("transformer.h.{i}.self_attention.dense", "transformer.h.{i}.attn.proj"),
        Same("transformer.h.{i}.post_attention_layernorm", "transformer.h.{i}.norm_2"),
        Same("transformer.h.{i}.mlp.dense_h_to_4h", "transformer.h.{i}.mlp.fc"),
        Same("transformer.h.{i}.mlp.dense_4h_to_h", "transformer.h.{i}.mlp.proj"),
        Same("transformer.ln_f", "transformer.ln_f"),
        Same("lm_head", "lm_head"),
    ),
    prefix="transformer.",
    hf_defaults={"layer_norm_epsilon": 1e-5},
    hf_spellings={"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
    hf_constants={"apply_residual_connection_post_layernorm": False, "n_inner": None},
)

MPT = replace(
    BLOOM,
    name="mpt",
    architectures=("MptForCausalLM", "MPTForCausalLM"),
    model_type="mpt",
    base={**BASE, "bias": False, "norm_bias": False},
    rows=named(
        "mosaicml",
        {
            "mpt-7b{,-instruct}": size(32, 32, 4096, 16384),
            "mpt-7b-chat": size(32, 32, 4096, 16384),
            "mpt-30b{,-instruct,-chat}": size(48, 64, 7168, 28672, block_size=8192),
        },
        dict(vocab_size=50432, padded_vocab_size=50432),
    ),
    hf_fields=(
        ("d_model", "n_embd"),
        ("n_layers", "n_layer"),
        ("n_heads", "n_head"),
        ("vocab_size", "padded_vocab_size"),
        ("max_seq_len", "block_size"),
        ("layer_norm_epsilon", "norm_eps"),
    ),
    from_hf=from_hf_mpt,
    to_hf=to_hf_mpt,
    weights=(
        Same("transformer.wte", "transformer.wte"),
        Same("transformer.blocks.{i}.norm_1", "transformer.h.{i}.norm_1"),
        Same("transformer.blocks.{i}.attn.Wqkv", "transformer.h.{i}.attn.qkv"),
        Same("transformer.blocks.{i}.attn.out_proj", "transformer.h.{i}.attn.proj"),
        Same("transformer.blocks.{i}.norm_2", "transformer.h.{i}.norm_2"),
        Same("transformer.blocks.{i}.ffn.up_proj", "transformer.h.{i}.mlp.fc"),
        Same("transformer.blocks.{i}.ffn.down_proj", "transformer.h.{i}.mlp.proj"),
        Same("transformer.norm_f", "transformer.ln_f"),
        Same("lm_head", "lm_head"),
    ),
    hf_defaults={"layer_norm_epsilon": 1e-5, "max_seq_len": 2048},
    hf_spellings={"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"},
    hf_constants={"no_bias": True, "expansion_ratio": 4, "learned_pos_emb": True, "logit_scale": None},
)

"""Falcon: attention and MLP side by side, few key-value heads, LayerNorm, no biases.

Almazrouei et al. 2023, https://arxiv.org/abs/2311.16867.
"""

from __future__ import annotations

from typing import Any

from litgpt.errors import LitGPTError
from litgpt.families.base import Drop, Family, Interleaved, Rule, Same, changed, named, size
from litgpt.families.gguf import COMMON as COMMON_GGUF
from litgpt.families.gguf import FUSED_QKV, GGUF, PLAIN_MLP
from litgpt.families.hf_config import pop_activation, pop_rope, push_activation, push_rope

# The 7B norms once for both halves (`input_layernorm`); the larger ones norm for each (`ln_attn`, `ln_mlp`); RW has one
# half after the other.
COMMON = (
    Same("transformer.word_embeddings", "transformer.wte"),
    Interleaved("transformer.h.{i}.self_attention.query_key_value", "transformer.h.{i}.attn.qkv"),
    Same("transformer.h.{i}.self_attention.dense", "transformer.h.{i}.attn.proj"),
    Same("transformer.h.{i}.mlp.dense_h_to_4h", "transformer.h.{i}.mlp.fc"),
    Same("transformer.h.{i}.mlp.dense_4h_to_h", "transformer.h.{i}.mlp.proj"),
    Same("transformer.ln_f", "transformer.ln_f"),
    Same("lm_head", "lm_head"),
    Drop("transformer.h.{i}.self_attention.rotary_emb.inv_freq"),
)


FIRST = Same("transformer.h.{i}.input_layernorm", "transformer.h.{i}.norm_1")


def weights(config: Any) -> tuple[Rule, ...]:
    if config.shared_attention_norm:
        return (*COMMON, FIRST)
    if not config.parallel_residual:
        return (*COMMON, FIRST, Same("transformer.h.{i}.post_attention_layernorm", "transformer.h.{i}.norm_2"))
    return (
        *COMMON,
        Same("transformer.h.{i}.ln_attn", "transformer.h.{i}.norm_1"),
        Same("transformer.h.{i}.ln_mlp", "transformer.h.{i}.norm_2"),
    )


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    new, multi_query = left.pop("new_decoder_architecture", False), left.pop("multi_query", True)
    norms = left.pop("num_ln_in_parallel_attn", None) or (2 if new else 1)
    if norms not in (1, 2) or norms > 1 + new:
        raise LitGPTError(f"config.json has `num_ln_in_parallel_attn`: {norms}, which Falcon models here don't know.")
    groups = left.pop("num_kv_heads", None)
    left.pop("apply_residual_connection_post_layernorm", None)
    sequential = not new and not left.pop("parallel_attn", True)
    left.pop("parallel_attn", None)
    alibi, rope = bool(left.pop("alibi", False)), pop_rope(left)
    return {
        **({"alibi": {"max_bias": 8, "in_bfloat16": True}} if alibi else rope),
        "parallel_residual": not sequential,
        "bias": bool(left.pop("bias", False)),
        "n_query_groups": groups if new else 1 if multi_query else None,
        "intermediate_size": left.pop("ffn_hidden_size", None),
        **pop_activation(left, "gelu", "activation"),
        "tie_embeddings": bool(left.pop("tie_word_embeddings", True)),
        "shared_attention_norm": norms == 1 and not sequential,
    }


def to_hf(config: Any) -> dict[str, Any]:
    norms = 1 if config.shared_attention_norm or not config.parallel_residual else 2
    new = norms == 2 or config.n_query_groups not in (1, config.n_head)
    return {
        **push_rope(config),
        "alibi": config.alibi is not None,
        "bias": config.bias,
        "parallel_attn": config.parallel_residual,
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": norms if new else None,
        "multi_query": config.n_query_groups == 1,
        "num_kv_heads": config.n_query_groups,
        "ffn_hidden_size": config.intermediate_size,
        "activation": push_activation(config, "gelu_new"),
        "tie_word_embeddings": config.tie_embeddings,
    }


FAMILY = Family(
    name="falcon",
    architectures=("FalconForCausalLM",),
    model_type="falcon",
    base=dict(rotary_percentage=1.0, bias=False, tie_embeddings=True),
    rows=named(
        "tiiuae",
        {
            "falcon-7b{,-instruct}": size(32, 71, 4544, 18176, 1, shared_attention_norm=True),
            "falcon-40b{,-instruct}": size(60, 128, 8192, 32768, 8),
            "falcon-180B{,-chat}": size(80, 232, 14848, 59392, 8),
        },
        dict(block_size=2048, vocab_size=65024, padded_vocab_size=65024),
    ),
    hf_fields=(
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("vocab_size", "padded_vocab_size"),
        ("max_position_embeddings", "block_size"),
        ("layer_norm_epsilon", "norm_eps"),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=weights,
    prefix="transformer.",
    prompt_styles=((r"falcon.*-instruct", "falcon"),),
    hf_defaults={"layer_norm_epsilon": 1e-5, "max_position_embeddings": 2048},
    hf_constants={"ff_factor": 4},
)


def gguf_norms(config: Any) -> tuple[Rule, ...]:
    if config.shared_attention_norm:
        return (Same("blk.{i}.attn_norm", "transformer.h.{i}.norm_1"),)
    return (
        Same("blk.{i}.attn_norm_2", "transformer.h.{i}.norm_1"),
        Same("blk.{i}.attn_norm", "transformer.h.{i}.norm_2"),
    )


AS_GGUF = GGUF(
    arch="falcon",
    eps="attention.layer_norm_epsilon",
    weights=changed(
        (*COMMON_GGUF, *FUSED_QKV, *PLAIN_MLP), without=("transformer.h.{i}.norm_1", "transformer.h.{i}.norm_2")
    ),
    special=gguf_norms,
    by_tensors=lambda names: {"shared_attention_norm": "blk.0.attn_norm_2.weight" not in names},
    pre_tokenizer="falcon",
)

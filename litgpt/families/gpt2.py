"""GPT-2: learned positions, LayerNorm, tanh GELU, biases everywhere, tied head; nanoGPT's models too.

Radford et al. 2019; https://github.com/openai/gpt-2.
"""

from __future__ import annotations

from typing import Any

from litgpt.errors import LitGPTError
from litgpt.families.base import Drop, Family, Same, named, size
from litgpt.families.gguf import COMMON, FUSED_QKV, GGUF, PLAIN_MLP
from litgpt.families.hf_config import pop_activation, push_activation

WEIGHTS = (
    Same("transformer.wte", "transformer.wte"),
    Same("transformer.wpe", "transformer.wpe"),
    Same("transformer.h.{i}.ln_1", "transformer.h.{i}.norm_1"),
    Same("transformer.h.{i}.attn.c_attn", "transformer.h.{i}.attn.qkv", transpose=True),
    Same("transformer.h.{i}.attn.c_proj", "transformer.h.{i}.attn.proj", transpose=True),
    Same("transformer.h.{i}.ln_2", "transformer.h.{i}.norm_2"),
    Same("transformer.h.{i}.mlp.c_fc", "transformer.h.{i}.mlp.fc", transpose=True),
    Same("transformer.h.{i}.mlp.c_proj", "transformer.h.{i}.mlp.proj", transpose=True),
    Same("transformer.ln_f", "transformer.ln_f"),
    Same("lm_head", "lm_head"),
    Drop("transformer.h.{i}.attn.bias"),
    Drop("transformer.h.{i}.attn.masked_bias"),
)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    left.pop("reorder_and_upcast_attn", None)  # the same numbers in a wider type
    return {
        **pop_activation(left, "gelu_new", "activation_function"),
        "intermediate_size": left.pop("n_inner", None),
        "tie_embeddings": bool(left.pop("tie_word_embeddings", True)),
    }


def to_hf(config: Any) -> dict[str, Any]:
    if not (config.bias and config.norm_bias):
        raise LitGPTError(
            "A GPT-2 without biases has no counterpart in transformers; it can't be exported as a Hugging Face folder."
        )
    return {
        "n_inner": config.intermediate_size,
        "activation_function": push_activation(config, "gelu_new"),
        "tie_word_embeddings": config.tie_embeddings,
    }


AS_GGUF = GGUF(
    arch="gpt2",
    eps="attention.layer_norm_epsilon",
    weights=(*COMMON, Same("position_embd", "transformer.wpe"), *FUSED_QKV, *PLAIN_MLP),
    has_rope=False,
    always_biased=True,
    pre_tokenizer="gpt-2",
)

FAMILY = Family(
    name="gpt2",
    architectures=("GPT2LMHeadModel",),
    model_type="gpt2",
    base=dict(
        learned_positions=True,
        rotary_percentage=0.0,
        parallel_residual=False,
        gelu_approximate="tanh",
        tie_embeddings=True,
        vocab_size=50257,
        padded_vocab_size=50257,
        block_size=1024,
    ),
    rows=named(
        "openai-community",
        {
            "gpt2": size(12, 12, 768, 3072),
            "gpt2-medium": size(24, 16, 1024, 4096),
            "gpt2-large": size(36, 20, 1280, 5120),
            "gpt2-xl": size(48, 25, 1600, 6400),
        },
    ),
    hf_fields=(
        ("n_embd", "n_embd"),
        ("n_layer", "n_layer"),
        ("n_head", "n_head"),
        ("vocab_size", "padded_vocab_size"),
        ("n_positions", "block_size"),
        ("layer_norm_epsilon", "norm_eps"),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=WEIGHTS,
    prefix="transformer.",
    init="gpt2",
    hf_defaults={"layer_norm_epsilon": 1e-5, "n_positions": 1024},
    hf_constants={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
)

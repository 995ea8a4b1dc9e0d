"""GPT-J and CodeGen: attention and MLP share one norm, neighbouring dimensions of a part of each head rotate.

https://github.com/kingoflolz/mesh-transformer-jax, https://arxiv.org/abs/2203.13474.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families.base import Drop, Family, Interleaved, Join, Same, changed, named, size
from litgpt.families.gguf import share
from litgpt.families.hf_config import pop_activation, pop_needed, push_activation

WEIGHTS = (
    Same("transformer.wte", "transformer.wte"),
    Same("transformer.h.{i}.ln_1", "transformer.h.{i}.norm_1"),
    Join(
        ("transformer.h.{i}.attn.q_proj", "transformer.h.{i}.attn.k_proj", "transformer.h.{i}.attn.v_proj"),
        "transformer.h.{i}.attn.qkv",
    ),
    Same("transformer.h.{i}.attn.out_proj", "transformer.h.{i}.attn.proj"),
    Same("transformer.h.{i}.mlp.fc_in", "transformer.h.{i}.mlp.fc"),
    Same("transformer.h.{i}.mlp.fc_out", "transformer.h.{i}.mlp.proj"),
    Same("transformer.ln_f", "transformer.ln_f"),
    Same("lm_head", "lm_head"),
    Drop("transformer.h.{i}.attn.bias"),
    Drop("transformer.h.{i}.attn.masked_bias"),
    Drop("transformer.h.{i}.attn.causal_mask"),
    Drop("transformer.h.{i}.attn.embed_positions"),
)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    activation = pop_activation(left, "gelu_new", "activation_function")
    return {
        **activation,
        "rotary_percentage": share(pop_needed(left, "rotary_dim"), left["n_embd"] // left["n_head"]),
        "intermediate_size": left.pop("n_inner", None),
        "tie_embeddings": bool(left.pop("tie_word_embeddings", False)),
    }


def to_hf(config: Any) -> dict[str, Any]:
    return {
        "rotary_dim": config.rope_n_elem,
        "n_inner": config.intermediate_size,
        "activation_function": push_activation(config, "gelu_new"),
        "tie_word_embeddings": config.tie_embeddings,
    }


GPT_J = Family(
    name="gptj",
    architectures=("GPTJForCausalLM",),
    model_type="gptj",
    base=dict(
        bias=False,
        mlp_bias=True,
        lm_head_bias=True,
        shared_attention_norm=True,
        rope_interleave=True,
        gelu_approximate="tanh",
    ),
    rows=named(
        "EleutherAI",
        {"gpt-j-6b": size(28, 16, 4096, 16384, rotary_percentage=0.25)},
        dict(block_size=2048, vocab_size=50257, padded_vocab_size=50400),
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
    hf_defaults={"layer_norm_epsilon": 1e-5, "n_positions": 2048, "rotary_dim": 64},
    hf_constants={"rotary": True, "scale_attn_weights": True},
    rotates_part=True,
)

CODEGEN = replace(
    GPT_J,
    name="codegen",
    architectures=("CodeGenForCausalLM",),
    model_type="codegen",
    rows=named(
        "Salesforce",
        {
            "codegen-350M-{mono,multi,nl}": size(20, 16, 1024, 4096, rotary_percentage=0.5),
            "codegen-2B-{mono,multi,nl}": size(32, 32, 2560, 10240, rotary_percentage=0.8),
            "codegen-6B-{mono,multi,nl}": size(33, 16, 4096, 16384, rotary_percentage=0.25),
        },
        dict(block_size=2048, vocab_size=50257, padded_vocab_size=51200),
    ),
    # Four groups of heads, one for each of the TPU cores they were trained on.
    weights=changed(
        WEIGHTS, Interleaved("transformer.h.{i}.attn.qkv_proj", "transformer.h.{i}.attn.qkv", groups=4, order="qvk")
    ),
)

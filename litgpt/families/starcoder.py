"""StarCoder and StarCoder 2: GPT-2 with one key-value head; then rotary positions and grouped queries.

https://arxiv.org/abs/2305.06161, https://arxiv.org/abs/2402.19173.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import gpt2, llama
from litgpt.families.base import Interleaved, Rule, Same, changed, named, size, without
from litgpt.families.hf_config import pop_activation, pop_rope, pop_windows, push_activation


def bigcode_weights(config: Any) -> tuple[Rule, ...]:
    theirs, ours = "transformer.h.{i}.attn.c_attn", "transformer.h.{i}.attn.qkv"
    qkv = Same(theirs, ours) if config.n_query_groups == 1 else Interleaved(theirs, ours)
    plain = (replace(rule, transpose=False) if isinstance(rule, Same) else rule for rule in gpt2.WEIGHTS)
    return changed(tuple(plain), qkv)


BIGCODE_IGNORED = """
attention_softmax_in_fp32 scale_attention_softmax_in_fp32 inference_runner runner_max_sequence_length
validate_runner_input pre_allocate_kv_cache max_batch_size num_key_value_heads
""".split()
"""Ways to compute the same, and what `multi_query` says too."""


def from_hf_bigcode(left: dict[str, Any]) -> dict[str, Any]:
    activation = pop_activation(left, "gelu_pytorch_tanh", "activation_function")
    for key in BIGCODE_IGNORED:
        left.pop(key, None)
    return {
        **activation,
        "intermediate_size": left.pop("n_inner", None),
        "n_query_groups": 1 if left.pop("multi_query", True) else None,
        "tie_embeddings": bool(left.pop("tie_word_embeddings", True)),
    }


def to_hf_bigcode(config: Any) -> dict[str, Any]:
    plain = without(gpt2.to_hf(config), "activation_function")
    return {**plain, "activation_function": push_activation(config), "multi_query": config.n_query_groups == 1}


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    activation = pop_activation(left, "gelu_pytorch_tanh")
    for key in ("residual_dropout", "embedding_dropout", "norm_type"):
        left.pop(key, None)
    return {
        **pop_rope(left),
        **pop_windows(left),
        **activation,
        "n_query_groups": left.pop("num_key_value_heads", None),
        "bias": bool(left.pop("use_bias", True)),
        "tie_embeddings": bool(left.pop("tie_word_embeddings", True)),
    }


def to_hf(config: Any) -> dict[str, Any]:
    plain = without(llama.to_hf(config), "mlp_bias", "attention_bias", "head_dim")
    dropouts = dict.fromkeys(("attention_dropout", "residual_dropout", "embedding_dropout"), 0.0)
    return {**plain, **dropouts, "use_bias": config.bias, "sliding_window": config.sliding_window_size}


BIGCODE = replace(
    gpt2.FAMILY,
    name="gpt_bigcode",
    architectures=("GPTBigCodeForCausalLM",),
    model_type="gpt_bigcode",
    rows=named(
        "bigcode",
        {
            "starcoder{,base}": size(
                40, 48, 6144, 24576, 1, block_size=8192, vocab_size=49152, padded_vocab_size=49152
            ),
            "starcoderbase-1b": size(24, 16, 2048, 8192, 1, block_size=8192, vocab_size=49152, padded_vocab_size=49152),
        },
    ),
    from_hf=from_hf_bigcode,
    to_hf=to_hf_bigcode,
    weights=bigcode_weights,
    hf_constants={"scale_attn_weights": True},
)

STARCODER_2 = replace(
    llama.FAMILY,
    name="starcoder2",
    architectures=("Starcoder2ForCausalLM",),
    model_type="starcoder2",
    base={
        **llama.BASE,
        "norm_class_name": "LayerNorm",
        "mlp_class_name": "GptNeoxMLP",
        "gelu_approximate": "tanh",
        "bias": True,
    },
    rows=named(
        "bigcode",
        {
            "starcoder2-3b": size(30, 24, 3072, 12288, 2, rope_base=999999.4420358813),
            "starcoder2-7b": size(32, 36, 4608, 18432, 4, rope_base=1000000),
        },
        dict(
            block_size=16384, vocab_size=49152, padded_vocab_size=49152, sliding_window_size=4096, tie_embeddings=True
        ),
    ),
    hf_fields=(*llama.HF_FIELDS[:-1], ("norm_epsilon", "norm_eps")),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        llama.WEIGHTS,
        Same("model.layers.{i}.mlp.c_fc", "transformer.h.{i}.mlp.fc"),
        Same("model.layers.{i}.mlp.c_proj", "transformer.h.{i}.mlp.proj"),
        without=("transformer.h.{i}.mlp.fc_1", "transformer.h.{i}.mlp.fc_2"),
    ),
    prompt_styles=(),
    hf_defaults={"norm_epsilon": 1e-5, "max_position_embeddings": 4096, "num_key_value_heads": 2},
)

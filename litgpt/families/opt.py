"""OPT, BioGPT and XGLM: GPT-2's blocks after fairseq, whose first position is the third row of a table.

https://arxiv.org/abs/2205.01068, https://arxiv.org/abs/2210.10341, https://arxiv.org/abs/2112.10668.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.errors import LitGPTError, quoted
from litgpt.families.base import Drop, Family, Join, Rule, Same, changed, named, size, without
from litgpt.families.hf_config import pop_activation, push_activation


def layers(start: str) -> tuple[Rule, ...]:
    """The weight table of fairseq's decoders, whose tensors' names begin with `start`."""
    layer = start + "layers.{i}."
    qkv = tuple(f"{layer}self_attn.{part}_proj" for part in "qkv")
    return (
        Same(f"{start}embed_tokens", "transformer.wte"),
        Same(f"{start}embed_positions", "transformer.wpe"),
        Same(f"{layer}self_attn_layer_norm", "transformer.h.{i}.norm_1"),
        Join(qkv, "transformer.h.{i}.attn.qkv"),
        Same(f"{layer}self_attn.out_proj", "transformer.h.{i}.attn.proj"),
        Same(f"{layer}final_layer_norm", "transformer.h.{i}.norm_2"),
        Same(f"{layer}fc1", "transformer.h.{i}.mlp.fc"),
        Same(f"{layer}fc2", "transformer.h.{i}.mlp.proj"),
        Same(f"{start}layer_norm", "transformer.ln_f"),
        Same("lm_head", "lm_head"),
    )


def pop_common(left: dict[str, Any], activation: str, key: str) -> dict[str, Any]:
    for name in ("dropout", "activation_dropout", "layerdrop", "init_std", "hidden_dropout_prob"):
        left.pop(name, None)
    left.pop("attention_probs_dropout_prob", None)
    return {
        **pop_activation(left, activation, key),
        "tie_embeddings": bool(left.pop("tie_word_embeddings", True)),
        "scale_embeddings": bool(left.pop("scale_embedding", False)),
    }


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    width = left.pop("word_embed_proj_dim", None)
    if width not in (None, left["hidden_size"]):
        raise LitGPTError(
            f"config.json has `word_embed_proj_dim`: {quoted(width)}; embeddings of another width than the model's are "
            "not known here."
        )
    first = bool(left.pop("do_layer_norm_before", True))
    removed = bool(left.pop("_remove_final_layer_norm", False))
    return {
        **pop_common(left, "relu", "activation_function"),
        "norm_after_residual": not first,
        "final_norm": first and not removed,
        "bias": bool(left.pop("enable_bias", True)),
        "norm_affine": bool(left.pop("layer_norm_elementwise_affine", True)),
    }


def to_hf(config: Any) -> dict[str, Any]:
    return {
        "word_embed_proj_dim": config.n_embd,
        "do_layer_norm_before": not config.norm_after_residual,
        "_remove_final_layer_norm": not config.final_norm and not config.norm_after_residual,
        "enable_bias": config.bias,
        "layer_norm_elementwise_affine": config.norm_affine,
        "activation_function": push_activation(config),
        "tie_word_embeddings": config.tie_embeddings,
    }


def from_hf_biogpt(left: dict[str, Any]) -> dict[str, Any]:
    left.pop("layer_norm_eps", None)  # its class has 1e-5 whatever it says
    return pop_common(left, "gelu", "hidden_act")


def to_hf_biogpt(config: Any) -> dict[str, Any]:
    return {
        "hidden_act": push_activation(config),
        "scale_embedding": config.scale_embeddings,
        "tie_word_embeddings": config.tie_embeddings,
    }


def from_hf_xglm(left: dict[str, Any]) -> dict[str, Any]:
    return {**pop_common(left, "gelu", "activation_function"), "sinusoidal_span": left["d_model"] // 2 - 1}


def to_hf_xglm(config: Any) -> dict[str, Any]:
    said = to_hf_biogpt(config)
    return {"activation_function": said.pop("hidden_act"), **said}


OPT = Family(
    name="opt",
    architectures=("OPTForCausalLM",),
    model_type="opt",
    base=dict(
        learned_positions=True,
        positions_offset=2,
        rotary_percentage=0.0,
        parallel_residual=False,
        activation="relu",
        tie_embeddings=True,
        block_size=2048,
    ),
    rows=named(
        "facebook",
        {
            "opt-125m": size(12, 12, 768, 3072),
            "opt-1.3b": size(24, 32, 2048, 8192),
            "opt-2.7b": size(32, 32, 2560, 10240),
            "opt-6.7b": size(32, 32, 4096, 16384),
            "opt-13b": size(40, 40, 5120, 20480),
            "opt-30b": size(48, 56, 7168, 28672),
            "opt-66b": size(64, 72, 9216, 36864),
        },
        dict(vocab_size=50272, padded_vocab_size=50272),
    ),
    hf_fields=(
        ("hidden_size", "n_embd"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("ffn_dim", "intermediate_size"),
        ("vocab_size", "padded_vocab_size"),
        ("max_position_embeddings", "block_size"),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(layers("model.decoder."), Same("model.decoder.final_layer_norm", "transformer.ln_f")),
    prefix="model.decoder.",
    init="gpt2",
    hf_defaults={"max_position_embeddings": 2048, "ffn_dim": 3072},
    renames=(("decoder.", "model.decoder."),),
)

BIOGPT = replace(
    OPT,
    name="biogpt",
    architectures=("BioGptForCausalLM",),
    model_type="biogpt",
    base={**OPT.base, "activation": None, "scale_embeddings": True, "block_size": 1024},
    rows=named(
        "microsoft",
        {"biogpt": size(24, 16, 1024, 4096), "BioGPT-Large": size(48, 25, 1600, 6400, block_size=2048)},
        dict(vocab_size=42384, padded_vocab_size=42384),
    ),
    hf_fields=(*OPT.hf_fields[:3], ("intermediate_size", "intermediate_size"), *OPT.hf_fields[4:]),
    from_hf=from_hf_biogpt,
    to_hf=to_hf_biogpt,
    weights=changed(layers("biogpt."), Same("output_projection", "lm_head")),
    prefix="biogpt.",
    hf_defaults={"max_position_embeddings": 1024, "intermediate_size": 4096, "scale_embedding": True},
    renames=(),
)

XGLM = replace(
    OPT,
    name="xglm",
    architectures=("XGLMForCausalLM",),
    model_type="xglm",
    base={**without(OPT.base, "learned_positions", "activation"), "scale_embeddings": True},
    rows=named(
        "facebook",
        {"xglm-564M": size(24, 16, 1024, 4096, sinusoidal_span=511.0)},
        dict(vocab_size=256008, padded_vocab_size=256008),
    ),
    hf_fields=(
        ("d_model", "n_embd"),
        ("num_layers", "n_layer"),
        ("attention_heads", "n_head"),
        *OPT.hf_fields[3:],
    ),
    from_hf=from_hf_xglm,
    to_hf=to_hf_xglm,
    weights=(*changed(layers("model."), without=("transformer.wpe",)), Drop("model.embed_positions.weights")),
    prefix="model.",
    hf_defaults={"max_position_embeddings": 2048, "ffn_dim": 4096, "scale_embedding": True},
    hf_spellings={
        "hidden_size": "d_model",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "attention_heads",
    },
    renames=(),
)

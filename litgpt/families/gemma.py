"""Gemma 1, 2 and 3 (text): GeGLU, norms that scale by one plus their weight, embeddings scaled by √width.

https://arxiv.org/abs/2403.08295, https://arxiv.org/abs/2408.00118, https://arxiv.org/abs/2503.19786.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import Family, Same, changed, named, size, without
from litgpt.families.gguf import NORMED_HEADS, NORMED_OUTPUTS, WINDOW, Key
from litgpt.families.hf_config import pop_activation, pop_rope, pop_windows, push_activation, push_rope, push_windows

BASE = dict(
    **{**llama.BASE, "mlp_class_name": "GemmaMLP"},
    gelu_approximate="tanh",
    scale_embeddings=True,
    norm_unit_offset=True,
    tie_embeddings=True,
)
LATER = dict(**BASE, post_attention_norm=True, post_mlp_norm=True)

# From Gemma 2 on, each half of a block is normed on its way in and on its way out.
SANDWICH = changed(
    llama.WEIGHTS,
    Same("model.layers.{i}.post_attention_layernorm", "transformer.h.{i}.post_attention_norm"),
    Same("model.layers.{i}.pre_feedforward_layernorm", "transformer.h.{i}.norm_2"),
    Same("model.layers.{i}.post_feedforward_layernorm", "transformer.h.{i}.post_mlp_norm"),
)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    # The first Gemma's `gelu` is a slip of its makers; later files say `hidden_activation` instead.
    slip = "gelu_pytorch_tanh" if left.get("hidden_act") == "gelu" else left.get("hidden_act")
    left["hidden_act"] = left.pop("hidden_activation", None) or slip
    left.setdefault("tie_word_embeddings", True)
    return {
        **pop_rope(left),
        **llama.pop_attention(left),
        **pop_activation(left, "gelu_pytorch_tanh"),
    }


def from_hf_2(left: dict[str, Any]) -> dict[str, Any]:
    return {**from_hf_later(left, 2), "attention_logit_softcapping": left.pop("attn_logit_softcapping", None)}


def from_hf_later(left: dict[str, Any], window_every: int) -> dict[str, Any]:
    if left.get("sliding_window_size") == left.get("sliding_window"):  # some files say it twice
        left.pop("sliding_window_size", None)
    return {
        **pop_windows(left, window_every),
        **from_hf(left),
        "final_logit_softcapping": left.pop("final_logit_softcapping", None),
        "attention_scores_scalar": left.pop("query_pre_attn_scalar", None),
    }


def from_hf_3(left: dict[str, Any]) -> dict[str, Any]:
    local, rope = left.pop("rope_local_base_freq", None), left.get("rope_parameters") or {}
    if "full_attention" in rope:  # transformers 5: one set of RoPE parameters a kind of layer
        local, left["rope_parameters"] = rope["sliding_attention"]["rope_theta"], rope["full_attention"]
    left.setdefault("rope_theta", 1000000.0)
    found = from_hf_later(left, window_every=6)
    base = local or 10000.0
    return {
        **found,
        "rope_local_base_freq": int(base) if base == int(base) else base,
        "rope_indices": found["sliding_window_indices"],
    }


def to_hf(config: Any) -> dict[str, Any]:
    activation = push_activation(config)
    return {**without(llama.to_hf(config), "mlp_bias"), "hidden_act": activation, "hidden_activation": activation}


def to_hf_2(config: Any) -> dict[str, Any]:
    return {
        **to_hf(config),
        "attn_logit_softcapping": config.attention_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
        "query_pre_attn_scalar": config.attention_scores_scalar or config.head_size,
        **push_windows(config),
    }


def to_hf_3(config: Any) -> dict[str, Any]:
    rope = push_rope(config)
    full = {"rope_type": "default", **(rope["rope_scaling"] or {}), "rope_theta": rope["rope_theta"]}
    local = {"rope_type": "default", "rope_theta": float(config.rope_local_base_freq)}
    return {
        **to_hf_2(config),
        "rope_local_base_freq": float(config.rope_local_base_freq),
        "rope_parameters": {"full_attention": full, "sliding_attention": local},
    }


GEMMA = Family(
    name="gemma",
    architectures=("GemmaForCausalLM",),
    model_type="gemma",
    base=BASE,
    rows=named(
        "google",
        {
            "Gemma-2b{,-it}": size(18, 8, 2048, 16384, 1),
            "Gemma-7b{,-it}": size(28, 16, 3072, 24576, head_size=256),
            "CodeGemma-7b-it": size(28, 16, 3072, 24576, head_size=256),
        },
        dict(vocab_size=256000, padding_multiple=64),
        hf=str.lower,
    ),
    hf_fields=llama.HF_FIELDS,
    from_hf=from_hf,
    to_hf=to_hf,
    weights=llama.WEIGHTS,
    prefix="model.",
    hf_defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "head_dim": 256},
    hf_constants={"use_bidirectional_attention": False},
    prompt_styles=((r"(?i)gemma.*-it", "gemma"),),
)

GEMMA_2 = replace(
    GEMMA,
    name="gemma2",
    architectures=("Gemma2ForCausalLM",),
    model_type="gemma2",
    base=LATER,
    rows=named(
        "google",
        {
            "Gemma-2-2b{,-it}": size(26, 8, 2304, 9216, 4, sliding_window_indices=[1, 0] * 13),
            "Gemma-2-9b{,-it}": size(42, 16, 3584, 14336, 8, sliding_window_indices=[1, 0] * 21),
            "Gemma-2-27b{,-it}": size(
                46, 32, 4608, 36864, 16, head_size=128, attention_scores_scalar=144, sliding_window_indices=[1, 0] * 23
            ),
        },
        dict(block_size=8192, vocab_size=256000, head_size=256, attention_scores_scalar=256),
        dict(sliding_window_size=4096, attention_logit_softcapping=50.0, final_logit_softcapping=30.0),
        hf=str.lower,
    ),
    from_hf=from_hf_2,
    to_hf=to_hf_2,
    weights=SANDWICH,
    hf_defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 8192,
        "head_dim": 256,
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 256,
    },
)


def local_and_global(n_layer: int) -> dict[str, list[int]]:
    """Five layers with a window and local RoPE, then one without."""
    pattern = [int((layer + 1) % 6 != 0) for layer in range(n_layer)]
    return {"sliding_window_indices": pattern, "rope_indices": pattern}


STRETCHED = dict(sliding_window_size=1024, rope_adjustments={"factor": 8.0})
SHORT = dict(sliding_window_size=512, block_size=32768)

GEMMA_3 = replace(
    GEMMA_2,
    name="gemma3",
    architectures=("Gemma3ForCausalLM",),
    model_type="gemma3_text",
    base=dict(**LATER, norm_qk=True),
    rows=named(
        "google",
        {
            "Gemma-3-270m{,-it}": size(18, 4, 640, 2048, 1, **SHORT, **local_and_global(18)),
            "Gemma-3-1b-pt": size(26, 4, 1152, 6912, 1, **SHORT, **local_and_global(26)),
            # LitGPT gives this one four times the context it has.
            "Gemma-3-1b-it": size(26, 4, 1152, 6912, 1, sliding_window_size=512, **local_and_global(26)),
            "Gemma-3-4b-{pt,it}": size(34, 8, 2560, 10240, 4, **STRETCHED, **local_and_global(34)),
            "Gemma-3-12b-{pt,it}": size(48, 16, 3840, 15360, 8, **STRETCHED, **local_and_global(48)),
            "Gemma-3-27b-{pt,it}": size(
                62, 32, 5376, 21504, 16, **STRETCHED, head_size=128, attention_scores_scalar=168, **local_and_global(62)
            ),
        },
        dict(block_size=131072, vocab_size=262144, head_size=256, attention_scores_scalar=256),
        dict(rope_base=1000000, rope_local_base_freq=10000),
        hf=str.lower,
    ),
    from_hf=from_hf_3,
    to_hf=to_hf_3,
    weights=changed(SANDWICH, *llama.NORMED_QK),
    hf_defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "head_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 262208,
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
    },
)


def implied_2(found: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp settles by the number of layers: which ones have a window, and the 27B model's scale of scores."""
    head_size = found["n_embd"] // found["n_head"] if found["n_layer"] in (46, 62) else found["head_size"]
    return {
        "sliding_window_indices": [1 - layer % 2 for layer in range(found["n_layer"])],
        "attention_scores_scalar": head_size,
    }


def implied_3(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"rope_local_base_freq": 10000, **found, **implied_2(found), **local_and_global(found["n_layer"])}


AS_GGUF = replace(llama.AS_GGUF, arch="gemma", paired=())
AS_GGUF_2 = replace(
    AS_GGUF,
    arch="gemma2",
    weights=(*AS_GGUF.weights, *NORMED_OUTPUTS),
    fields=(WINDOW,),
    optional=(
        Key("attn_logit_softcapping", "attention_logit_softcapping"),
        Key("final_logit_softcapping", "final_logit_softcapping"),
    ),
    implied=implied_2,
)
AS_GGUF_3 = replace(
    AS_GGUF_2,
    arch="gemma3",
    weights=(*AS_GGUF_2.weights, *NORMED_HEADS),
    optional=(
        Key("final_logit_softcapping", "final_logit_softcapping"),
        Key("rope.freq_base_swa", "rope_local_base_freq"),
    ),
    implied=implied_3,
)

"""OLMo, whose norms have no weights, and OLMo 2, which norms what comes out of attention and MLP, and queries and keys.

https://arxiv.org/abs/2402.00838, https://arxiv.org/abs/2501.00656.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import Same, changed, named, size, without
from litgpt.families.gguf import (
    NORMED_HEADS,
    NORMED_OUTPUTS,
    WINDOW,
    Key,
    Metadata,
    windowed_layers,
)
from litgpt.families.hf_config import pop_activation, pop_rope, pop_windows, push_rope, push_windows

BASE = {**llama.BASE, "norm_class_name": "LayerNorm", "norm_affine": False}
BASE_2 = dict(
    **llama.BASE,
    norm_qk=True,
    norm_qk_type="olmo2",
    norm_1=False,
    norm_2=False,
    post_attention_norm=True,
    post_mlp_norm=True,
)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    activation, clip = pop_activation(left, "silu", gated=True), left.pop("clip_qkv", None)
    return {**pop_rope(left), **llama.pop_attention(left), **activation, "qkv_clip": clip}


def from_hf_3(left: dict[str, Any]) -> dict[str, Any]:
    rope = left.get("rope_parameters") or {}
    if "full_attention" in rope:  # transformers 5: one set of RoPE parameters a kind of layer
        left["rope_parameters"] = rope["full_attention"]
    found = {**pop_windows(left, every=4), **from_hf(left)}
    if found.get("rope_adjustments") is not None:  # only layers that see everything are stretched
        found["rope_local_base_freq"] = found["rope_base"]
        found["rope_indices"] = found["sliding_window_indices"]
    return found


def to_hf(config: Any) -> dict[str, Any]:
    return {**to_hf_2(config), "clip_qkv": config.qkv_clip}


def to_hf_2(config: Any) -> dict[str, Any]:
    return without(llama.to_hf(config), "mlp_bias", "head_dim")


def to_hf_3(config: Any) -> dict[str, Any]:
    rope = push_rope(config)
    local = {"rope_type": "default", "rope_theta": rope["rope_theta"]}
    full = {**local, **(rope["rope_scaling"] or {})}
    return {
        **to_hf_2(config),
        **push_windows(config),
        "rope_parameters": {"full_attention": full, "sliding_attention": local},
    }


OLMO = replace(
    llama.FAMILY,
    name="olmo",
    architectures=("OlmoForCausalLM",),
    model_type="olmo",
    base=BASE,
    rows=named(
        "allenai",
        {
            "OLMo-1B-hf": size(16, 16, 2048, 8192, tie_embeddings=True),
            "OLMo-7B{,-Instruct}-hf": size(32, 32, 4096, 11008),
        },
        dict(block_size=2048, vocab_size=50280, padded_vocab_size=50304),
    ),
    hf_fields=tuple(pair for pair in llama.HF_FIELDS if pair[1] != "norm_eps"),  # always 1e-5
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        llama.WEIGHTS, without=("transformer.h.{i}.norm_1", "transformer.h.{i}.norm_2", "transformer.ln_f")
    ),
    prompt_styles=((r"OLMo.*-hf", "olmo"),),
    hf_defaults={"max_position_embeddings": 2048},
)

OLMO_2 = replace(
    llama.FAMILY,
    name="olmo2",
    architectures=("Olmo2ForCausalLM",),
    model_type="olmo2",
    base=BASE_2,
    rows=named(
        "allenai",
        {
            "OLMo-2-1124-7B{,-SFT,-DPO,-Instruct}": size(32, 32, 4096, 11008),
            "OLMo-2-1124-13B{,-SFT,-DPO,-Instruct}": size(40, 40, 5120, 13824),
            "OLMo-2-0425-1B{,-SFT,-DPO,-Instruct}": size(16, 16, 2048, 8192),
            "OLMo-2-0325-32B{,-SFT,-DPO,-Instruct}": size(64, 40, 5120, 27648, 8),
        },
        dict(vocab_size=100278, padded_vocab_size=100352, norm_eps=1e-6, rope_base=500000),
    ),
    from_hf=from_hf,
    to_hf=to_hf_2,
    weights=changed(
        llama.WEIGHTS,
        Same("model.layers.{i}.post_attention_layernorm", "transformer.h.{i}.post_attention_norm"),
        Same("model.layers.{i}.post_feedforward_layernorm", "transformer.h.{i}.post_mlp_norm"),
        *llama.NORMED_QK,
        without=("transformer.h.{i}.norm_1", "transformer.h.{i}.norm_2"),
    ),
    # LitGPT gives these Llama 3's style, whose tokens OLMo 2 doesn't have.
    prompt_styles=((r"OLMo-2-.*-(Instruct|SFT|DPO)", "olmo"),),
    hf_defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
)

YARN = dict(factor=8.0, beta_fast=32.0, beta_slow=1.0, original_max_seq_len=8192, attention_factor=1.2079441541679836)


def olmo3(n_layer: int, n_head: int, n_embd: int, intermediate_size: int) -> dict[str, Any]:
    """Three layers with a window and unstretched RoPE, then one without."""
    pattern = [int((layer + 1) % 4 != 0) for layer in range(n_layer)]
    return size(n_layer, n_head, n_embd, intermediate_size, sliding_window_indices=pattern, rope_indices=pattern)


OLMO_3 = replace(
    OLMO_2,
    name="olmo3",
    architectures=("Olmo3ForCausalLM",),
    model_type="olmo3",
    rows=named(
        "allenai",
        {
            "Olmo-3-1025-7B": olmo3(32, 32, 4096, 11008),
            "Olmo-3-7B-{Instruct,Think}": olmo3(32, 32, 4096, 11008),
        },
        dict(block_size=65536, vocab_size=100278, padded_vocab_size=100278, norm_eps=1e-6, rope_base=500000),
        dict(sliding_window_size=4096, rope_adjustments=YARN, rope_local_base_freq=500000),
    ),
    from_hf=from_hf_3,
    to_hf=to_hf_3,
    prompt_styles=(),
    hf_defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "sliding_window": 4096, "rope_theta": 500000.0},
)

AS_GGUF_2 = replace(
    llama.AS_GGUF,
    arch="olmo2",
    weights=changed(
        (*llama.AS_GGUF.weights, *NORMED_HEADS, *NORMED_OUTPUTS),
        without=("transformer.h.{i}.norm_1", "transformer.h.{i}.norm_2"),
    ),
    head_may_be_left_out=False,
    paired=(),
)


def gguf_implied_3(found: Mapping[str, Any]) -> Metadata:
    if found.get("rope_adjustments") is None:
        return {"rope_local_base_freq": None}
    return {"rope_local_base_freq": found["rope_base"], "rope_indices": found["sliding_window_indices"], **found}


AS_GGUF_3 = replace(
    AS_GGUF_2,
    fields=(WINDOW,),
    optional=(Key("rope.freq_base_swa", "rope_local_base_freq"),),
    more=(windowed_layers(every=4),),
    implied=gguf_implied_3,
    only_with=WINDOW.name,
)
AS_GGUF = replace(
    llama.AS_GGUF,
    arch="olmo",
    eps="attention.layer_norm_epsilon",
    weights=changed(
        llama.AS_GGUF.weights,
        without=("transformer.h.{i}.norm_1", "transformer.h.{i}.norm_2", "transformer.ln_f"),
    ),
    optional=(Key("attention.clamp_kqv", "qkv_clip"),),
    implied=lambda found: {"norm_bias": True},  # of norms that have nothing at all
)

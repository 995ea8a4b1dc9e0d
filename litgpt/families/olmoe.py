"""OLMoE: normed queries and keys, small experts (https://arxiv.org/abs/2409.02060); FlexOlmo: OLMo 2 with experts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama, olmo, qwen
from litgpt.families.base import Same, changed, named, said, size, without
from litgpt.families.hf_config import pop_rope, pop_silu, push_rope

BASE = dict(**llama.BASE, norm_qk=True, norm_qk_type="olmo2") | dict(mlp_class_name="LLaMAMoE")
EXPERTS = (
    Same("model.layers.{i}.mlp.gate", "transformer.h.{i}.mlp.gate"),
    *(
        Same(f"model.layers.{{i}}.mlp.experts.{{e}}.{theirs}", f"{qwen.EXPERT}.{ours}")
        for theirs, ours in (("gate_proj", "fc_1"), ("up_proj", "fc_2"), ("down_proj", "proj"))
    ),
)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    pop_silu(left)
    return {
        **pop_rope(left),
        **llama.pop_attention(left),
        "qkv_clip": left.pop("clip_qkv", None),
        "n_expert": left.pop("num_experts"),
        "n_expert_per_token": left.pop("num_experts_per_tok"),
        "router_softmax_over_all": not left.pop("norm_topk_prob", False),
    }


def to_hf(config: Any) -> dict[str, Any]:
    return {
        **push_rope(config),
        "hidden_act": "silu",
        **without(llama.push_attention(config), "head_dim"),
        "clip_qkv": config.qkv_clip,
        "num_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
        "norm_topk_prob": not config.router_softmax_over_all,
    }


def flex_to_hf(config: Any) -> dict[str, Any]:
    return without(to_hf(config), "clip_qkv")


OLMOE = replace(
    llama.FAMILY,
    name="olmoe",
    architectures=("OlmoeForCausalLM",),
    model_type="olmoe",
    base=BASE,
    rows=named(
        "allenai",
        {"OLMoE-1B-7B-{0924,0125}{,-Instruct}": size(16, 16, 2048, 1024, n_expert=64, n_expert_per_token=8)},
        dict(block_size=4096, vocab_size=50280, padded_vocab_size=50304, router_softmax_over_all=True),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(llama.WEIGHTS, *llama.NORMED_QK, *EXPERTS, without=llama.DENSE),
    prompt_styles=((r"OLMoE.*-Instruct", "olmo"),),
    hf_defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "num_experts": 64,
        "num_experts_per_tok": 8,
    },
    hf_spellings={"num_local_experts": "num_experts"},
    alternatives=qwen.STACKED,
)

FLEX = replace(
    OLMOE,
    name="flex_olmo",
    architectures=("FlexOlmoForCausalLM",),
    model_type="flex_olmo",
    base={**olmo.OLMO_2.base, "mlp_class_name": "LLaMAMoE"},
    rows={},
    published={"allenai/FlexOlmo-7x7B-1T": said(4096, 32, 32, 11008, 100352)},
    to_hf=flex_to_hf,
    weights=changed(olmo.OLMO_2.rules(None), *EXPERTS, without=llama.DENSE),
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
        "num_experts": 7,
        "num_experts_per_tok": 5,
        "rope_theta": 500000.0,
    },
)

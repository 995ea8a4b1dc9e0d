"""MiniMax-M2: Mixtral's layout, a sigmoid router with a bias, normed queries and keys, half of a head rotates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama, mixtral
from litgpt.families.base import Drop, Same, changed, named, size
from litgpt.families.hf_config import pop_rope, pop_silu, push_rope

BASE = {
    **mixtral.FAMILY.base,
    "norm_qk": True,
    "norm_qk_type": "olmo2",
    "router_scores": "sigmoid",
    "n_expert_groups": 1,
    "n_topk_groups": 1,
    "norm_topk_prob": True,
}
MLP = "transformer.h.{i}.mlp"


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    pop_silu(left)
    turned = left.pop("rotary_dim", None)
    for key in ("num_mtp_modules", "mtp_transformer_layers", "layernorm_full_attention_beta", "attn_type_list"):
        left.pop(key, None)
    found = {**pop_rope(left), **llama.pop_attention(left)}
    if turned is not None and "rotary_percentage" not in found:
        found["rotary_percentage"] = turned / found["head_size"]
    return {
        **found,
        "n_expert": left.pop("num_local_experts"),
        "n_expert_per_token": left.pop("num_experts_per_tok"),
    }


def to_hf(config: Any) -> dict[str, Any]:
    rope = push_rope(config)
    scaling = rope["rope_scaling"] or {"rope_type": "default"}
    share = {"partial_rotary_factor": config.rotary_percentage}
    return {
        "rope_parameters": {**scaling, "rope_theta": rope["rope_theta"], **share},
        "hidden_act": "silu",
        "num_key_value_heads": config.n_query_groups,
        "head_dim": config.head_size,
        "tie_word_embeddings": config.tie_embeddings,
        "num_local_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
    }


FAMILY = replace(
    mixtral.FAMILY,
    name="minimax_m2",
    architectures=("MiniMaxM2ForCausalLM",),
    model_type="minimax_m2",
    base=BASE,
    rows=named(
        "MiniMaxAI",
        {"MiniMax-{M2,M2.1}": size(62, 48, 3072, 1536, 8, head_size=128, n_expert=256, n_expert_per_token=8)},
        dict(block_size=196608, vocab_size=200064, padded_vocab_size=200064, norm_eps=1e-6),
        dict(rope_base=5000000, rotary_percentage=0.5),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        mixtral.FAMILY.rules(None),
        *llama.NORMED_QK,
        Same("model.layers.{i}.block_sparse_moe.e_score_correction_bias", f"{MLP}.gate.e_score_correction_bias"),
        Drop("model.layers.{n}.*"),  # layers that predict the tokens after the next
    ),
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 196608,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_local_experts": 256,
        "num_experts_per_tok": 8,
        "rope_theta": 5000000.0,
    },
    hf_constants={
        "scoring_func": "sigmoid",
        "use_qk_norm": True,
        "qk_norm_type": "per_layer",
        "use_routing_bias": True,
    },
    rotates_part=True,
)

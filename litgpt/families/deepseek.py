"""DeepSeek V2, V3 and R1: latent attention, many small experts in groups, some for every token, dense first layers.

https://arxiv.org/abs/2405.04434, https://arxiv.org/abs/2412.19437.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from litgpt.errors import LitGPTError
from litgpt.families import llama
from litgpt.families.base import Absorbed, Drop, Family, Rule, Same, changed, named, size
from litgpt.families.gguf import COMMON, EXPERT_FIELDS, EXPERTS, GATED_MLP, GGUF, SHARED_EXPERTS, Key, Metadata
from litgpt.families.hf_config import pop_choice, pop_needed, pop_rope, pop_silu, push_rope

BASE = {**llama.BASE, "mlp_class_name": "LLaMAMoE", "rope_interleave": True, "norm_eps": 1e-6}
LATENT = ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")

MIXTURE: tuple[Rule, ...] = (
    Same("model.layers.{i}.mlp.gate", "transformer.h.{i}.mlp.gate"),
    Same("model.layers.{i}.mlp.experts.{e}.gate_proj", "transformer.h.{i}.mlp.experts.{e}.fc_1"),
    Same("model.layers.{i}.mlp.experts.{e}.up_proj", "transformer.h.{i}.mlp.experts.{e}.fc_2"),
    Same("model.layers.{i}.mlp.experts.{e}.down_proj", "transformer.h.{i}.mlp.experts.{e}.proj"),
    Same("model.layers.{i}.mlp.shared_experts.gate_proj", "transformer.h.{i}.mlp.shared_experts.fc_1"),
    Same("model.layers.{i}.mlp.shared_experts.up_proj", "transformer.h.{i}.mlp.shared_experts.fc_2"),
    Same("model.layers.{i}.mlp.shared_experts.down_proj", "transformer.h.{i}.mlp.shared_experts.proj"),
    Drop("model.layers.{n}.*"),  # V3's extra layer, which predicts the token after the next
)
WEIGHTS = changed(
    llama.WEIGHTS,
    Same("model.layers.{i}.self_attn.q_proj", "transformer.h.{i}.attn.q_proj"),
    Same("model.layers.{i}.self_attn.q_a_proj", "transformer.h.{i}.attn.q_a_proj"),
    Same("model.layers.{i}.self_attn.q_a_layernorm", "transformer.h.{i}.attn.q_a_norm"),
    Same("model.layers.{i}.self_attn.q_b_proj", "transformer.h.{i}.attn.q_b_proj"),
    Same("model.layers.{i}.self_attn.kv_a_proj_with_mqa", "transformer.h.{i}.attn.kv_a_proj_with_mqa"),
    Same("model.layers.{i}.self_attn.kv_a_layernorm", "transformer.h.{i}.attn.kv_a_norm"),
    Same("model.layers.{i}.self_attn.kv_b_proj", "transformer.h.{i}.attn.kv_b_proj"),
    *MIXTURE,
    without=("transformer.h.{i}.attn.qkv",),
)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    pop_silu(left)
    for key in ("head_dim", "qk_head_dim", "num_nextn_predict_layers", "num_mtp_layers", "moe_layer_freq", "mlp_bias"):
        left.pop(key, None)
    groups = left.pop("num_key_value_heads", None)
    if groups not in (None, left["num_attention_heads"]):
        raise LitGPTError(
            "config.json has `num_key_value_heads` unlike `num_attention_heads`, not known in DeepSeek models."
        )
    return {
        **pop_rope(left),
        "latent_attention": {key: left.pop(key) for key in LATENT},
        "attn_bias": bool(left.pop("attention_bias", False)),
        "tie_embeddings": bool(left.pop("tie_word_embeddings", False)),
        **pop_experts(left),
    }


def pop_experts(left: dict[str, Any]) -> dict[str, Any]:
    """Takes the settings of a mixture out of a `config.json`, but for its router's."""
    kinds, first = left.pop("mlp_layer_types", None), left.pop("first_k_dense_replace", None)
    return {
        "n_expert": left.pop("n_routed_experts"),
        "n_expert_per_token": pop_needed(left, "num_experts_per_tok"),
        "n_shared_expert": left.pop("n_shared_experts"),
        "moe_intermediate_size": left.pop("moe_intermediate_size"),
        "first_k_dense_replace": first if kinds is None else None,
        "moe_layers": kinds and [int(kind == "sparse") for kind in kinds],
        "routed_scaling_factor": left.pop("routed_scaling_factor"),
    }


def pop_router(left: dict[str, Any]) -> dict[str, Any]:
    """Takes the settings of a router that scores by sigmoid, and groups of experts first, out of a `config.json`."""
    pop_choice(left, "topk_method", {"noaux_tc": None}, "noaux_tc")
    pop_choice(left, "scoring_func", {"sigmoid": None}, "sigmoid")
    return {
        "n_expert_groups": left.pop("n_group"),
        "n_topk_groups": left.pop("topk_group"),
        "n_topk_scores_per_group": 2,
        "norm_topk_prob": bool(left.pop("norm_topk_prob", True)),
        "router_scores": "sigmoid",
    }


def from_hf_2(left: dict[str, Any]) -> dict[str, Any]:
    grouped = pop_choice(left, "topk_method", {"greedy": False, "group_limited_greedy": True}, "greedy")
    pop_choice(left, "scoring_func", {"softmax": None}, "softmax")
    left.pop("norm_topk_prob", None)  # transformers doesn't act on it
    groups = {"n_expert_groups": left.pop("n_group", None), "n_topk_groups": left.pop("topk_group", None)}
    return {
        **from_hf(left),
        **(groups if grouped else {}),
        "n_topk_scores_per_group": 1 if grouped else None,
        "router_scores": "softmax",
        "router_softmax_over_all": True,
    }


def from_hf_3(left: dict[str, Any]) -> dict[str, Any]:
    return {"rope_interleave": bool(left.pop("rope_interleave", True)), **from_hf(left), **pop_router(left)}


def to_hf(config: Any) -> dict[str, Any]:
    return {
        **push_rope(config),
        **config.latent_attention,
        "hidden_act": "silu",
        "num_key_value_heads": config.n_head,
        "attention_bias": config.attn_bias,
        "tie_word_embeddings": config.tie_embeddings,
        **push_experts(config),
    }


def push_experts(config: Any) -> dict[str, Any]:
    """And back, the router's too, but for `norm_topk_prob`."""
    return {
        "n_routed_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
        "n_shared_experts": config.n_shared_expert,
        "moe_intermediate_size": config.moe_intermediate_size,
        "first_k_dense_replace": config.first_k_dense_replace or 0,
        **({"mlp_layer_types": layer_types(config)} if config.moe_layers else {}),
        "routed_scaling_factor": config.routed_scaling_factor,
        "n_group": config.n_expert_groups,
        "topk_group": config.n_topk_groups,
    }


def complete_layer_types(left: dict[str, Any], dense: int = 1) -> None:
    """Puts a list of each layer's kind in the place of a number of dense ones."""
    n_layer = left["num_hidden_layers"]
    first = min(left.pop("first_k_dense_replace", dense), n_layer)
    left["mlp_layer_types"] = left.get("mlp_layer_types") or ["dense"] * first + ["sparse"] * (n_layer - first)


def layer_types(config: Any) -> list[str]:
    """`mlp_layer_types`."""
    return ["dense" if config.dense(layer) else "sparse" for layer in range(config.n_layer)]


def to_hf_2(config: Any) -> dict[str, Any]:
    method = "greedy" if config.n_expert_groups is None else "group_limited_greedy"
    return {**to_hf(config), "topk_method": method}


def to_hf_3(config: Any) -> dict[str, Any]:
    return {**to_hf(config), "rope_interleave": config.rope_interleave, "norm_topk_prob": config.norm_topk_prob}


def stretched(factor: float, mscale: float) -> dict[str, Any]:
    return dict(
        factor=factor, beta_fast=32, beta_slow=1, original_max_seq_len=4096, mscale=mscale, mscale_all_dim=mscale
    )


def latent(q_lora_rank: int | None) -> dict[str, Any]:
    return dict(q_lora_rank=q_lora_rank, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=128, v_head_dim=128)


V2 = Family(
    name="deepseek_v2",
    architectures=("DeepseekV2ForCausalLM",),
    model_type="deepseek_v2",
    base=BASE,
    rows=named(
        "deepseek-ai",
        {
            "DeepSeek-V2-Lite{,-Chat}": size(
                27, 16, 2048, 10944, moe_intermediate_size=1408, n_expert=64, latent_attention=latent(None)
            ),
        },
        dict(block_size=163840, vocab_size=102400, padded_vocab_size=102400),
        dict(rope_adjustments=stretched(40, 0.707), n_expert_per_token=6, n_shared_expert=2, first_k_dense_replace=1),
        dict(router_scores="softmax", router_softmax_over_all=True),
    ),
    hf_fields=llama.HF_FIELDS,
    from_hf=from_hf_2,
    to_hf=to_hf_2,
    weights=WEIGHTS,
    prefix="model.",
    hf_defaults={
        **latent(1536),
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "moe_intermediate_size": 1407,
        "first_k_dense_replace": 0,
        "routed_scaling_factor": 1.0,
    },
    hf_spellings={"num_experts": "n_routed_experts", "num_local_experts": "n_routed_experts"},
)

V3 = replace(
    V2,
    name="deepseek_v3",
    architectures=("DeepseekV3ForCausalLM",),
    model_type="deepseek_v3",
    rows=named(
        "deepseek-ai",
        {"DeepSeek-{V3,V3-0324,R1,R1-0528}": size(61, 128, 7168, 18432, latent_attention=latent(1536))},
        dict(block_size=163840, vocab_size=129280, padded_vocab_size=129280, rope_adjustments=stretched(40, 1.0)),
        dict(moe_intermediate_size=2048, n_expert=256, n_expert_per_token=8, n_shared_expert=1),
        dict(n_expert_groups=8, n_topk_groups=4, n_topk_scores_per_group=2, norm_topk_prob=True),
        dict(first_k_dense_replace=3, routed_scaling_factor=2.5),
    ),
    from_hf=from_hf_3,
    to_hf=to_hf_3,
    hf_defaults={
        **V2.hf_defaults,
        "max_position_embeddings": 4096,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5,
        "n_group": 8,
        "topk_group": 4,
    },
)


GATING = {"softmax": 1, "sigmoid": 2}
"""`expert_gating_func`."""


def gguf_keys(gating: int, groups: int, used: int) -> tuple[Key, ...]:
    """Keys and values are the latent's, of one head; what is made of it has `…_mla` sizes.

    Args:
        gating: How experts are scored.
        groups: How many groups of experts there are where a file doesn't say.
        used: How many of them a token uses then.
    """
    return (
        Key("attention.head_count_kv", write=lambda _, config: 1),
        Key("attention.key_length", write=lambda _, c: c.latent_attention["kv_lora_rank"] + c.rope_n_elem),
        Key("attention.value_length", write=lambda _, config: config.latent_attention["kv_lora_rank"]),
        Key("rope.dimension_count", "latent_attention.qk_rope_head_dim"),
        Key(
            "attention.key_length_mla",
            "latent_attention.qk_nope_head_dim",
            read=lambda size, found: size - found["latent_attention"]["qk_rope_head_dim"],
            write=lambda size, config: size + config.rope_n_elem,
        ),
        Key("attention.value_length_mla", "latent_attention.v_head_dim"),
        Key("attention.kv_lora_rank", "latent_attention.kv_lora_rank"),
        Key("attention.q_lora_rank", "latent_attention.q_lora_rank", None),
        Key("expert_weights_scale", "routed_scaling_factor", 1.0),
        Key("expert_weights_norm", "norm_topk_prob", False),
        Key("expert_gating_func", known=(gating,), write=lambda _, config: GATING[config.router_scores]),
        Key("expert_group_count", "n_expert_groups", groups),
        Key("expert_group_used_count", "n_topk_groups", used),
    )


def gguf_implied_2(found: Mapping[str, Any]) -> Metadata:
    choice = {"router_scores": "softmax", "router_softmax_over_all": True}
    if found["n_expert_groups"] > 1:
        return {**choice, "n_topk_scores_per_group": 1}
    return {**choice, "n_expert_groups": None, "n_topk_groups": None}


AS_GGUF_2 = GGUF(
    arch="deepseek2",
    eps="attention.layer_norm_rms_epsilon",
    weights=(
        *COMMON,
        *GATED_MLP,
        *EXPERTS,
        *SHARED_EXPERTS,
        Same("blk.{i}.attn_q", "transformer.h.{i}.attn.q_proj"),
        Same("blk.{i}.attn_q_a", "transformer.h.{i}.attn.q_a_proj"),
        Same("blk.{i}.attn_q_a_norm", "transformer.h.{i}.attn.q_a_norm"),
        Same("blk.{i}.attn_q_b", "transformer.h.{i}.attn.q_b_proj"),
        Same("blk.{i}.attn_kv_a_mqa", "transformer.h.{i}.attn.kv_a_proj_with_mqa"),
        Same("blk.{i}.attn_kv_a_norm", "transformer.h.{i}.attn.kv_a_norm"),
        Absorbed(("blk.{i}.attn_k_b", "blk.{i}.attn_v_b"), "transformer.h.{i}.attn.kv_b_proj"),
        Same("blk.{i}.exp_probs_b.bias", "transformer.h.{i}.mlp.gate.e_score_correction_bias"),
    ),
    fields=(
        *EXPERT_FIELDS,
        Key("expert_shared_count", "n_shared_expert"),
        Key("expert_feed_forward_length", "moe_intermediate_size"),
        Key("leading_dense_block_count", "first_k_dense_replace"),
    ),
    more=gguf_keys(GATING["softmax"], groups=1, used=1),
    implied=gguf_implied_2,
    yarn_log=0.1,
    yarn_mscale=None,
)
AS_GGUF_3 = replace(
    AS_GGUF_2,
    more=gguf_keys(GATING["sigmoid"], groups=8, used=4),
    implied=lambda found: {"n_topk_scores_per_group": 2},
    only_with="expert_weights_norm",
)

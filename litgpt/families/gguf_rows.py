"""How llama.cpp's files hold families that are small steps from others: one row each, by family name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from litgpt.families import deepseek, granite, llama, mixtral
from litgpt.families.base import Same, changed
from litgpt.families.gguf import (
    COMMON,
    EXPERT_FIELDS,
    EXPERTS,
    GATED_MLP,
    GGUF,
    NORMED_HEADS,
    NORMED_OUTPUTS,
    PLAIN_MLP,
    SHARED_EXPERTS,
    SPLIT_QKV,
    Key,
)

LAYER = "transformer.h.{i}"
PLAIN = replace(llama.AS_GGUF, paired=())
"""Llama's names; rows as they are."""
LAYER_NORM = GGUF(
    arch="starcoder2",
    eps="attention.layer_norm_epsilon",
    weights=(*COMMON, *SPLIT_QKV, *PLAIN_MLP),
)
LATE_NORM = Same("blk.{i}.post_attention_norm", f"{LAYER}.norm_2")
BALANCE = Same("blk.{i}.exp_probs_b.bias", f"{LAYER}.mlp.gate.e_score_correction_bias")
LOGIT_SCALE = Key(
    "logit_scale", "logits_divisor", read=lambda scale, _: 1 / scale, write=lambda divisor, _: float(1 / divisor)
)
WIDTH = Key("expert_feed_forward_length", "moe_intermediate_size")
SIGMOID = (
    Key("expert_weights_scale", "routed_scaling_factor", 1.0),
    Key("expert_weights_norm", "norm_topk_prob", False),
    Key(
        "expert_gating_func",
        known=(deepseek.GATING["sigmoid"],),
        write=lambda _, config: deepseek.GATING[config.router_scores],
    ),
    Key("expert_group_count", "n_expert_groups", 1),
    Key("expert_group_used_count", "n_topk_groups", 1),
)
MIXTURE = changed((*PLAIN.weights, *EXPERTS), without=llama.DENSE)


def normed_heads(names: Collection[str]) -> dict[str, bool]:
    """Whether queries and keys are normed, which nothing else in a file says."""
    return {"norm_qk": "blk.0.attn_q_norm.weight" in names}


ROWS: dict[str, GGUF] = {
    "seed_oss": replace(PLAIN, arch="seed_oss", weights=changed(PLAIN.weights, LATE_NORM)),
    "ernie4_5": replace(PLAIN, arch="ernie4_5"),
    "hunyuan_v1_dense": replace(PLAIN, arch="hunyuan-dense", weights=(*PLAIN.weights, *NORMED_HEADS)),
    "hunyuan_v1_moe": replace(
        PLAIN,
        arch="hunyuan-moe",
        weights=(*MIXTURE, *NORMED_HEADS, *SHARED_EXPERTS),
        fields=(
            *EXPERT_FIELDS,
            Key("expert_feed_forward_length", write=lambda _, c: c.intermediate_size),
            Key("expert_shared_feed_forward_length", "shared_intermediate_size"),
        ),
    ),
    "arcee": replace(
        llama.AS_GGUF, arch="arcee", weights=(*COMMON, *SPLIT_QKV, *PLAIN_MLP, *llama.AS_GGUF.weights[-1:])
    ),
    "nemotron": replace(LAYER_NORM, arch="nemotron"),
    "starcoder2": LAYER_NORM,
    "cohere": replace(
        LAYER_NORM,
        arch="command-r",
        weights=changed((*COMMON, *SPLIT_QKV, *GATED_MLP), without=(f"{LAYER}.norm_2",)),
        fields=(LOGIT_SCALE,),
    ),
    "olmoe": replace(
        PLAIN,
        arch="olmoe",
        weights=(*MIXTURE, *NORMED_HEADS),
        fields=EXPERT_FIELDS,
        implied=lambda found: {"router_softmax_over_all": True},
    ),
    "granitemoe": replace(
        granite.AS_GGUF,
        arch="granitemoe",
        weights=mixtral.AS_GGUF.weights,
        fields=(*granite.AS_GGUF.fields, *EXPERT_FIELDS),
    ),
    "exaone4": replace(
        PLAIN,
        arch="exaone4",
        weights=changed(
            (*PLAIN.weights, *NORMED_HEADS, *NORMED_OUTPUTS), without=(f"{LAYER}.norm_1", f"{LAYER}.norm_2")
        ),
        implied=lambda found: {"rope_layers": [1] * found["n_layer"]},
    ),
    "minimax_m2": replace(
        PLAIN,
        arch="minimax-m2",
        weights=(*MIXTURE, *NORMED_HEADS, BALANCE),
        fields=(*EXPERT_FIELDS, Key("expert_feed_forward_length", write=lambda _, c: c.intermediate_size)),
        more=SIGMOID[2:3],
    ),
    "glm4_moe": replace(
        PLAIN,
        arch="glm4moe",
        weights=(*changed((*PLAIN.weights, *EXPERTS), LATE_NORM), *NORMED_HEADS, *SHARED_EXPERTS, BALANCE),
        fields=(
            *EXPERT_FIELDS,
            WIDTH,
            Key("expert_shared_count", "n_shared_expert"),
            Key("leading_dense_block_count", "first_k_dense_replace"),
        ),
        by_tensors=normed_heads,
        more=SIGMOID,
        implied=lambda found: {"n_topk_scores_per_group": 2},
    ),
}

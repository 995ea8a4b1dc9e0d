"""MiniMax-M3 (text): grouped queries over blocks of tokens that an indexer chooses, and bounded SwiGLU everywhere.

https://huggingface.co/MiniMaxAI/MiniMax-M3.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.errors import LitGPTError, quoted
from litgpt.families import deepseek, llama, qwen
from litgpt.families.base import Same, Split, changed
from litgpt.families.hf_config import pop_rope, push_rope

BASE = {
    **llama.BASE,
    "mlp_class_name": "LLaMAMoE",
    "norm_qk": True,
    "norm_unit_offset": True,
    "router_scores": "sigmoid",
    "n_expert_groups": 1,
    "n_topk_groups": 1,
    "n_topk_scores_per_group": 2,
    "norm_topk_prob": True,
    "n_shared_expert": 1,
}
SIZES = (
    *(("index_n_heads", "n_heads"), ("index_head_dim", "head_size"), ("index_topk_blocks", "top_k")),
    *(("index_block_size", "block_size"), ("index_local_blocks", "local_blocks")),
)
OLDER = {
    "sparse_num_index_heads": "index_n_heads",
    "sparse_index_dim": "index_head_dim",
    "sparse_block_size": "index_block_size",
    "sparse_topk_blocks": "index_topk_blocks",
    "sparse_local_block": "index_local_blocks",
}
"""Keys of `sparse_attention_config`, and what they are called without it."""
SPARSE = "minimax_m3_sparse"
THEIRS, OURS = "model.layers.{i}", "transformer.h.{i}"
INDEXER = tuple(
    (f"{name}_{kind}", f"{OURS}.attn.indexer.{ours}")
    for name, kind, ours in (("q", "proj", "q"), ("k", "proj", "k"), ("q", "norm", "norm_q"), ("k", "norm", "norm_k"))
)
SHARED, EXPERT = f"{OURS}.mlp.shared_experts", f"{OURS}.mlp.experts.{{e}}"
MIXTURE = f"{THEIRS}.block_sparse_moe"
AS_A_WHOLE = (
    *(Same(f"{THEIRS}.self_attn.index_{theirs}", ours) for theirs, ours in INDEXER),
    *(Same(f"{MIXTURE}.experts.{{e}}.w{n}", f"{EXPERT}.{ours}") for n, ours in ((1, "fc_1"), (3, "fc_2"), (2, "proj"))),
    *(
        Same(f"{place}.{theirs}_proj", f"{ours}.{part}")
        for place, ours in ((f"{MIXTURE}.shared_experts", SHARED), (f"{THEIRS}.mlp", f"{OURS}.mlp"))
        for theirs, part in (("gate", "fc_1"), ("up", "fc_2"), ("down", "proj"))
    ),
    Same(f"{MIXTURE}.gate", f"{OURS}.mlp.gate"),
    Same(f"{MIXTURE}.e_score_correction_bias", f"{OURS}.mlp.gate.e_score_correction_bias"),
)
"""As files hold them that hold eyes as well."""


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    layers, older = left["num_hidden_layers"], left.pop("sparse_attention_config", None) or {}
    left |= {OLDER[key]: older[key] for key in OLDER if key in older}
    often, mixtures = older.get("sparse_attention_freq"), left.pop("moe_layer_freq", None)
    kinds = left.pop("layer_types", None) or [SPARSE if one else "full_attention" for one in often or [0] * layers]
    if {*kinds} - {SPARSE, "full_attention"}:
        raise LitGPTError(f"config.json has `layer_types`: {quoted(kinds)}, which are not all known here.")
    sparse = [int(kind == SPARSE) for kind in kinds]
    sizes = {ours: left.pop(theirs) for theirs, ours in SIZES}
    if left.get("mlp_layer_types") is None:
        left["mlp_layer_types"] = ["sparse" if one else "dense" for one in mixtures or [1] * layers]
    for key in ("hidden_act", "rotary_dim"):  # their class acts on neither
        left.pop(key, None)
    found = {
        **pop_rope(left),
        **llama.pop_attention(left),
        "shared_intermediate_size": left.pop("shared_intermediate_size"),
        "swiglu_limit": left.pop("swiglu_limit"),
        **deepseek.pop_experts(left | {"n_shared_experts": 1, "moe_intermediate_size": left["intermediate_size"]}),
        "sparse_attention": sizes if any(sparse) else None,
        "sparse_layers": None if all(sparse) or not any(sparse) else sparse,
    }
    for key in (
        "intermediate_size",
        "n_routed_experts",
        "num_experts_per_tok",
        "mlp_layer_types",
        "routed_scaling_factor",
    ):
        left.pop(key)
    return found


def to_hf(config: Any) -> dict[str, Any]:
    rope, sizes = push_rope(config), config.sparse_attention
    turning = {"rope_theta": rope["rope_theta"], "partial_rotary_factor": config.rotary_percentage}
    sparse = config.sparse_layers or [int(sizes is not None)] * config.n_layer
    return {
        "rope_parameters": {"rope_type": "default", **(rope["rope_scaling"] or {}), **turning},
        "rotary_dim": config.rope_n_elem,
        "num_key_value_heads": config.n_query_groups,
        "head_dim": config.head_size,
        "tie_word_embeddings": config.tie_embeddings,
        "intermediate_size": config.moe_intermediate_size,
        "shared_intermediate_size": config.shared_intermediate_size,
        "num_local_experts": config.n_expert,
        "num_experts_per_tok": config.n_expert_per_token,
        "routed_scaling_factor": config.routed_scaling_factor,
        "mlp_layer_types": ["dense" if config.dense(layer) else "sparse" for layer in range(config.n_layer)],
        "swiglu_limit": config.swiglu_limit,
        "layer_types": [SPARSE if one else "full_attention" for one in sparse],
        **({theirs: sizes[ours] for theirs, ours in SIZES} if sizes else {}),
    }


FAMILY = replace(
    llama.FAMILY,
    name="minimax_m3",
    architectures=("MiniMaxM3VLForCausalLM",),
    model_type="minimax_m3_vl_text",
    base=BASE,
    rows={},
    hf_fields=tuple(
        ("dense_intermediate_size", ours) if theirs == "intermediate_size" else (theirs, ours)
        for theirs, ours in llama.HF_FIELDS
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        qwen.WEIGHTS_3_MOE,
        *qwen.STACKED,
        Same(f"{THEIRS}.mlp.gate.e_score_correction_bias", f"{OURS}.mlp.gate.e_score_correction_bias"),
        Split(f"{THEIRS}.mlp.shared_experts.gate_up_proj", (f"{SHARED}.fc_1", f"{SHARED}.fc_2")),
        Same(f"{THEIRS}.mlp.shared_experts.down_proj", f"{SHARED}.proj"),
        Split(f"{THEIRS}.mlp.gate_up_proj", (f"{OURS}.mlp.fc_1", f"{OURS}.mlp.fc_2")),
        *(Same(f"{THEIRS}.self_attn.indexer.{theirs}", ours) for theirs, ours in INDEXER),
    ),
    prompt_styles=(),
    alternatives=AS_A_WHOLE,
    rotates_part=True,
    hf_defaults={
        "dense_intermediate_size": 12288,
        "intermediate_size": 3072,
        "shared_intermediate_size": 3072,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 524288,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "n_routed_experts": 128,
        "num_experts_per_tok": 4,
        "routed_scaling_factor": 2.0,
        "rope_theta": 5000000.0,
        "swiglu_limit": 7.0,
        "swiglu_alpha": 1.702,
        "index_n_heads": 4,
        "index_head_dim": 128,
        "index_block_size": 128,
        "index_topk_blocks": 16,
        "index_local_blocks": 1,
    },
    hf_spellings={"num_experts": "n_routed_experts", "num_local_experts": "n_routed_experts"},
    hf_constants={"swiglu_alpha": 1.702},
)

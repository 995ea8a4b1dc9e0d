"""DeepSeek V3.2 and GLM 5: DeepSeek V3 whose queries see the tokens that an indexer chooses.

https://arxiv.org/abs/2512.02556; layers that reuse the choice of one before them: https://arxiv.org/abs/2603.12201.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.errors import LitGPTError, UnsupportedError, quoted
from litgpt.families import deepseek
from litgpt.families.base import Same, changed, said, without
from litgpt.families.hf_config import push_adjustments
from litgpt.families.qwen import STACKED

SIZES = (("index_n_heads", "n_heads"), ("index_head_dim", "head_size"), ("index_topk", "top_k"))
LEAST_HEADS = 8
"""A score is 0 where no head finds anything: of 8 heads one in 256, of 2 one in 4, and the published ones have 32."""
INDEXER = tuple(
    Same(f"model.layers.{{i}}.self_attn.indexer.{theirs}", f"transformer.h.{{i}}.attn.indexer.{ours}")
    for theirs, ours in (("wq_b", "q"), ("wk", "k"), ("k_norm", "norm"), ("weights_proj", "weights"))
)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    deepseek.complete_layer_types(left, 3)
    if {*(left.pop("layer_types", None) or ())} - {"indexed_attention", "deepseek_sparse_attention"}:
        raise LitGPTError("config.json has `layer_types` without an indexer, which no layer of its class is.")
    sizes = {ours: left.pop(theirs) for theirs, ours in SIZES}
    if sizes["n_heads"] < LEAST_HEADS and sizes["top_k"] < left["max_position_embeddings"]:
        raise UnsupportedError(
            f"config.json has `index_n_heads`: {sizes['n_heads']}; of so few heads, tokens have equal scores,"
            " whose order no two ways to compute them share."
        )
    return {**deepseek.from_hf_3(left), "rope_interleave": True, "sparse_attention": {**sizes, "interleave": False}}


def to_hf(config: Any) -> dict[str, Any]:
    written = without(deepseek.to_hf_3(config), "first_k_dense_replace", "rope_interleave")
    sizes = {theirs: config.sparse_attention[ours] for theirs, ours in SIZES}
    return {**written, **sizes, "mlp_layer_types": deepseek.layer_types(config)}


V32 = replace(
    deepseek.V3,
    name="deepseek_v32",
    architectures=("DeepseekV32ForCausalLM",),
    model_type="deepseek_v32",
    base={**deepseek.BASE, "rope_interleave": True},
    rows={},
    published={
        "deepseek-ai/DeepSeek-V3.2{,-Exp}": said(
            7168, 61, 128, 18432, 129280, rope_scaling=push_adjustments("yarn", deepseek.stretched(40, 1.0))
        )
    },
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(deepseek.WEIGHTS, *INDEXER),
    alternatives=STACKED,
    hf_defaults={
        **deepseek.V3.hf_defaults,
        "max_position_embeddings": 163840,
        "index_topk": 2048,
        "index_head_dim": 128,
        "index_n_heads": 64,
    },
)


def glm_from_hf(left: dict[str, Any]) -> dict[str, Any]:
    kinds, layers = left.pop("indexer_types", None), range(left["num_hidden_layers"])
    by_letter, every = left.pop("index_topk_pattern", None), max(left.pop("index_topk_freq", None) or 1, 1)
    skipped = left.pop("index_skip_topk_offset", 2)
    kinds = kinds or by_letter or ["SF"[max(layer - skipped + 1, 0) % every == 0] for layer in layers]
    own = [{"full": 1, "shared": 0, "F": 1, "S": 0}.get(kind) for kind in kinds]
    if None in own:
        raise LitGPTError(f"config.json has `indexer_types`: {quoted(kinds)}, which are not all known here.")
    found = from_hf(left)
    found["sparse_attention"]["interleave"] = True
    return {**found, "indexer_layers": None if all(own) else own}


def glm_to_hf(config: Any) -> dict[str, Any]:
    own = config.indexer_layers or [1] * config.n_layer
    return {**to_hf(config), "indexer_types": ["full" if chooses else "shared" for chooses in own]}


GLM = replace(
    V32,
    name="glm_moe_dsa",
    architectures=("GlmMoeDsaForCausalLM",),
    model_type="glm_moe_dsa",
    published={},
    from_hf=glm_from_hf,
    to_hf=glm_to_hf,
    hf_defaults={
        **V32.hf_defaults,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 202752,
        "q_lora_rank": 2048,
        "v_head_dim": 256,
        "qk_nope_head_dim": 192,
        "n_group": 1,
        "topk_group": 1,
        "index_n_heads": 32,
    },
)

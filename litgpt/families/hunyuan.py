"""Hunyuan, dense: Llama whose queries and keys are normed after they rotate (https://github.com/Tencent-Hunyuan)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import Same, changed, without


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    for key in ("rope_parameters", "rope_scaling"):
        rope = left.get(key)
        if isinstance(rope, dict) and rope.get("alpha") and "dynamic" in (rope.get("rope_type"), rope.get("type")):
            size = left.get("head_dim") or left["hidden_size"] // left["num_attention_heads"]
            base = rope.get("rope_theta") or left.get("rope_theta") or 10000.0
            left[key] = {"rope_type": "default", "rope_theta": base * rope["alpha"] ** (size / (size - 2))}
    found = llama.from_hf(left)
    for key in ("eod_token_id", "use_qk_norm", "use_cla", "cla_share_factor", "pad_id", "im_start_id", "im_end_id"):
        left.pop(key, None)
    return found


def to_hf(config: Any) -> dict[str, Any]:
    return {**without(llama.to_hf(config), "mlp_bias"), "pad_token_id": None}


FAMILY = replace(
    llama.FAMILY,
    name="hunyuan_v1_dense",
    architectures=("HunYuanDenseV1ForCausalLM",),
    model_type="hunyuan_v1_dense",
    base={**llama.BASE, "norm_qk": True, "norm_qk_rotated": True},
    rows={},
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        llama.WEIGHTS,
        Same("model.layers.{i}.self_attn.query_layernorm", "transformer.h.{i}.attn.norm_q"),
        Same("model.layers.{i}.self_attn.key_layernorm", "transformer.h.{i}.attn.norm_k"),
    ),
    prompt_styles=(),
    hf_defaults={"rms_norm_eps": 1e-5, "max_position_embeddings": 2048},
)

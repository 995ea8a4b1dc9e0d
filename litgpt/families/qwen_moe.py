"""Qwen 1.5's and Qwen 2's mixtures: biases on queries, keys, values, and an expert for all behind a gate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama, qwen, qwen_next
from litgpt.families.base import changed, named, size, without
from litgpt.families.hf_config import pop_rope, pop_silu, pop_windows

BASE = dict(**{**llama.BASE, "mlp_class_name": "LLaMAMoE"}, n_shared_expert=1, shared_expert_gate=True)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    pop_silu(left)
    bias = bool(left.pop("qkv_bias", True))
    first, n_layer = left.pop("max_window_layers"), left["num_hidden_layers"]
    if left.setdefault("use_sliding_window", False) and left.get("layer_types") is None:  # every other one, at first
        windowed = ["sliding_attention" if layer % 2 == 0 and layer < first else "" for layer in range(n_layer)]
        left["layer_types"] = windowed
    return {
        **pop_rope(left),
        **pop_windows(left),
        **llama.pop_attention(left),
        "attn_bias": bias,
        **qwen.pop_experts(left),
        "shared_intermediate_size": left.pop("shared_expert_intermediate_size"),
    }


def to_hf(config: Any) -> dict[str, Any]:
    return {
        **without(qwen.to_hf(config), "head_dim"),
        "qkv_bias": config.attn_bias,
        **qwen.push_experts(config),
        "shared_expert_intermediate_size": config.shared_intermediate_size,
    }


FAMILY = replace(
    qwen.QWEN_3_MOE,
    name="qwen2_moe",
    architectures=("Qwen2MoeForCausalLM",),
    model_type="qwen2_moe",
    base=BASE,
    rows=named(
        "Qwen",
        {
            "Qwen1.5-MoE-A2.7B{,-Chat}": size(
                24, 16, 2048, 5632, moe_intermediate_size=1408, n_expert=60, n_expert_per_token=4, block_size=8192
            )
            | dict(shared_intermediate_size=5632),
            "Qwen2-57B-A14B{,-Instruct}": size(
                28, 28, 3584, 18944, 4, moe_intermediate_size=2560, n_expert=64, n_expert_per_token=8, block_size=32768
            )
            | dict(shared_intermediate_size=20480),
        },
        dict(vocab_size=151643, padded_vocab_size=151936, norm_eps=1e-6, rope_base=1000000, attn_bias=True),
        dict(router_softmax_over_all=True),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(llama.WEIGHTS, *(rule for rule in qwen.WEIGHTS_3_MOE if ".mlp." in str(rule)), *qwen_next.MIXTURE),
    prompt_styles=((r"Qwen.*-(Chat|Instruct)", "qwen2.5"),),
    hf_defaults={
        **qwen.DEFAULTS,
        "num_key_value_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    },
    inside={},
)

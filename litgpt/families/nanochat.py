"""nanochat: norms without weights, also over embeddings and over queries and keys, squared ReLU, soft-capped logits.

https://github.com/karpathy/nanochat.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import Same, changed, said, without
from litgpt.families.hf_config import pop_activation, pop_rope, push_activation


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    activation = pop_activation(left, "relu2")
    softcap = left.pop("final_logit_softcapping", None)
    return {**pop_rope(left), **llama.pop_attention(left), **activation, "final_logit_softcapping": softcap}


def to_hf(config: Any) -> dict[str, Any]:
    plain = without(llama.to_hf(config), "mlp_bias", "head_dim")
    softcap = {"final_logit_softcapping": config.final_logit_softcapping}
    return {**plain, **softcap, "hidden_act": push_activation(config), "pad_token_id": None}


FAMILY = replace(
    llama.FAMILY,
    name="nanochat",
    architectures=("NanoChatForCausalLM",),
    model_type="nanochat",
    base={
        **llama.BASE,
        "mlp_class_name": "GptNeoxMLP",
        "activation": "relu2",
        "norm_affine": False,
        "norm_turned": True,
        "norm_embeddings": True,
        "rope_reversed": True,
    },
    rows={},
    published={"karpathy/nanochat-d32": said(2048, 32, 16, 8192, 65536)},
    from_hf=from_hf,
    to_hf=to_hf,
    weights=changed(
        llama.WEIGHTS,
        Same("model.layers.{i}.mlp.fc1", "transformer.h.{i}.mlp.fc"),
        Same("model.layers.{i}.mlp.fc2", "transformer.h.{i}.mlp.proj"),
        without=(
            *("transformer.h.{i}.mlp.fc_1", "transformer.h.{i}.mlp.fc_2", "transformer.ln_f"),
            *("transformer.h.{i}.norm_1", "transformer.h.{i}.norm_2"),
        ),
    ),
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "hidden_act": "relu2",
        "final_logit_softcapping": 15.0,
    },
)

"""SmolLM3: Llama in which every fourth layer has no positions (https://huggingface.co/blog/smollm3)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from litgpt.families import llama
from litgpt.families.base import named, size, without
from litgpt.families.hf_config import push_windows


def rotating(n_layer: int, interval: int = 4) -> list[int]:
    """1 for each layer that rotates, 0 for every `interval`-th."""
    return [int((layer + 1) % interval != 0) for layer in range(n_layer)]


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    layers, interval = left.pop("no_rope_layers", None), left.pop("no_rope_layer_interval", 4)
    layers = layers or rotating(left["num_hidden_layers"], interval)
    left.setdefault("use_sliding_window", False)
    if left.get("layer_types") is None:  # a window where nothing rotates
        left["layer_types"] = ["full_attention" if rotates else "sliding_attention" for rotates in layers]
    return {**llama.from_hf(left), "rope_layers": layers}


def to_hf(config: Any) -> dict[str, Any]:
    plain = without(llama.to_hf(config), "head_dim")
    windowed = config.sliding_window_size is not None
    plain |= {"use_sliding_window": windowed, **(push_windows(config) if windowed else {})}
    return {**plain, "no_rope_layers": config.rope_layers, "pad_token_id": None}


FAMILY = replace(
    llama.FAMILY,
    name="smollm3",
    architectures=("SmolLM3ForCausalLM",),
    model_type="smollm3",
    rows=named(
        "HuggingFaceTB",
        {
            "SmolLM3-3B": size(36, 16, 2048, 11008, 4, block_size=65536, rope_base=5000000),
            "SmolLM3-3B-Base": size(36, 16, 2048, 11008, 4, block_size=65536, rope_base=5000000),
        },
        dict(vocab_size=128256, padded_vocab_size=128256, norm_eps=1e-6, tie_embeddings=True),
        dict(rope_layers=rotating(36)),
    ),
    from_hf=from_hf,
    to_hf=to_hf,
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "num_key_value_heads": 4,
        "rope_theta": 2000000.0,
    },
)

AS_GGUF = replace(llama.AS_GGUF, arch="smollm3", implied=lambda found: {"rope_layers": rotating(found["n_layer"])})

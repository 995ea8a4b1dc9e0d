"""Helium: Llama whose neighbouring dimensions rotate (https://kyutai.org/2025/01/13/helium.html)."""

from __future__ import annotations

from dataclasses import replace

from litgpt.families import llama
from litgpt.families.base import named, size

FAMILY = replace(
    llama.FAMILY,
    name="helium",
    architectures=("HeliumForCausalLM",),
    model_type="helium",
    base={**llama.BASE, "rope_interleave": True},
    rows=named(
        "kyutai",
        {"helium-1-preview-2b": size(24, 20, 2560, 7040, head_size=128, rope_base=100000)},
        dict(block_size=4096, vocab_size=48000, padded_vocab_size=48000, norm_eps=1e-8),
    ),
    prompt_styles=(),
    hf_defaults={
        "rms_norm_eps": 1e-8,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 20,
        "head_dim": 128,
        "rope_theta": 100000.0,
    },
)

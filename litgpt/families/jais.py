"""Jais 2: LayerNorm, biases, a plain MLP with squared ReLU (https://huggingface.co/inceptionai/Jais-2-8B-Chat)."""

from __future__ import annotations

from dataclasses import replace

from litgpt.families import arcee, llama

FAMILY = replace(
    arcee.FAMILY,
    name="jais2",
    architectures=("Jais2ForCausalLM",),
    model_type="jais2",
    base={**arcee.FAMILY.base, "norm_class_name": "LayerNorm"},
    rows={},
    hf_fields=llama.LAYER_NORM_FIELDS,
    hf_defaults={
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "hidden_act": "relu2",
        "attention_bias": True,
        "mlp_bias": True,
    },
)

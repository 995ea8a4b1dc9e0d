"""VaultGemma: Gemma 2 without norms of what comes out of attention and MLP (https://arxiv.org/abs/2510.15001)."""

from __future__ import annotations

from dataclasses import replace

from litgpt.families import gemma, llama
from litgpt.families.base import Same, changed, named, size

FAMILY = replace(
    gemma.GEMMA_2,
    name="vaultgemma",
    architectures=("VaultGemmaForCausalLM",),
    model_type="vaultgemma",
    base=gemma.BASE,
    rows=named(
        "google",
        {"vaultgemma-1b": size(26, 4, 1152, 6912, 4, head_size=256, attention_scores_scalar=256)},
        dict(block_size=1024, vocab_size=256000, padded_vocab_size=256000, norm_eps=1e-6, sliding_window_size=512),
        dict(sliding_window_indices=[1, 0] * 13, attention_logit_softcapping=50.0, final_logit_softcapping=30.0),
    ),
    weights=changed(llama.WEIGHTS, Same("model.layers.{i}.pre_feedforward_layernorm", "transformer.h.{i}.norm_2")),
    prompt_styles=(),
)

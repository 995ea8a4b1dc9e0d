"""GPT-NeoX (Pythia, StableLM-Alpha): attention and MLP side by side, partial RoPE, LayerNorm, biases everywhere.

Black et al. 2022, https://arxiv.org/abs/2204.06745.
"""

from __future__ import annotations

from typing import Any

from litgpt.families import llama
from litgpt.families.base import Drop, Family, Interleaved, Same, named
from litgpt.families.gguf import COMMON, FUSED_QKV, GGUF, PLAIN_MLP, Key
from litgpt.families.hf_config import pop_activation, pop_rope, push_activation, push_rope

WEIGHTS = (
    Same("gpt_neox.embed_in", "transformer.wte"),
    Same("gpt_neox.layers.{i}.input_layernorm", "transformer.h.{i}.norm_1"),
    Interleaved("gpt_neox.layers.{i}.attention.query_key_value", "transformer.h.{i}.attn.qkv"),
    Same("gpt_neox.layers.{i}.attention.dense", "transformer.h.{i}.attn.proj"),
    Same("gpt_neox.layers.{i}.post_attention_layernorm", "transformer.h.{i}.norm_2"),
    Same("gpt_neox.layers.{i}.mlp.dense_h_to_4h", "transformer.h.{i}.mlp.fc"),
    Same("gpt_neox.layers.{i}.mlp.dense_4h_to_h", "transformer.h.{i}.mlp.proj"),
    Same("gpt_neox.final_layer_norm", "transformer.ln_f"),
    Same("embed_out", "lm_head"),
    Drop("gpt_neox.layers.{i}.attention.bias"),
    Drop("gpt_neox.layers.{i}.attention.masked_bias"),
    Drop("gpt_neox.layers.{i}.attention.rotary_emb.inv_freq"),
)


def from_hf(left: dict[str, Any]) -> dict[str, Any]:
    percentage = left.pop("rotary_pct", None)
    rope = pop_rope(left)
    activation = pop_activation(left, "gelu")
    bias = bool(left.pop("attention_bias", True))
    return {
        "bias": bias,
        "mlp_bias": not bias,  # which are there all the same
        "rotary_percentage": percentage if percentage is not None else 0.25,
        **rope,
        "parallel_residual": bool(left.pop("use_parallel_residual", True)),
        **activation,
        "tie_embeddings": bool(left.pop("tie_word_embeddings", False)),
    }


def to_hf(config: Any) -> dict[str, Any]:
    rope = push_rope(config)
    return {
        "rotary_emb_base": rope["rope_theta"],
        **rope,
        "rotary_pct": config.rotary_percentage,
        "partial_rotary_factor": config.rotary_percentage,
        "use_parallel_residual": config.parallel_residual,
        "hidden_act": push_activation(config, "gelu_new"),
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": config.bias,
    }


def plain(n_layer: int, n_head: int, n_embd: int, **other: Any) -> dict[str, Any]:
    """A row whose MLP is four times as wide as the model, whatever width overrides give it."""
    return dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd, **other)


PYTHIA = {
    "14m": plain(6, 4, 128, block_size=512),
    "31m": plain(6, 8, 256, block_size=1024),
    "70m{,-deduped}": plain(6, 8, 512),
    "160m{,-deduped}": plain(12, 12, 768),
    "410m{,-deduped}": plain(24, 16, 1024),
    "1b{,-deduped}": plain(16, 8, 2048),
    "1.4b{,-deduped}": plain(24, 16, 2048),
    "2.8b{,-deduped}": plain(32, 32, 2560),
    "6.9b{,-deduped}": plain(32, 32, 4096, padding_multiple=256),
    "12b{,-deduped}": plain(36, 40, 5120, padding_multiple=512),
}

ROWS = {
    **named("stabilityai", {"stablelm-{base,tuned}-alpha-3b": plain(16, 32, 4096)}),
    **named("stabilityai", {"stablelm-{base,tuned}-alpha-7b": plain(16, 48, 6144)}, dict(padding_multiple=256)),
    **named(
        "stabilityai",
        {
            "stablecode-completion-alpha-3b": {"block_size": 16384},
            "stablecode-{completion-alpha-3b-4k,instruct-alpha-3b}": {},
        },
        plain(32, 32, 2560, vocab_size=49152),
    ),
    **named(
        "EleutherAI",
        {f"pythia-{name}": {"block_size": 2048, "padding_multiple": 128, **row} for name, row in PYTHIA.items()},
    ),
}

AS_GGUF = GGUF(
    arch="gptneox",
    eps="attention.layer_norm_epsilon",
    weights=(*COMMON, *FUSED_QKV, *PLAIN_MLP),
    fields=(Key("use_parallel_residual", "parallel_residual"),),
    always_biased=True,
    head_may_be_left_out=False,
    pre_tokenizer="olmo",
)

FAMILY = Family(
    name="neox",
    architectures=("GPTNeoXForCausalLM",),
    model_type="gpt_neox",
    base={},
    rows=ROWS,
    hf_fields=llama.LAYER_NORM_FIELDS,
    from_hf=from_hf,
    to_hf=to_hf,
    weights=WEIGHTS,
    prefix="gpt_neox.",
    hf_defaults={"layer_norm_eps": 1e-5, "max_position_embeddings": 2048},
    rotates_part=True,
    prompt_styles=((r"stablelm-tuned-alpha", "stablelm-alpha"), (r"stablecode-instruct", "stablecode")),
)

"""Models that see or hear as well: where their language model's settings and tensors are.

A text has one position a token, so what turns pictures' positions (M-RoPE) changes nothing for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

COMPOSITES: dict[str, str] = {
    "Cohere2VisionForConditionalGeneration": "cohere2",
    "Exaone4_5_ForConditionalGeneration": "exaone4",
    "Glm4vMoeForConditionalGeneration": "glm4v_moe_text",
    "Gemma3ForConditionalGeneration": "gemma3_text",
    "Gemma3nForConditionalGeneration": "gemma3n_text",
    "Gemma4ForConditionalGeneration": "gemma4_text",
    "Gemma4UnifiedForConditionalGeneration": "gemma4_unified_text",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_5_moe_text",
    "GotOcr2ForConditionalGeneration": "qwen2",
    "Idefics2ForConditionalGeneration": "mistral",
    "Idefics3ForConditionalGeneration": "llama",
    "InternVLChatModel": "qwen2",
    "InternVLForConditionalGeneration": "qwen2",
    "Kimi_K25ForConditionalGeneration": "deepseek_v3",
    "Lfm2VlForConditionalGeneration": "lfm2",
    "Lfm3VlForConditionalGeneration": "lfm3",
    "Llama4ForConditionalGeneration": "llama4_text",
    "LlavaForConditionalGeneration": "llama",
    "LlavaNextForConditionalGeneration": "llama",
    "LlavaNextVideoForConditionalGeneration": "llama",
    "LlavaOnevisionForConditionalGeneration": "qwen2",
    "MiniMaxM3SparseForConditionalGeneration": "minimax_m3_vl_text",
    "Mistral3ForConditionalGeneration": "mistral",
    "MuseGlimmerForConditionalGeneration": "muse_glimmer_text",
    "Qwen2AudioForConditionalGeneration": "qwen2",
    "Qwen2VLForConditionalGeneration": "qwen2_vl_text",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl_text",
    "Qwen3VLForConditionalGeneration": "qwen3_vl_text",
    "Qwen3VLMoeForConditionalGeneration": "qwen3_vl_moe_text",
    "Qwen3_5ForConditionalGeneration": "qwen3_5_text",
    "SmolVLMForConditionalGeneration": "llama",
    "VipLlavaForConditionalGeneration": "llama",
    "VoxtralForConditionalGeneration": "llama",
}
"""`architectures` entry of `config.json`, and the `model_type` of the language model in it where none is said."""

SAID: dict[str, dict[str, Any]] = {"Cohere2VisionForConditionalGeneration": {"logit_scale": 1.0}}
"""What a class computes with, whatever its files say."""

TEXT_KEYS = ("text_config", "llm_config")
OF_THE_WHOLE = ("tie_word_embeddings", "quantization_config")
"""What the whole says of its language model."""
SETTINGS = ("rope_scaling", "rope_parameters", "quantization_config")
"""Settings that consist of settings, and are the language model's where they stand at the top."""
OTHER_INPUTS = frozenset(
    """
    image_token_id video_token_id audio_token_id vision_start_token_id vision_end_token_id vision_token_id
    image_token_index video_token_index image_start_token_id image_end_token_id video_start_token_id
    video_end_token_id
    """.split()
)

RENAMES = (
    ("language_model.model.blocks.", "model.layers."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.lm_head.", "lm_head."),
    ("model.language_model.model.", "model."),
    ("model.language_model.", "model."),
    ("model.text_model.", "model."),
)
"""What tensors of a language model are called inside such a model, and alone."""
NOT_TEXT = tuple(
    f"{prefix}{name}"
    for prefix in ("", "model.")
    for name in (
        *("vision_tower.", "vision_model.", "visual.", "vision_embed_tokens.", "audio_tower.", "embed_vision."),
        *("embed_audio.", "multi_modal_projector.", "mm_projector.", "connector.", "image_newline", "mlp1."),
        *("vision_adapter.", "vision_projection.", "patch_merge_mlp."),
    )
)
"""What the names of the other tensors begin with."""


def text_settings(hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """What a `config.json` of such a model says of its language model; some say it at the top."""
    default = next(COMPOSITES[name] for name in hf_config["architectures"] if name in COMPOSITES)
    key = next((key for key in TEXT_KEYS if isinstance(hf_config.get(key), dict)), None)
    if key is None:
        inside = {key: value for key, value in hf_config.items() if not isinstance(value, dict) or key in SETTINGS}
        text = {**inside, "model_type": default}
    else:
        whole = {key: hf_config[key] for key in OF_THE_WHOLE if key in hf_config}
        # Where nothing is said of head tying, the weights tell.
        text = {"model_type": default, **hf_config[key], "tie_word_embeddings": True, **whole}
    said = {key: value for name in hf_config["architectures"] for key, value in SAID.get(name, {}).items()}
    return {key: value for key, value in {**text, **said}.items() if key not in OTHER_INPUTS}


def is_composite(hf_config: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is of a model that these tables know to hold a language model."""
    return any(name in COMPOSITES for name in hf_config.get("architectures") or ())

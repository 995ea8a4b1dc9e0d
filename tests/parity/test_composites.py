"""The language model inside a model that sees as well: it is found, and computes what `transformers` computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from litgpt.checkpoint.reader import load_model
from litgpt.config import Config
from litgpt.errors import LitGPTError
from tests.parity.test_families import relative
from tests.tiny import LLAMA_4, LLAMA_LIKE, QWEN_35, YARN

EYES = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
)
PIXTRAL = dict(**EYES, model_type="pixtral")
LLAMA_4_EYES = dict(
    **{**EYES, "intermediate_size": 64}, vision_output_dim=16, projector_input_dim=16, projector_output_dim=16
)
MISTRAL = dict(**LLAMA_LIKE, head_dim=8, model_type="mistral", sliding_window=None)
STRETCHED = dict(
    **LLAMA_LIKE, head_dim=8, model_type="ministral3", rope_parameters={**YARN, "llama_4_scaling_beta": 0.3}
)

# Case name → (model in transformers without "ForConditionalGeneration", settings, our family, whether tied).
CASES: dict[str, tuple[str, dict[str, Any], str, bool]] = {
    "mistral3": (
        "Mistral3",
        dict(text_config=MISTRAL, vision_config=PIXTRAL, tie_word_embeddings=False),
        "mistral",
        False,
    ),
    "mistral3-tied": ("Mistral3", dict(text_config=MISTRAL, vision_config=PIXTRAL), "mistral", True),
    "mistral3-around-ministral3": ("Mistral3", dict(text_config=STRETCHED, vision_config=PIXTRAL), "ministral3", True),
    "llama4": ("Llama4", dict(text_config=LLAMA_4, vision_config=LLAMA_4_EYES), "llama4", False),
    "qwen3.5": (
        "Qwen3_5",
        dict(
            text_config={
                **QWEN_35,
                "rope_parameters": {
                    **QWEN_35["rope_parameters"],
                    "mrope_section": [1, 1, 0],
                    "mrope_interleaved": True,
                },
            },
            vision_config=dict(
                hidden_size=16, intermediate_size=16, depth=1, num_heads=2, patch_size=8, out_hidden_size=32
            ),
            tie_word_embeddings=False,
        ),
        "qwen3_5",
        False,
    ),
    "gemma3": (
        "Gemma3",
        dict(text_config=dict(**LLAMA_LIKE, head_dim=16, sliding_window=7), vision_config=EYES),
        "gemma3",
        True,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_language_model_inside_is_read(case, tmp_path):
    import transformers

    name, settings, family, tied = CASES[case]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    model.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert (ours.config.family.name, ours.tied) == (family, tied)
    tokens = torch.randint(0, 96, (2, 40))
    with torch.inference_mode():
        assert relative(ours(tokens), model(input_ids=tokens).logits) < 1e-5


def test_a_language_model_of_an_unknown_kind_inside_is_refused_by_name():
    hf_config = {"architectures": ["Mistral3ForConditionalGeneration"], "text_config": {"model_type": "mamba"}}
    with pytest.raises(LitGPTError, match="around a mamba"):
        Config.from_hf(hf_config)


def test_quantization_of_the_whole_is_not_overlooked():
    hf_config = {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "text_config": MISTRAL,
        "quantization_config": {"quant_method": "awq"},
    }
    with pytest.raises(LitGPTError, match="awq"):
        Config.from_hf(hf_config)

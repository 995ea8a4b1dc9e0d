"""The language model inside a model that sees as well: it is found, and computes what `transformers` computes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from litgpt.checkpoint.reader import load_model
from litgpt.checkpoint.weights import WeightTable, lazy
from litgpt.checkpoint.writer import hf_config_of
from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.families import BY_TYPE, FAMILIES
from litgpt.families.quantization_config import stored_quantization
from tests.parity.test_families import relative
from tests.tiny import CASES as SETTINGS
from tests.tiny import INSIDE, LLAMA_4, LLAMA_LIKE, QWEN_35, SMALL_EYES, YARN

EYES = SMALL_EYES
PIXTRAL = dict(**EYES, model_type="pixtral")
LLAMA_4_EYES = dict(
    **{**EYES, "intermediate_size": 64}, vision_output_dim=16, projector_input_dim=16, projector_output_dim=16
)
MISTRAL = dict(**LLAMA_LIKE, head_dim=8, model_type="mistral", sliding_window=None)
STRETCHED = dict(
    **LLAMA_LIKE, head_dim=8, model_type="ministral3", rope_parameters={**YARN, "llama_4_scaling_beta": 0.3}
)

SEEING_EYES = dict(
    hidden_size=16, intermediate_size=16, depth=1, num_heads=2, patch_size=8, out_hidden_size=32, spatial_merge_size=1
)
SMALL = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
SMALL |= dict(num_key_value_heads=2, max_position_embeddings=64)
ROWS_AND_COLUMNS = dict(rope_type="default", rope_theta=10000.0, mrope_section=[2, 1, 1])
QWEN_3_TEXT = dict(**SMALL, head_dim=8, rope_parameters=dict(**ROWS_AND_COLUMNS, mrope_interleaved=True))
QWEN_2_TEXT = dict(**SMALL, rope_parameters=ROWS_AND_COLUMNS)
MIXTURE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
LLAMA = dict(**SMALL, model_type="llama")
CLIP = dict(**EYES, model_type="clip_vision_model")

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
    "qwen3-vl": (
        "Qwen3VL",
        dict(text_config=QWEN_3_TEXT, vision_config={**SEEING_EYES, "deepstack_visual_indexes": [0]}),
        "qwen3",
        False,
    ),
    "qwen3-vl-moe": (
        "Qwen3VLMoe",
        dict(
            text_config=dict(**QWEN_3_TEXT, **MIXTURE),
            vision_config={**SEEING_EYES, "deepstack_visual_indexes": [0]},
            tie_word_embeddings=True,
        ),
        "qwen3_moe",
        True,
    ),
    "qwen2.5-vl": ("Qwen2_5_VL", dict(text_config=QWEN_2_TEXT, vision_config=SEEING_EYES), "qwen2", False),
    "qwen2-vl": (
        "Qwen2VL",
        dict(
            text_config=QWEN_2_TEXT,
            vision_config=dict(embed_dim=16, hidden_size=32, depth=1, num_heads=2, patch_size=8),
        ),
        "qwen2",
        False,
    ),
    "internvl": (
        "InternVL",
        dict(text_config=dict(**SMALL, model_type="qwen3", head_dim=8), vision_config=dict(**EYES)),
        "qwen3",
        True,
    ),
    "smolvlm": ("SmolVLM", dict(text_config=LLAMA, vision_config=dict(**EYES), scale_factor=1), "llama", False),
    "llava": ("Llava", dict(text_config=LLAMA, vision_config=CLIP), "llama", False),
    "muse-glimmer": ("MuseGlimmer", INSIDE["muse-glimmer"][1], "muse_glimmer", False),
    "minimax-m3-vl": (
        "MiniMaxM3VL",
        dict(
            text_config=dict(SETTINGS["minimax-m3"][1]),
            vision_config=dict(**EYES, temporal_patch_size=1, spatial_merge_size=1),
            projector_hidden_size=16,
        ),
        "minimax_m3",
        False,
    ),
    "lfm3-vl": (
        "Lfm3Vl",
        dict(
            text_config=dict(**LLAMA_LIKE, head_dim=16, pad_token_id=0, model_type="lfm3"),
            vision_config=dict(**EYES, num_patches=4, model_type="siglip2_vision_model"),
        ),
        "lfm3",
        True,
    ),
    "gemma3": (
        "Gemma3",
        dict(text_config=dict(**LLAMA_LIKE, head_dim=16, sliding_window=7), vision_config=EYES),
        "gemma3",
        True,
    ),
}


def _build(case, folder):
    """A model of several inputs, saved."""
    import transformers

    name, settings, *_ = CASES[case]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**settings)
    kind = "MiniMaxM3Sparse" if name == "MiniMaxM3VL" else name
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2) if parameter.dim() > 1 else parameter.uniform_(0.5, 1.5)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("case", CASES)
def test_the_language_model_inside_is_read(case, tmp_path, capsys):
    *_, family, tied = CASES[case]
    model, ours = _build(case, tmp_path), load_model(tmp_path)
    assert "for other inputs are left out" in capsys.readouterr().err
    assert (ours.config.family.name, ours.tied) == (family, tied)
    tokens = torch.randint(0, 96, (2, 40))
    with torch.inference_mode():
        assert relative(ours(tokens), model(input_ids=tokens).logits) < 1e-5


@pytest.mark.parametrize("case", INSIDE)
def test_documents_are_packed_and_what_has_no_class_alone_goes_back(case, tmp_path):
    model, ours = _build(case, tmp_path), load_model(tmp_path)
    tokens = torch.randint(0, 96, (2, 27))
    packed = torch.cat([tokens[0, :13], tokens[1]])[None]
    with torch.inference_mode():
        logits = ours.head(ours.hidden(packed, lengths=[13, 27]))[0]
        theirs = [model(input_ids=tokens[:1, :13]).logits[0], model(input_ids=tokens[1:]).logits[0]]
    assert relative(logits, torch.cat(theirs)) < 1e-5

    written = hf_config_of(ours.config, tmp_path)
    again = Config.from_hf(written)
    for name, value in ours.config.computation().items():
        assert again.computation()[name] == (pytest.approx(value) if isinstance(value, float) else value), name
    saved = load_file(tmp_path / "model.safetensors")
    back = dict(WeightTable(ours.config).export_from(lazy(ours.state_dict())))
    text = {
        re.sub(r"^model\.language_model\.", "model.", name): tensor
        for name, tensor in saved.items()
        if name.startswith(("model.language_model.", "lm_head."))
    }
    assert back.keys() == text.keys()
    assert all(torch.equal(back[name], text[name]) for name in text)


@pytest.mark.parametrize("case", ["qwen3-vl", "qwen3-vl-moe", "qwen2.5-vl"])
def test_the_language_model_is_written_alone(case, tmp_path):
    import transformers

    _build(case, tmp_path / "whole")
    ours = load_model(tmp_path / "whole")
    weights = dict(WeightTable(ours.config).export_from(lazy(ours.state_dict())))
    (tmp_path / "config.json").write_text(json.dumps(hf_config_of(ours.config, tmp_path / "whole")))
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "model.safetensors")
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokens = torch.randint(0, 96, (1, 20))
    with torch.inference_mode():
        assert relative(ours(tokens), alone(tokens).logits) < 1e-5


def test_settings_at_the_top_are_the_language_models(tmp_path):
    text = {**QWEN_2_TEXT, "rope_theta": 5e5, "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}
    del text["rope_parameters"]
    whole = dict(architectures=["Qwen2_5_VLForConditionalGeneration"], model_type="qwen2_5_vl", vision_start_token_id=7)
    config = Config.from_hf({**whole, **text, "vision_config": SEEING_EYES, "use_sliding_window": False})
    assert (config.family.name, config.rope_base, config.n_query_groups) == ("qwen2", 500000, 2)


def test_no_two_families_read_one_type():
    types = [name for family in FAMILIES for name in (family.model_type, *family.inside) if BY_TYPE[name] is family]
    assert len(types) == len(set(types)) == len(BY_TYPE)


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
    found = stored_quantization(hf_config)
    assert found is not None and found.method == "awq"
    with pytest.raises(LitGPTError, match="quantized by 'abacus', which is not read here"):
        Config.from_hf({**hf_config, "quantization_config": {"quant_method": "abacus"}})

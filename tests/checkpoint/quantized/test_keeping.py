"""Weights that are stored in few bits stay in them for answers: the same numbers, in less memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from litgpt.checkpoint.layout import find_checkpoint
from litgpt.checkpoint.reader import load_model
from litgpt.engine.engine import Engine
from litgpt.engine.inference_model import InferenceModel
from litgpt.engine.placement import Placement
from litgpt.engine.sampling import Sampling
from litgpt.model import GPT
from litgpt.quantize import QuantizedLinear
from litgpt.quantize.linear import Int4Linear, Int8Linear
from tests.checkpoint.quantized.test_reader import CASES, PACKED_4, packed, store
from tests.checkpoint.quantized.test_reader import plain as plain
from tests.paths import ROOT
from tests.tiny import CASES as MODELS

KEPT = {
    **dict.fromkeys(("gptq", "gptq-v2", "gptq-2", "gptq-3", "gptq-other-bits", "auto-round", "awq"), Int4Linear),
    **dict.fromkeys(("w4a16", "w4a16-zeros", "w3a16"), Int4Linear),
    **dict.fromkeys(("w8a16", "int8-rows", "bnb-int8"), Int8Linear),
}
"""In float32, where each of their numbers is exact."""
SYMMETRIC = {"w4a16", "w8a16", "int8-rows", "bnb-int8"}
"""In 16 bits, too: no zero point has to be rounded."""


def kept(model: GPT) -> set[type]:
    return {type(layer) for layer in model.modules() if isinstance(layer, QuantizedLinear)}


@pytest.mark.parametrize("case", CASES)
def test_what_there_is_a_product_for_stays_and_says_the_same(case: str, plain: Path, tmp_path: Path, capsys):
    store(plain, tmp_path, *CASES[case])
    wide = load_model(tmp_path, dtype=torch.float32)
    assert not kept(wide)
    capsys.readouterr()
    model = load_model(tmp_path, dtype=torch.float32, keep_bits=True)
    assert kept(model) == ({KEPT[case]} if case in KEPT else set())
    said = capsys.readouterr().err
    assert ("stay in their bits" if case in KEPT else "they are read as plain numbers") in said
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            torch.testing.assert_close(layer.dequantized(), wide.get_submodule(name).weight, rtol=1e-6, atol=1e-7)
    tokens = torch.arange(40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(model(tokens), wide(tokens), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", sorted(KEPT))
def test_in_16_bits_only_what_loses_nothing_stays(case: str, plain: Path, tmp_path: Path):
    store(plain, tmp_path, *CASES[case])
    model = load_model(tmp_path, dtype=torch.bfloat16, keep_bits=True)
    assert kept(model) == ({KEPT[case]} if case in SYMMETRIC else set())
    exact = load_model(tmp_path, dtype=torch.float32)
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            weight = exact.get_submodule(name).weight
            assert ((layer.dequantized().float() - weight).abs() <= 2**-7 * weight.abs() + 1e-6).all()


def test_experts_stay_too(tmp_path: Path):

    import transformers

    name, settings = MODELS["qwen2-moe"]
    sizes = dict(hidden_size=64, moe_intermediate_size=32, shared_expert_intermediate_size=32, intermediate_size=64)
    torch.manual_seed(0)
    model = transformers.Qwen2MoeForCausalLM(
        getattr(transformers, name)(**{**settings, **sizes, "num_hidden_layers": 1})
    )
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for weight in [weight for weight in tensors if "mlp" in weight and weight.endswith("proj.weight")]:
        encoded, _ = packed(*tensors.pop(weight).shape)
        tensors |= {weight.removesuffix(".weight") + ending: tensor for ending, tensor in encoded.items()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": PACKED_4, "dtype": "float32"}))
    wide, few = load_model(tmp_path), load_model(tmp_path, dtype=torch.float32, keep_bits=True)
    assert all(isinstance(layer, Int4Linear) for layer in few.transformer.h[0].mlp.experts.fc_1)
    assert not isinstance(few.transformer.h[0].mlp.gate, QuantizedLinear)
    tokens = torch.arange(40)[None]
    with torch.inference_mode():
        torch.testing.assert_close(few(tokens), wide(tokens), rtol=1e-3, atol=1e-4)


def test_answers_come_from_it_and_the_memory_shows_it(plain: Path, tmp_path: Path):
    store(plain, tmp_path, *CASES["w4a16"])
    model = Placement.of("cpu", "32-true").open(find_checkpoint(tmp_path), keep_bits=True)
    wide = load_model(tmp_path, dtype=torch.float32)
    block, plainly = model.transformer.h[0].mlp.fc_1, wide.transformer.h[0].mlp.fc_1
    nbytes = sum(tensor.nbytes for tensor in (*block.parameters(), *block.buffers()))
    assert nbytes < plainly.weight.nbytes / 4
    answers = [
        Engine(one, length=40).submit([5, 6, 7], Sampling(temperature=0), max_new_tokens=12).result()
        for one in (model, wide)
    ]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(("precision", "stays"), [("bf16-true", True), ("32-true", False)])
def test_a_model_that_answers_keeps_bits_where_that_saves_time(
    precision: str, stays: bool, plain: Path, tmp_path: Path
):
    store(plain, tmp_path, *CASES["w4a16"])
    for file in (ROOT / "litgpt" / "assets" / "austen-2m").glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    model = InferenceModel.load(tmp_path, "cpu", precision)
    assert bool(kept(model.model)) == stays

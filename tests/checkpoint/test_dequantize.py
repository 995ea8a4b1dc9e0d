"""Weights stored in few bits come out as the formats' definitions say."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from litgpt.checkpoint.dequantize import dequantized, from_fp8_blocks, from_mxfp4
from litgpt.checkpoint.reader import load_model
from litgpt.checkpoint.weights import lazy
from litgpt.errors import LitGPTError
from tests.tiny import hf_folder

CODES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def one_by_one(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """MXFP4 as its definition reads: sign, two bits of exponent, one of mantissa; 32 numbers share a power of two."""
    values = []
    for block, scale in zip(blocks.reshape(-1, 16).tolist(), scales.flatten().tolist(), strict=True):
        for byte in block:
            for code in (byte & 15, byte >> 4):
                values.append((-1 if code & 8 else 1) * CODES[code & 7] * 2.0 ** (scale - 127))
    return torch.tensor(values).view(*scales.shape[:-1], -1)


def test_mxfp4_equals_its_definition():
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (2, 3, 4, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(110, 140, (2, 3, 4), dtype=torch.uint8, generator=generator)
    assert torch.equal(from_mxfp4(blocks, scales).float(), one_by_one(blocks, scales))


@pytest.mark.parametrize("shape", [(256, 256), (130, 300), (5, 7)])
def test_fp8_blocks_equal_their_definition(shape):
    weight = torch.randn(shape).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-shape[0] // 128), -(-shape[1] // 128)) + 0.5
    expected = torch.empty(shape)
    for row in range(shape[0]):
        for column in range(0, shape[1], 128):
            block = slice(column, column + 128)
            expected[row, block] = weight[row, block].float() * scales[row // 128, column // 128]
    assert torch.equal(from_fp8_blocks(weight, scales), expected.to(torch.bfloat16))


@pytest.mark.parametrize("block", [[128, 128], None])
def test_a_folder_in_fp8_opens_as_the_model_it_was_made_from(block, tmp_path):
    folder = hf_folder("llama", tmp_path)
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    expected = {}
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        scale = tensors[name].abs().max() / 448
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale.view(1, 1) if block else scale.clone()
        if block is None:
            tensors[name.replace("weight", "activation_scale")] = torch.tensor(0.1)
        expected[name] = tensors[name].float() * scale
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": block}
    (folder / "config.json").write_text(json.dumps(config))
    weight = load_model(folder, dtype=torch.float32).transformer.h[1].mlp.proj.weight
    torch.testing.assert_close(weight, expected["model.layers.1.mlp.down_proj.weight"], rtol=2**-8, atol=0)


@pytest.mark.parametrize(
    ("how", "word"),
    [({"quant_method": "awq"}, "awq"), ({"quant_method": "fp8", "weight_block_size": [64, 64]}, r"\[64, 64\]")],
)
def test_weights_in_another_form_are_refused_by_name(how, word, tmp_path):
    folder = hf_folder("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": how}))
    with pytest.raises(LitGPTError, match=word):
        load_model(folder)


def test_codes_without_their_scales_are_told():
    with pytest.raises(LitGPTError, match="w_blocks"):
        dequantized(lazy({"w_blocks": torch.zeros(1, 1, 1, 16, dtype=torch.uint8), "x": torch.zeros(1)}))


def test_gpt_oss_in_mxfp4_opens_as_the_model_it_was_made_from(tmp_path):
    folder = hf_folder("gpt-oss", tmp_path)
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    generator = torch.Generator().manual_seed(0)
    stacks = [name for name in tensors if name.endswith("_proj") and "experts" in name]
    for name in stacks:
        experts, inner, outer = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, outer, inner // 32, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(120, 126, (experts, outer, inner // 32), dtype=torch.uint8, generator=generator)
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model = load_model(folder, dtype=torch.float32)
    down = one_by_one(*(tensors[f"model.layers.1.mlp.experts.down_proj_{part}"] for part in ("blocks", "scales")))
    assert torch.equal(model.transformer.h[1].mlp.experts.proj, down)
    both = one_by_one(*(tensors[f"model.layers.1.mlp.experts.gate_up_proj_{part}"] for part in ("blocks", "scales")))
    assert torch.equal(model.transformer.h[1].mlp.experts.fc_1, both[:, 0::2])
    assert torch.equal(model.transformer.h[1].mlp.experts.fc_2, both[:, 1::2])

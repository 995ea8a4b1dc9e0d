"""Folders in few bits compute the same here as in the libraries that wrote them, and those written here open there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from litgpt.checkpoint.reader import load_model
from litgpt.scripts.quantize import quantize_checkpoint
from tests.gguf_models import bpe_folder, hf_folder
from tests.tiny import LLAMA_LIKE

pytestmark = pytest.mark.slow

SCHEMES = ["W4A16", "W4A16_ASYM", "W8A16", "W3A16", "W8A8", "FP8", "FP8_DYNAMIC", "FP8_BLOCK", "NVFP4A16", "MXFP4A16"]
SCHEMES += ["MXFP8A16"]
IDS = torch.tensor([[5, 9, 33, 77, 20, 7, 8, 9]])


def tiny(**changes: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = dict(hidden_size=128, intermediate_size=256, head_dim=32, num_hidden_layers=2, num_key_value_heads=4)
    return LlamaForCausalLM(LlamaConfig(**{**LLAMA_LIKE, **sizes, **changes})).eval()


def ours(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return load_model(folder, dtype=torch.float32)(IDS).float()


def theirs(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.inference_mode():
        return AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheme", SCHEMES)
def test_compressed_tensors_own_folders_give_its_logits(scheme: str, tmp_path: Path):
    library = pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams

    model = tiny()
    weights = library.quantization.preset_name_to_scheme(scheme, ["Linear"]).weights
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    apply_quantization_config(model, QuantizationConfig(config_groups=groups, ignore=["lm_head"]))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            blocks = blocks_of(module.weight, weights)
            of_all = None
            if hasattr(module, "weight_global_scale"):
                of_all = 448 * 6 / module.weight.abs().max()
                module.weight_global_scale.data.fill_(of_all)
            low, high = blocks.amin(-1), blocks.amax(-1)
            scale, zero = calculate_qparams(low, high, weights, global_scale=of_all)
            module.weight_scale.data.copy_(scale.view(module.weight_scale.shape))
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data.copy_(zero.view(module.weight_zero_point.shape))
    compressor = library.ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path)
    compressor.update_config(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"]
    compressor.decompress_model(model)
    with torch.inference_mode():
        expected = model.float()(IDS).logits
    atol = 5e-3 if "FP4" in scheme else 2e-5  # whose weights become bfloat16 there
    torch.testing.assert_close(ours(tmp_path), expected, rtol=1e-3, atol=atol)


def blocks_of(weight: torch.Tensor, args: Any) -> torch.Tensor:
    """What shares a scale, last."""
    if args.block_structure:
        rows, columns = args.block_structure
        return weight.unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).transpose(1, 2).flatten(2)
    if args.group_size and args.group_size > 0:
        return weight.unflatten(1, (-1, args.group_size))
    return weight[:, None] if args.strategy == "channel" else weight.flatten()[None]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("to", ["w4a16", "int8", "fp8"])
@pytest.mark.parametrize("case", ["llama", "qwen2", "olmo2", "phi3"])
def test_folders_that_are_written_here_open_in_transformers(case: str, to: str, tmp_path: Path):
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    model_folder = hf_folder(case, tmp_path / "hf", bpe_folder(tmp_path / "bpe"), **sizes)
    quantize_checkpoint(model_folder, to, out_dir=tmp_path / "few")
    plain = CompressedTensorsConfig(run_compressed=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "few", quantization_config=plain, dtype=torch.bfloat16)
    if to == "fp8":  # whose inputs are rounded there as well
        from compressed_tensors.quantization import disable_quantization

        model.apply(disable_quantization)
    with torch.inference_mode():
        expected = model.eval().float()(IDS).logits
    torch.testing.assert_close(ours(tmp_path / "few"), expected, rtol=1e-3, atol=1e-3)
    own = load_model(tmp_path / "few").state_dict()["transformer.h.1.mlp.proj.weight"]
    assert torch.equal(own, dict(model.named_parameters())["model.layers.1.mlp.down_proj.weight"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_own_folders_give_its_logits(nested: bool, tmp_path: Path):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny().save_pretrained(tmp_path / "plain")
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=nested,
        bnb_4bit_compute_dtype=torch.float32,
    )
    AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=how).save_pretrained(tmp_path / "few")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "few", dtype=torch.float32)
    # By the package's own widening: its products are in bfloat16 on processors that have it.
    for name, layer in list(model.named_modules()):
        if isinstance(layer, bitsandbytes.nn.Linear4bit):
            wide = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            plain.weight, plain.bias = torch.nn.Parameter(wide.float()), layer.bias
            model.set_submodule(name, plain)
    with torch.inference_mode():
        expected = model.eval()(IDS).logits
    torch.testing.assert_close(ours(tmp_path / "few"), expected, rtol=1e-3, atol=2e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_torchao_own_folders_give_its_logits(kind: str, tmp_path: Path):
    library = pytest.importorskip("torchao.quantization")
    from transformers import AutoModelForCausalLM, TorchAoConfig

    tiny().save_pretrained(tmp_path / "plain")
    make = {"int8": library.Int8WeightOnlyConfig, "fp8": library.Float8WeightOnlyConfig}[kind]
    how = TorchAoConfig(make(version=2))
    AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=how).save_pretrained(tmp_path / "few")
    torch.testing.assert_close(ours(tmp_path / "few"), theirs(tmp_path / "few"), rtol=1e-3, atol=2e-4)

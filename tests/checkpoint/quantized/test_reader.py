"""Weights stored in few bits come out as the formats' definitions say: written here one number at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from litgpt.__main__ import main
from litgpt.checkpoint.convert import to_litgpt
from litgpt.checkpoint.quantized.reader import dequantized, pack_bits, unpack_bits
from litgpt.checkpoint.reader import load_model, load_pth
from litgpt.checkpoint.weights import lazy
from litgpt.errors import LitGPTError
from litgpt.families.quantization_config import METHODS, stored_quantization
from tests.tiny import LLAMA_LIKE, hf_folder

FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
NF4 = torch.linspace(-1, 1, 16) ** 3
Encoded = tuple[dict[str, Tensor], Tensor]
"""The tensors that a weight is stored in, by the endings of their names, and the weight they stand for, float64."""


def words(codes: list[list[int]], bits: int) -> Tensor:
    """Rows of codes as 32-bit words: the bits of one after those of the other, lowest first."""
    rows = []
    for row in codes:
        number = sum(code << bits * place for place, code in enumerate(row))
        count = -(-len(row) * bits // 32)
        rows.append([number >> 32 * word & 0xFFFFFFFF for word in range(count)])
    return torch.tensor(rows, dtype=torch.int64).to(torch.uint32).view(torch.int32)


def draw(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape)


def scales_of(*shape: int) -> Tensor:
    return torch.rand(*shape).half() / 20 + 0.01


def gptq(rows: int, columns: int, bits: int = 4, size: int = 32, ordered: bool = False, less: int = 1) -> Encoded:
    codes, groups = draw(2**bits, rows, columns), torch.arange(columns) // size
    if ordered:
        groups = groups[torch.randperm(columns)]
    zeros, scales = draw(2**bits - less, columns // size, rows) + less, scales_of(columns // size, rows)
    exact = (codes - zeros.t()[:, groups]) * scales.t()[:, groups].double()
    tensors = {
        ".qweight": words(codes.tolist(), bits).t().contiguous(),
        ".qzeros": words((zeros - less).tolist(), bits),
        ".scales": scales,
        ".g_idx": groups.int(),
    }
    return tensors, exact


def awq(rows: int, columns: int, size: int = 32) -> Encoded:
    codes, zeros, scales = draw(16, rows, columns), draw(16, columns // size, rows), scales_of(columns // size, rows)
    order = [column for start in range(0, rows, 8) for column in (start + i for i in (0, 2, 4, 6, 1, 3, 5, 7))]
    exact = (codes - zeros.t().repeat_interleave(size, 1)) * scales.t().double().repeat_interleave(size, 1)
    tensors = {
        ".qweight": words(codes.t()[:, order].tolist(), 4),
        ".qzeros": words(zeros[:, order].tolist(), 4),
        ".scales": scales,
    }
    return tensors, exact


def packed(
    rows: int, columns: int, bits: int = 4, size: int = 32, zero: bool = False, ordered: bool = False
) -> Encoded:
    codes, groups = draw(2**bits, rows, columns), torch.arange(columns) // size
    if ordered:
        groups = groups[torch.randperm(columns)]
    scales = scales_of(rows, columns // size)
    zeros = draw(2**bits, rows, columns // size) if zero else torch.full((rows, columns // size), 2 ** (bits - 1))
    exact = (codes - zeros[:, groups]) * scales.double()[:, groups]
    tensors = {".weight_packed": words(codes.tolist(), bits), ".weight_scale": scales}
    tensors[".weight_shape"] = torch.tensor([rows, columns])
    if zero:
        tensors[".weight_zero_point"] = words(zeros.t().tolist(), bits).t().contiguous()
    if ordered:
        tensors[".weight_g_idx"] = groups.int()
    return tensors, exact


def fp8_scaled(rows: int, columns: int, kind: str, ending: str = ".weight_scale", block: int = 48) -> Encoded:
    codes = torch.randn(rows, columns).to(torch.float8_e4m3fn)
    shape = {"tensor": (1,), "row": (rows, 1), "block": (-(-rows // block), -(-columns // block))}[kind]
    scales = torch.rand(shape) + 0.1
    exact = torch.empty(rows, columns, dtype=torch.float64)
    for row in range(rows):
        for column in range(columns):
            place = {"tensor": (0,), "row": (row, 0), "block": (row // block, column // block)}[kind]
            exact[row, column] = codes[row, column].double() * scales[place].double()
    return {".weight": codes, ending: scales, ".input_scale": torch.ones(1)}, exact


def int8_rows(rows: int, columns: int) -> Encoded:
    codes, scales = torch.randint(-128, 128, (rows, columns), dtype=torch.int8), torch.rand(rows, 1) / 50
    return {".weight": codes, ".weight_scale": scales}, codes * scales.double()


def fp4(rows: int, columns: int, size: int, power: bool, names: tuple[str, str, str]) -> Encoded:
    codes, groups = draw(16, rows, columns), torch.arange(columns) // size
    octets = (codes[:, 0::2] | codes[:, 1::2] << 4).to(torch.uint8)
    values = torch.tensor(FP4, dtype=torch.float64)[codes]
    weight, scale, of_all = names
    if power:
        exponents = torch.randint(110, 130, (rows, columns // size), dtype=torch.uint8)
        return {weight: octets, scale: exponents}, values * 2.0 ** (exponents.double() - 127)[:, groups]
    scales, whole = (torch.rand(rows, columns // size) * 400).to(torch.float8_e4m3fn), torch.tensor([37.5])
    factor = 1 / whole.double() if of_all.endswith("global_scale") else whole.double() / 1000
    stored = whole if of_all.endswith("global_scale") else whole / 1000
    return {weight: octets, scale: scales, of_all: stored}, values * scales.double()[:, groups] * factor


def bnb_4bit(rows: int, columns: int, nested: bool) -> Encoded:
    codes, blocks = draw(16, rows * columns), torch.arange(rows * columns) // 64
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [rows, columns]}
    tensors = {".weight": (codes[0::2] << 4 | codes[1::2]).to(torch.uint8)[:, None], ".weight.quant_map": NF4.clone()}
    absmax = torch.rand(rows * columns // 64)
    if nested:
        state |= {"nested_blocksize": 16, "nested_dtype": "float32", "nested_offset": 0.25}
        of_scales, few = torch.linspace(-1, 1, 256), torch.rand(-(-len(absmax) // 16))
        small = draw(256, len(absmax))
        tensors |= {".weight.absmax": small.to(torch.uint8), ".weight.nested_quant_map": of_scales}
        tensors[".weight.nested_absmax"] = few
        absmax = of_scales.double()[small] * few.double()[torch.arange(len(small)) // 16] + 0.25
    else:
        tensors[".weight.absmax"] = absmax
    told = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    tensors[".weight.quant_state.bitsandbytes__nf4"] = told
    return tensors, (NF4.double()[codes] * absmax.double()[blocks]).view(rows, columns)


def bnb_8bit(rows: int, columns: int) -> Encoded:
    codes, largest = torch.randint(-127, 128, (rows, columns), dtype=torch.int8), torch.rand(rows)
    tensors = {".weight": codes, ".SCB": largest, ".weight_format": torch.zeros((), dtype=torch.uint8)}
    return tensors, codes * (largest.double() / 127)[:, None]


def torchao_int8(rows: int, columns: int) -> Encoded:
    codes, scales = torch.randint(-128, 128, (rows, columns), dtype=torch.int8), torch.rand(rows, columns // 32) / 50
    zeros = torch.randint(-8, 8, scales.shape, dtype=torch.int8)
    spread = [part.double().repeat_interleave(32, 1) for part in (zeros, scales)]
    tensors = {"._weight_qdata": codes, "._weight_scale": scales, "._weight_zero_point": zeros}
    return tensors, (codes - spread[0]) * spread[1]


def compressed(layout: str, weights: dict[str, Any]) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    return {"quant_method": "compressed-tensors", "format": layout, "config_groups": {"group_0": group}}


def whole(bits: int, strategy: str = "group") -> dict[str, Any]:
    return {"num_bits": bits, "type": "int", "strategy": strategy, "symmetric": True}


MODELOPT = (".weight", ".weight_scale", ".weight_scale_2")
CT_FP4 = (".weight_packed", ".weight_scale", ".weight_global_scale")
FLOAT_8 = {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [48, 48]}
PACKED_4, GPTQ_4 = compressed("pack-quantized", whole(4)), {"quant_method": "gptq", "bits": 4, "group_size": 32}
CASES: dict[str, tuple[Callable[[int, int], Encoded], dict[str, Any]]] = {
    "gptq": (gptq, GPTQ_4),
    "gptq-ordered": (lambda r, c: gptq(r, c, ordered=True), {**GPTQ_4, "desc_act": True}),
    "gptq-v2": (lambda r, c: gptq(r, c, less=0), {**GPTQ_4, "checkpoint_format": "gptq_v2"}),
    **{f"gptq-{bits}": (lambda r, c, bits=bits: gptq(r, c, bits), {**GPTQ_4, "bits": bits}) for bits in (2, 3, 8)},
    "gptq-other-bits": (lambda r, c: gptq(r, c, 8 if r == 64 else 4), {**GPTQ_4, "dynamic": {"+:x": {"bits": 8}}}),
    "auto-round": (gptq, {**GPTQ_4, "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}),
    "awq": (awq, {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}),
    "w4a16": (packed, PACKED_4),
    "w4a16-zeros": (lambda r, c: packed(r, c, zero=True), PACKED_4),
    "w4a16-ordered": (lambda r, c: packed(r, c, ordered=True), PACKED_4),
    "w8a16": (lambda r, c: packed(r, c, 8, c), compressed("pack-quantized", whole(8, "channel"))),
    "w3a16": (lambda r, c: packed(r, c, 3, zero=True), compressed("pack-quantized", whole(3))),
    "int8-rows": (int8_rows, compressed("int-quantized", whole(8, "channel"))),
    "ct-fp8-tensor": (lambda r, c: fp8_scaled(r, c, "tensor"), compressed("float-quantized", FLOAT_8)),
    "ct-fp8-row": (lambda r, c: fp8_scaled(r, c, "row"), compressed("float-quantized", FLOAT_8)),
    "ct-fp8-block": (lambda r, c: fp8_scaled(r, c, "block"), compressed("float-quantized", FLOAT_8)),
    "fbgemm": (lambda r, c: fp8_scaled(r, c, "row"), {"quant_method": "fbgemm_fp8"}),
    "fp8-tensor": (*(lambda r, c: fp8_scaled(r, c, "tensor", ".weight_scale_inv"), {"quant_method": "fp8"}),),
    "fp8-block": (
        lambda r, c: fp8_scaled(r, c, "block", ".weight_scale_inv"),
        {"quant_method": "fp8", "weight_block_size": [48, 48]},
    ),
    "nvfp4": (
        lambda r, c: fp4(r, c, 16, False, CT_FP4),
        compressed("nvfp4-pack-quantized", {**whole(4), "type": "float"}),
    ),
    "mxfp4": (
        lambda r, c: fp4(r, c, 32, True, CT_FP4),
        compressed("mxfp4-pack-quantized", {**whole(4), "type": "float"}),
    ),
    "modelopt-nvfp4": (
        lambda r, c: fp4(r, c, 16, False, MODELOPT),
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    ),
    "modelopt-fp8": (lambda r, c: fp8_scaled(r, c, "tensor"), {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "nf4": (lambda r, c: bnb_4bit(r, c, False), {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "nf4-nested": (lambda r, c: bnb_4bit(r, c, True), {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "bnb-int8": (bnb_8bit, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "torchao": (
        torchao_int8,
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}},
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("plain")
    sizes = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=1)
    LlamaForCausalLM(LlamaConfig(**{**LLAMA_LIKE, **sizes})).save_pretrained(folder)
    return folder


def store(plain: Path, folder: Path, encode: Callable[[int, int], Encoded], how: dict[str, Any]) -> dict[str, Tensor]:
    """A folder whose layers are stored in another way; returns what its tensors stand for."""
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    tensors = {name: tensor.clone() for name, tensor in load_file(plain / "model.safetensors").items()}
    expected = dict(tensors)
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        encoded, expected[name] = encode(*tensors.pop(name).shape)
        tensors |= {name.removesuffix(".weight") + ending: tensor for ending, tensor in encoded.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((plain / "config.json").read_text())
    config |= {"quantization_config": how, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    return expected


@pytest.mark.parametrize("case", CASES)
def test_a_folder_in_few_bits_opens_as_what_its_format_says(case: str, plain: Path, tmp_path: Path, capsys):
    expected = store(plain, tmp_path / "few", *CASES[case])
    block = load_model(tmp_path / "few").transformer.h[0]
    prefix = "model.layers.0."
    attention = [expected[f"{prefix}self_attn.{part}_proj.weight"] for part in "qkv"]
    for found, exact in (
        (block.attn.qkv.weight, torch.cat(attention)),
        (block.attn.proj.weight, expected[f"{prefix}self_attn.o_proj.weight"]),
        (block.mlp.fc_1.weight, expected[f"{prefix}mlp.gate_proj.weight"]),
        (block.mlp.proj.weight, expected[f"{prefix}mlp.down_proj.weight"]),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-7)
    said = capsys.readouterr()
    assert said.err.count("its weights are stored by") == 1
    assert CASES[case][1]["quant_method"] in METHODS


def test_every_method_has_a_case():
    assert {how["quant_method"] for _, how in CASES.values()} | {"mxfp4"} == set(METHODS)


def test_a_folder_in_few_bits_is_converted(plain: Path, tmp_path: Path):
    expected = store(plain, tmp_path / "few", *CASES["gptq"])
    to_litgpt(tmp_path / "few", dtype=torch.float32)
    weight = load_pth(tmp_path / "few" / "lit_model.pth")["transformer.h.0.mlp.proj.weight"]
    torch.testing.assert_close(weight.double(), expected["model.layers.0.mlp.down_proj.weight"], rtol=1e-6, atol=1e-7)


def test_show_names_how_weights_are_stored(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    store(plain, tmp_path / "few", *CASES["gptq"])
    assert main(["show", str(tmp_path / "few")]) == 0
    assert "GPTQ, 4 bits in groups of 32" in capsys.readouterr().out


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 31, 32, 77])
def test_codes_are_packed_as_a_stream_of_bits(bits: int, count: int):
    codes = draw(2**bits, 3, count)
    assert torch.equal(pack_bits(codes.to(torch.uint8), bits), words(codes.tolist(), bits))
    assert torch.equal(unpack_bits(words(codes.tolist(), bits), bits, count).long(), codes)


REFUSED = [
    ({"quant_method": "awqq"}, "'awqq'.*Closest: awq"),
    ({"quant_method": "aqlm"}, "'aqlm'"),
    ({"quant_method": "awq", "version": "gemv"}, "gemv"),
    ({"quant_method": "gptq", "bits": 5}, "5 bits"),
    ({"quant_method": "gptq"}, "gptq can't have.*bits"),
    ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "marlin"),
    ({"quant_method": "fp8", "weight_block_size": [0, 64]}, r"\[0, 64\]"),
    ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "marlin-24"),
    ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse-24"),
    ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "W4A8_AWQ"),
    ("gptq", "quantization_config"),
]


@pytest.mark.parametrize(("how", "word"), REFUSED)
def test_weights_in_another_form_are_refused_by_name(how: Any, word: str, plain: Path, tmp_path: Path):
    config = json.loads((plain / "config.json").read_text())
    (tmp_path / "model.safetensors").symlink_to(plain / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": how}))
    with pytest.raises(LitGPTError, match=word):
        load_model(tmp_path)


DAMAGED = [
    ("gptq", ".g_idx", lambda groups: groups + 7, "group 8 of 2"),
    ("gptq", ".qweight", lambda packed: packed[:-3], "can't hold"),
    ("gptq", ".scales", lambda scales: scales[:, :-8], "few bits|no file of weights"),
    ("awq", ".scales", lambda scales: scales[:-1], "no file of weights"),
    ("w4a16", ".weight_shape", lambda shape: shape * 0 + 2**40, "can't hold"),
    ("w4a16", ".weight_scale", lambda scale: scale[1:], "no file of weights"),
    ("nf4", ".weight.absmax", lambda absmax: absmax[1:], "can't hold"),
    ("nf4", ".weight.quant_state.bitsandbytes__nf4", lambda state: state[:-2], "no file of weights"),
    ("fp8-block", ".weight_scale_inv", lambda scale: scale[:, :0], "fit|no file of weights"),
    ("int8-rows", ".weight", lambda codes: codes.float(), "float32"),
]


@pytest.mark.parametrize(("case", "ending", "damage", "word"), DAMAGED)
def test_parts_that_do_not_fit_are_told(case, ending, damage, word, plain: Path, tmp_path: Path):
    encode, how = CASES[case]

    def broken(rows: int, columns: int) -> Encoded:
        tensors, exact = encode(rows, columns)
        return {**tensors, ending: damage(tensors[ending]).contiguous()}, exact

    store(plain, tmp_path / "few", broken, how)
    with pytest.raises(LitGPTError, match=word):
        load_model(tmp_path / "few")


def test_codes_without_their_scales_are_told():
    for part in ("w_blocks", "w.qweight", "w.weight_packed"):
        with pytest.raises(LitGPTError, match=f"{part}.*without"):
            dequantized(lazy({part: torch.zeros(1, 1, 1, 16, dtype=torch.uint8), "x": torch.zeros(1)}))


def test_the_computing_dtype_is_the_models(plain: Path):
    config = json.loads((plain / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    del config["dtype"]
    assert stored_quantization({**config, "torch_dtype": "torch.float16"}).dtype == "float16"
    assert stored_quantization(config).dtype == "bfloat16"
    assert stored_quantization({"text_config": config}).description.startswith("FP8")
    assert stored_quantization({**config, "quantization_config": {}}) is None


@pytest.mark.parametrize("shape", [(130, 300), (5, 7)])
def test_fp8_of_stacked_experts_equals_its_definition(shape):
    codes = torch.randn(2, *shape).to(torch.float8_e4m3fn)
    scales = torch.rand(2, -(-shape[0] // 128), -(-shape[1] // 128)) + 0.5
    expected = torch.empty(2, *shape)
    for expert in range(2):
        for row in range(shape[0]):
            for column in range(0, shape[1], 128):
                block = slice(column, column + 128)
                expected[expert, row, block] = (
                    codes[expert, row, block].float() * scales[expert, row // 128, column // 128]
                )
    found = dequantized(lazy({"experts.w": codes, "experts.w_scale_inv": scales})).fetch("experts.w")
    assert torch.equal(found, expected.to(torch.bfloat16))


def one_by_one(blocks: Tensor, scales: Tensor) -> Tensor:
    """MXFP4 as its definition reads: sign, two bits of exponent, one of mantissa; 32 numbers share a power of two."""
    values = []
    for block, scale in zip(blocks.reshape(-1, 16).tolist(), scales.flatten().tolist(), strict=True):
        for byte in block:
            for code in (byte & 15, byte >> 4):
                values.append(math.ldexp(FP4[code], scale - 127))
    return torch.tensor(values).view(*scales.shape[:-1], -1)


def test_gpt_oss_in_mxfp4_opens_as_the_model_it_was_made_from(tmp_path):
    folder = hf_folder("gpt-oss", tmp_path)
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    generator = torch.Generator().manual_seed(0)
    stacks = [name for name in tensors if name.endswith("_proj") and "experts" in name]
    for name in stacks:
        experts, inner, outer = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, outer, inner // 32, 16), dtype=torch.uint8, generator=generator)
        scales = torch.randint(110, 140, (experts, outer, inner // 32), dtype=torch.uint8, generator=generator)
        tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks, scales
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model = load_model(folder, dtype=torch.float32)
    down = one_by_one(*(tensors[f"model.layers.1.mlp.experts.down_proj_{part}"] for part in ("blocks", "scales")))
    assert torch.equal(model.transformer.h[1].mlp.experts.proj, down)
    both = one_by_one(*(tensors[f"model.layers.1.mlp.experts.gate_up_proj_{part}"] for part in ("blocks", "scales")))
    assert torch.equal(model.transformer.h[1].mlp.experts.fc_1, both[:, 0::2])
    assert torch.equal(model.transformer.h[1].mlp.experts.fc_2, both[:, 1::2])

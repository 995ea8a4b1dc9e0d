"""`litgpt quantize`: folders and files in few bits, which open here and elsewhere as what was rounded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from litgpt.__main__ import main
from litgpt.checkpoint.layout import find_checkpoint
from litgpt.checkpoint.quantized.writer import LAYOUTS
from litgpt.checkpoint.reader import load_model, open_weights
from litgpt.quantize.rounding import round_to_fp8, round_to_nearest
from tests.gguf_models import bpe_folder, hf_folder

SIZES = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
IDS = torch.tensor([[5, 9, 33, 77, 120, 200, 7, 8]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    return hf_folder("llama", place / "hf", bpe_folder(place / "bpe"), **SIZES)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("the world is all that is the case, and it is 12345 times hello. " * 40)
    return file


def logits(path: Path) -> torch.Tensor:
    with torch.inference_mode():
        return load_model(path, dtype=torch.float32)(IDS)


@pytest.mark.parametrize("to", LAYOUTS)
def test_a_folder_opens_as_its_rounded_weights(to: str, folder: Path, tmp_path: Path, capsys):
    assert main(["quantize", str(folder), "--to", to, "--out_dir", str(tmp_path / "few")]) == 0
    assert "rounded to nearest" in capsys.readouterr().out
    original, made = (dict(open_weights(find_checkpoint(path))) for path in (folder, tmp_path / "few"))
    layout = LAYOUTS[to]
    for name, weight in original.items():
        expected = weight
        if name.endswith(("qkv.weight", "proj.weight", "fc_1.weight", "fc_2.weight")):
            rounded = round_to_nearest(weight, layout.grid(32 if layout.grouped else None, torch.bfloat16))
            expected = rounded.dequantized()
            if to == "fp8":
                rounded = round_to_fp8(weight)
                expected = rounded.codes.float() * rounded.scales
        assert torch.equal(made[name], expected.to(torch.bfloat16)), name
    config = json.loads((tmp_path / "few" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] in ("gptq", "awq", "compressed-tensors")
    assert (tmp_path / "few" / "tokenizer.json").is_file()


def nibble(words: torch.Tensor, row: int, word: int, place: int) -> int:
    return (int(words[row, word]) & 0xFFFFFFFF) >> 4 * place & 15


def gptq_number(stored: dict[str, torch.Tensor], row: int, column: int) -> float:
    """A weight by the packing of GPTQ's first version: eight rows of the transposed weight a word, zeros less one."""
    group = int(stored["g_idx"][column])
    code = nibble(stored["qweight"], column // 8, row, column % 8)
    zero = nibble(stored["qzeros"], group, row // 8, row % 8) + 1
    return (code - zero) * float(stored["scales"][group, row])


def awq_number(stored: dict[str, torch.Tensor], row: int, column: int) -> float:
    """A weight by the packing of AWQ's gemm: the bits of a word belong to its rows 0, 2, 4, 6, 1, 3, 5 and 7."""
    size = stored["qweight"].size(0) // stored["scales"].size(0)
    place = (0, 2, 4, 6, 1, 3, 5, 7).index(row % 8)
    code = nibble(stored["qweight"], column, row // 8, place)
    zero = nibble(stored["qzeros"], column // size, row // 8, place)
    return (code - zero) * float(stored["scales"][column // size, row])


@pytest.mark.parametrize(("to", "number"), [("gptq", gptq_number), ("awq", awq_number)])
def test_what_is_packed_is_the_nearest_number_by_the_layouts_own_definition(to, number, folder: Path, tmp_path: Path):
    assert main(["quantize", str(folder), "--to", to, "--out_dir", str(tmp_path / "few")]) == 0
    base = "model.layers.1.mlp.up_proj"
    stored = {
        name.removeprefix(f"{base}."): tensor
        for name, tensor in load_file(tmp_path / "few" / "model.safetensors").items()
        if name.startswith(base)
    }
    weight = load_file(folder / "model.safetensors")[f"{base}.weight"].float()
    steps = stored["scales"].float().t().repeat_interleave(weight.size(1) // len(stored["scales"]), 1)
    for row in range(0, weight.size(0), 5):
        for column in range(weight.size(1)):
            off = abs(number(stored, row, column) - float(weight[row, column]))
            assert off <= 0.51 * float(steps[row, column]), (row, column)


@pytest.mark.parametrize("to", ["gptq", "awq", "w4a16", "int8"])
def test_data_brings_answers_nearer_to_the_original(to: str, folder: Path, text: Path, tmp_path: Path):
    """On the data itself, where that is what the method minimizes."""
    from litgpt.tokenizer import Tokenizer

    flags = ["--samples", "8", "--sequence_length", "64", "--device", "cpu"]
    assert main(["quantize", str(folder), "--to", to, "--out_dir", str(tmp_path / "plain")]) == 0
    given = ["--data", str(text), *flags]
    assert main(["quantize", str(folder), "--to", to, "--out_dir", str(tmp_path / "by_data"), *given]) == 0
    ids = torch.tensor([Tokenizer(folder).encode_ids(text.read_text())[:256]]).view(-1, 64)
    with torch.inference_mode():
        original, plain, by_data = (
            load_model(path, dtype=torch.float32)(ids).log_softmax(-1)
            for path in (folder, tmp_path / "plain", tmp_path / "by_data")
        )
    losses = [float((original.exp() * (original - made)).sum(-1).mean()) for made in (plain, by_data)]
    # AWQ chooses among few scalings: how much one of them gains hangs on how the machine rounds.
    assert losses[1] < {"int8": 1.02, "awq": 0.97}.get(to, 0.9) * losses[0]


@pytest.mark.parametrize("kind", ["q4_k_m", "q5_k_m", "q6_k", "q8_0"])
def test_a_gguf_file_is_written(kind: str, folder: Path, text: Path, tmp_path: Path):
    pytest.importorskip("gguf")
    data = [] if kind == "q8_0" else ["--data", str(text), "--samples", "4", "--sequence_length", "64"]
    out = ["--out_dir", str(tmp_path / "few"), *data]
    assert main(["quantize", str(folder), "--to", f"gguf-{kind}", *out]) == 0
    assert [file.name for file in (tmp_path / "few").iterdir()] == [f"model-{kind}.gguf"]
    apart = (logits(tmp_path / "few" / f"model-{kind}.gguf") - logits(folder)).abs().mean()
    assert 0 < apart < (0.05 if kind in ("q6_k", "q8_0") else 0.2) * logits(folder).std()


def test_a_model_in_few_bits_is_written_in_others(folder: Path, tmp_path: Path):
    assert main(["quantize", str(folder), "--to", "int8", "--out_dir", str(tmp_path / "int8")]) == 0
    assert main(["quantize", str(tmp_path / "int8"), "--to", "w4a16", "--out_dir", str(tmp_path / "again")]) == 0
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] == 4


def test_experts_are_rounded_too_and_told_of(tmp_path: Path, text: Path, capsys):
    sizes = dict(hidden_size=64, head_dim=16, moe_intermediate_size=32, num_hidden_layers=2)
    folder = hf_folder("qwen3-moe", tmp_path / "hf", bpe_folder(tmp_path / "bpe"), **sizes)
    flags = ["--data", str(text), "--samples", "2", "--sequence_length", "64"]
    assert main(["quantize", str(folder), "--to", "w4a16", "--out_dir", str(tmp_path / "few"), *flags]) == 0
    assert "weights of experts are rounded to nearest" in capsys.readouterr().err
    names = load_file(tmp_path / "few" / "model.safetensors")
    assert "model.layers.1.mlp.experts.3.down_proj.weight_packed" in names
    assert "model.layers.1.mlp.gate.weight" in names
    ignored = json.loads((tmp_path / "few" / "config.json").read_text())["quantization_config"]["ignore"]
    assert "model.layers.0.mlp.gate" in ignored and "lm_head" in ignored
    assert torch.isfinite(logits(tmp_path / "few")).all()


def test_layers_of_odd_sizes_stay_as_they_are(tmp_path: Path, capsys):
    changes = {**SIZES, "intermediate_size": 88}
    folder = hf_folder("llama", tmp_path / "hf", bpe_folder(tmp_path / "bpe"), **changes)
    assert main(["quantize", str(folder), "--to", "gptq", "--out_dir", str(tmp_path / "few")]) == 0
    assert "because of its shape: transformer.h.0.mlp" in capsys.readouterr().err
    weight = load_model(tmp_path / "few").transformer.h[0].mlp.proj.weight
    assert torch.equal(weight, load_model(folder, dtype=torch.bfloat16).transformer.h[0].mlp.proj.weight)


REFUSED = [
    (["--to", "gguf-q4_k"], "Closest: gguf-q4_k_m", 2),
    ([], "--to gguf-q4_k_m", 2),
    (["--to", "fp8", "--data", "TEXT"], "--data changes nothing for fp8", 2),
    (["--to", "gguf-q8_0", "--data", "TEXT"], "--data changes nothing", 2),
    (["--to", "int8", "--group_size", "64"], "--group_size is for", 2),
    (["--to", "gptq", "--samples", "0"], "--samples is 0", 2),
    (["--to", "gptq", "--data", "missing.txt"], "missing.txt", 1),
    (["--to", "gptq", "--group_size", "7"], "No layer", 1),
]


@pytest.mark.parametrize(("flags", "word", "code"), REFUSED)
def test_what_makes_no_sense_is_one_sentence_and_leaves_nothing(flags, word, code, folder, text, tmp_path, capsys):
    given = [str(text) if flag == "TEXT" else flag for flag in flags]
    assert main(["quantize", str(folder), "--out_dir", str(tmp_path / "few"), *given]) == code
    said = capsys.readouterr().err
    assert word in said and "Traceback" not in said
    assert not (tmp_path / "few").exists()


def test_too_little_text_is_told(folder: Path, tmp_path: Path, capsys):
    (tmp_path / "short.txt").write_text("too short")
    flags = ["--to", "awq", "--data", str(tmp_path / "short.txt"), "--out_dir", str(tmp_path / "few")]
    assert main(["quantize", str(folder), *flags]) == 1
    assert "tokens of text; 128 are needed" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence_and_leaves_nothing(folder: Path, tmp_path: Path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    assert main(["quantize", str(folder), "--to", "int8", "--out_dir", str(tmp_path / "few")]) == 1
    assert "of disk" in capsys.readouterr().err
    assert not (tmp_path / "few").exists()


def test_models_without_linear_layers_in_transformers_are_refused(tmp_path: Path, capsys):
    folder = hf_folder("gpt2", tmp_path / "hf", bpe_folder(tmp_path / "bpe"), n_embd=64)
    assert main(["quantize", str(folder), "--to", "gptq", "--out_dir", str(tmp_path / "few")]) == 1
    assert "or write a GGUF file" in capsys.readouterr().err

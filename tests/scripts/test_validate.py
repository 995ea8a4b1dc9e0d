"""`litgpt validate`, and the comparison and the count behind it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from litgpt import CheckpointValidationResult, Config, estimate_model_memory, validate_checkpoint
from litgpt.__main__ import main
from litgpt.checkpoint.reader import load_pth
from litgpt.checkpoint.writer import save_state
from litgpt.errors import LitGPTError
from litgpt.model import GPT
from tests.tiny import hf_folder

CHECKS = 5


@pytest.fixture
def folder(stories260k, tmp_path) -> Path:
    return Path(shutil.copytree(stories260k, tmp_path / "stories"))


def outcomes(capsys) -> dict[str, str]:
    """What the command said of each check."""
    lines = capsys.readouterr().out.splitlines()
    return {line[6:].split(":")[0]: line.split(": ", 1)[1] for line in lines if line.startswith("[")}


def test_a_good_folder_of_either_kind_passes(folder, capsys):
    assert main(["validate", str(folder)]) == 0
    assert main(["convert_to_litgpt", str(folder)]) == 0
    assert main(["validate", str(folder), "--dtype", "bfloat16", "--training", "true"]) == 0
    found = outcomes(capsys)
    assert len(found) == CHECKS and all(outcome.startswith("ok") for outcome in found.values())
    assert "260,032 parameters" in found["memory"] and "2.08 MB" in found["memory"]


@pytest.mark.parametrize(
    "spoil, failing, word",
    [
        (lambda f: (f / "model.safetensors").unlink(), {"files", "weights"}, "no weights"),
        (lambda f: (f / "config.json").write_text("[]"), {"configuration", "tokenizer", "weights", "memory"}, "JSON"),
        (lambda f: [file.unlink() for file in f.glob("tokenizer.*")], {"tokenizer"}, "tokenizer"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 100), {"weights"}, "damaged"),
    ],
)
def test_all_that_is_wrong_is_told_and_the_exit_code_is_1(folder, spoil, failing, word, capsys):
    spoil(folder)
    assert main(["validate", str(folder)]) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.out.splitlines() if line.startswith("[")]
    assert {line[6:].split(":")[0] for line in lines if ": ok: " not in line} == failing
    assert word in captured.out and len(captured.err.strip().splitlines()) == 1
    wrong = {line[6:].split(":")[0] for line in lines if ": FAILED: " in line}
    assert {name for name in failing if name in captured.err.partition("what is wrong with")[2]} == wrong


def test_wrong_names_and_shapes_are_listed(folder, capsys):
    assert main(["convert_to_litgpt", str(folder)]) == 0
    state = dict(load_pth(folder / "lit_model.pth"))
    state["surplus"] = torch.ones(1)
    state["transformer.ln_f.weight"] = torch.ones(3)
    del state["transformer.h.0.norm_1.weight"]
    save_state(folder / "lit_model.pth", state)
    assert main(["validate", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "transformer.h.0.norm_1.weight" in out and "surplus" in out
    assert "transformer.ln_f.weight: model=(64,), checkpoint=(3,)" in out


def test_a_file_of_another_name(folder, capsys):
    assert main(["convert_to_litgpt", str(folder)]) == 0
    (folder / "lit_model.pth").rename(folder / "other.pth")
    assert main(["validate", str(folder), "--model_filename", "other.pth"]) == 0
    assert main(["validate", str(folder), "--model_filename", "another.pth"]) == 1


@pytest.mark.parametrize(
    "arguments, word", [(["nowhere"], "no checkpoint folder"), ([".", "--dtype", "int3"], "no type")]
)
def test_mistakes_are_one_sentence(arguments, word, capsys):
    assert main(["validate", *arguments]) == 1
    captured = capsys.readouterr()
    assert word in captured.err and not captured.out


# -- the Python side, as LitGPT has it


def test_a_file_is_compared_with_a_model_on_meta(tmp_path, capsys):
    model = GPT.skeleton(Config.from_name("pythia-14m", n_layer=1, n_embd=32, n_head=4, intermediate_size=48))
    state = {name: torch.zeros(tensor.shape) for name, tensor in model.state_dict().items()}
    save_state(tmp_path / "model.pth", state)
    assert validate_checkpoint(tmp_path / "model.pth", model) == CheckpointValidationResult(True, [], [], [], [])
    state["lm_head.weight"] = state["lm_head.weight"][:5]
    state["foo"] = state.pop("transformer.ln_f.bias")
    save_state(tmp_path / "model.pth", state, wrap="model")
    result = validate_checkpoint(tmp_path / "model.pth", model, verbose=False)
    assert (result.missing_keys, result.unexpected_keys) == (["transformer.ln_f.bias"], ["foo"])
    assert result.shape_mismatches == ["lm_head.weight: model=(50304, 32), checkpoint=(5, 32)"]
    assert not result.is_valid and "Missing keys (1)" in result.summary()
    assert capsys.readouterr().out == "Checkpoint validation passed.\n"


def test_a_file_that_is_not_there_is_an_error_in_the_result(tmp_path):
    result = validate_checkpoint(tmp_path / "nothing.pth", torch.nn.Linear(2, 2), verbose=False)
    assert not result.is_valid and "no file" in result.errors[0]


@pytest.mark.parametrize("case", ["llama", "llama-tied", "neox", "gpt2"])
def test_memory_is_counted_exactly(case, tmp_path):
    from tests.tiny import hf_model

    count = sum(parameter.numel() for parameter in hf_model(case).parameters())
    config = Config.from_checkpoint(hf_folder(case, tmp_path))
    estimate = estimate_model_memory(config)
    assert estimate["param_count"] == count
    assert estimate["param_memory_gb"] == estimate["estimated_total_gb"] == 4 * count / 2**30
    training = estimate_model_memory(config, dtype=torch.bfloat16, training=True)
    assert training["estimated_total_gb"] == 4 * 2 * count / 2**30
    assert set(estimate) == {
        "param_count", "active_param_count", "param_memory_gb", "estimated_total_gb", "available_gpu_memory_gb",
        "fits_in_memory",
    }  # fmt: skip


def test_mixtures_are_counted_with_all_their_experts():
    mixture = estimate_model_memory(Config.from_name("Mixtral-8x7B-v0.1"))
    assert mixture["param_count"] == 46_702_792_704
    # Two of the eight experts of each of 32 layers; each has three matrices of 4096 x 14336.
    assert mixture["active_param_count"] == 46_702_792_704 - 32 * 6 * 3 * 4096 * 14336


def test_an_unknown_type_is_refused():
    with pytest.raises(LitGPTError, match="no type for weights"):
        estimate_model_memory(Config.from_name("pythia-14m"), dtype="int3")

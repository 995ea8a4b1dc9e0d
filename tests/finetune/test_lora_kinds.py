"""The kinds of LoRA that LitGPT hasn't got, from the command's arguments to folders that other commands use."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from litgpt.api import LLM
from litgpt.checkpoint.finetuned import find_finetuned
from litgpt.checkpoint.peft_folder.writer import to_peft
from litgpt.checkpoint.reader import load_model, load_pth
from litgpt.cli.parser import parse
from litgpt.engine.inference_model import InferenceModel
from litgpt.errors import LitGPTError
from litgpt.finetune import lora
from litgpt.lora import LoRA
from tests.finetune.test_finetune import run

pytestmark = pytest.mark.usefixtures("no_picture")

KINDS: dict[str, dict[str, Any]] = {
    "dora": {"lora_dora": True, "lora_rslora": True, "lora_plus_ratio": 4.0, "lora_target": "attn.*,mlp.fc"},
    "pissa": {"lora_init": "pissa", "lora_modules_to_save": ["norm_1", "lm_head"]},
}
TOKENS = torch.arange(20)[None]


@pytest.fixture(scope="module", params=KINDS)
def finished(
    request: pytest.FixtureRequest, lit_folder: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """The settings of a kind, and what a run of it leaves."""
    out = tmp_path_factory.mktemp(request.param)
    return KINDS[request.param], run(lora.setup, lit_folder, data_file, out, lora_r=4, **KINDS[request.param])


def test_a_resumed_run_is_the_run_that_never_stopped(
    finished: tuple[dict[str, Any], Path], lit_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    settings, out = finished
    shutil.copytree(out / "step-000002", tmp_path / "step-000002")
    run(lora.setup, lit_folder, data_file, tmp_path, lora_r=4, resume=tmp_path / "step-000002", **settings)
    for file in ("lit_model.pth.lora", "lit_model.pth"):
        whole, resumed = load_pth(out / "final" / file), load_pth(tmp_path / "final" / file)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_merged_and_unmerged_and_pefts_folder_compute_the_same(
    finished: tuple[dict[str, Any], Path], lit_folder: Path, tmp_path: Path
) -> None:
    final = finished[1] / "final"
    merged = load_model(final, dtype=torch.float32)(TOKENS)
    assert (merged - load_model(lit_folder, dtype=torch.float32)(TOKENS)).abs().max() > 0.01
    shutil.copytree(final, tmp_path / "updates", ignore=shutil.ignore_patterns("lit_model.pth"))
    to_peft(final, tmp_path / "peft")
    for folder in (tmp_path / "updates", tmp_path / "peft"):
        assert find_finetuned(folder) is not None
        inference_model = InferenceModel.load(folder, precision="32-true")
        torch.testing.assert_close(inference_model.model(TOKENS), merged, rtol=1e-4, atol=1e-4)
    assert LLM.load(tmp_path / "peft").generate("Name the cat.", max_new_tokens=3) is not None


def test_its_hyperparameters_are_a_configuration(finished: tuple[dict[str, Any], Path]) -> None:
    settings, out = finished
    path = out / "final" / "hyperparameters.yaml"
    assert settings.items() <= yaml.safe_load(path.read_text()).items()
    parsed = parse("finetune_lora", lora.setup, ["--config", str(path)])
    assert all(parsed[name] == value for name, value in settings.items())


def test_plain_lora_is_described_as_litgpt_describes_it(lit_folder: Path, data_file: Path, tmp_path: Path) -> None:
    """It stops at settings that it doesn't know."""
    run(lora.setup, lit_folder, data_file, tmp_path, train={"max_steps": 1})
    content = yaml.safe_load((tmp_path / "final" / "hyperparameters.yaml").read_text())
    names = {name for name in content if name.startswith("lora_")}
    assert names == {f"lora_{name}" for name in LoRA().settings()} and len(names) == 9


@pytest.mark.parametrize("kind", ["peft", "litgpt"])
def test_updates_are_trained_on(kind: str, lit_folder: Path, data_file: Path, tmp_path: Path) -> None:
    settings = {"lora_r": 2, "lora_rslora": True, "lora_key": True}
    run(lora.setup, lit_folder, data_file, tmp_path / "first", **settings)
    start = tmp_path / "first" / "step-000002"
    if kind == "peft":
        start = to_peft(start, tmp_path / "peft")
    run(lora.setup, start, data_file, tmp_path / "second", train={"max_steps": 1}, lora_dropout=0.2)
    content = yaml.safe_load((tmp_path / "second" / "final" / "hyperparameters.yaml").read_text())
    assert settings.items() <= content.items() and content["lora_dropout"] == 0.2
    assert Path(content["checkpoint_dir"]) == lit_folder, "the base, which will be there when the folder is gone"
    before, after = (
        load_pth(folder / "lit_model.pth.lora")
        for folder in (tmp_path / "first/step-000002", tmp_path / "second/final")
    )
    assert before.keys() == after.keys()
    name = "transformer.h.0.attn.qkv.lora_A"
    assert 0 < (after[name] - before[name]).abs().max() < 0.05, "one step from where they were"
    with pytest.raises(LitGPTError, match="lora_r is 16, but the updates to go on with have 2"):
        run(lora.setup, start, data_file, tmp_path / "third", lora_r=16)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"lora_r": 999999}, "lora_r is 999999"),
        ({"lora_target": "nothing.*"}, "no linear layer of this model matches"),
        ({"lora_target": "mlp.*", "lora_mlp": True}, "leave lora_mlp out"),
        ({"lora_modules_to_save": "nothing"}, "no module of this model matches"),
        (
            {"lora_modules_to_save": "mlp.proj", "quantize": "bnb.nf4", "precision": "bf16-true"},
            r"lora_modules_to_save: transformer\.h\.0\.mlp\.proj\.\S+ is kept in few bits",
        ),
    ],
)
def test_what_cannot_be_is_told_before_training(
    lit_folder: Path, data_file: Path, tmp_path: Path, arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(LitGPTError, match=complaint) as caught:
        run(lora.setup, lit_folder, data_file, tmp_path, **arguments)
    assert "\n" not in str(caught.value) and not (tmp_path / "logs").exists()

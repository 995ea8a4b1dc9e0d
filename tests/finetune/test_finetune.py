"""A finetuning command from its arguments to a folder that other commands open."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from litgpt.args import EvalArgs, TrainArgs
from litgpt.checkpoint.reader import load_model, load_pth
from litgpt.checkpoint.writer import save_state
from litgpt.config import Config
from litgpt.data import JSON
from litgpt.errors import LitGPTError, UsageError
from litgpt.finetune import full, lora
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.peft import load_owned, unwrap_modules
from litgpt.prompts import Alpaca, load_prompt_style

pytestmark = pytest.mark.usefixtures("no_picture")

TRAIN = dict(global_batch_size=4, micro_batch_size=2, lr_warmup_steps=1, epochs=None, max_steps=4, save_interval=2)
FAST = {"class_path": "AdamW", "init_args": {"lr": 0.02}}


def run(
    setup: Callable[..., None], checkpoint_dir: Path, data_file: Path, out_dir: Path, data: Any = None, **arguments: Any
) -> Path:
    """One short run; its output folder."""
    train = TrainArgs(**{**TRAIN, **arguments.pop("train", {})})
    eval_ = EvalArgs(**{"interval": 2, "max_new_tokens": 4, **arguments.pop("eval", {})})
    data = data or JSON(data_file, val_split_fraction=0.2, prompt_style="chat")
    settings = {"precision": "32-true", "optimizer": FAST, "access_token": "secret-token", **arguments}
    setup(checkpoint_dir, out_dir=out_dir, data=data, train=train, eval=eval_, **settings)
    return out_dir


@pytest.fixture(scope="module")
def finished(lit_folder: Path, data_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a LoRA run leaves."""
    out_dir, best = tmp_path_factory.mktemp("out"), {"keep_best": True}
    return run(lora.setup, lit_folder, data_file, out_dir, lora_r=4, lora_mlp=True, lora_head=True, train=best)


def test_a_run_leaves_complete_folders(finished: Path) -> None:
    common = {"lit_model.pth.lora", "model_config.yaml", "tokenizer.json", "tokenizer_config.json"}
    common |= {"hyperparameters.yaml"}
    assert common <= {path.name for path in (finished / "step-000002").iterdir()}
    assert common | {"lit_model.pth"} <= {path.name for path in (finished / "final").iterdir()}
    assert (finished / "loss.png").stat().st_size > 1000


@pytest.mark.parametrize("place", ["final", "best"])
def test_the_merged_model_is_the_base_with_the_update(place: str, finished: Path, lit_folder: Path) -> None:
    model = load_model(lit_folder)
    method = LoRA(r=4, alpha=16, mlp=True, head=True)
    method.attach(model)
    path = finished / place / "lit_model.pth.lora"
    load_owned(model, method.owns, load_pth(path), str(path))
    tokens = torch.arange(20)[None]
    updated = model.eval()(tokens)
    assert (updated - load_model(lit_folder)(tokens)).abs().max() > 0.01
    torch.testing.assert_close(load_model(finished / place)(tokens), updated, rtol=1e-4, atol=1e-4)


def test_hyperparameters_are_a_configuration_without_secrets(finished: Path, lit_folder: Path) -> None:
    text = (finished / "final" / "hyperparameters.yaml").read_text()
    content = yaml.safe_load(text)
    assert "secret-token" not in text
    assert content["lora_r"] == 4 and content["lora_head"] is True and content["lora_key"] is False
    assert Path(content["checkpoint_dir"]) == lit_folder
    assert content["data"]["class_path"] == "litgpt.data.JSON"
    assert content["train"]["max_steps"] == 4


def test_the_prompt_style_is_kept(lit_folder: Path, data_file: Path, tmp_path: Path) -> None:
    data = JSON(data_file, val_split_fraction=0.2, prompt_style="alpaca")
    run(lora.setup, lit_folder, data_file, tmp_path, data=data, train={"max_steps": 1}, eval={"max_new_tokens": 0})
    assert isinstance(load_prompt_style(tmp_path / "final"), Alpaca)


def test_a_hugging_face_folder_needs_no_conversion(hf_folder: Path, data_file: Path, tmp_path: Path) -> None:
    run(lora.setup, hf_folder, data_file, tmp_path, precision="bf16-mixed", train={"max_steps": 2})
    final = load_model(tmp_path / "final")
    base = load_model(hf_folder)
    assert final.tied and final.lm_head.weight.dtype == torch.bfloat16
    assert load_pth(tmp_path / "final" / "lit_model.pth.lora")["transformer.h.0.attn.qkv.lora_A"].dtype == torch.float32
    changed = {name for name, tensor in final.state_dict().items() if not torch.equal(tensor, base.state_dict()[name])}
    assert changed == {f"transformer.h.{layer}.attn.qkv.weight" for layer in range(3)}
    assert final.config == base.config


def test_a_tied_head_with_an_update_is_tied_no_more(hf_folder: Path, data_file: Path, tmp_path: Path) -> None:
    run(lora.setup, hf_folder, data_file, tmp_path, lora_head=True, train={"max_steps": 2})
    final = load_model(tmp_path / "final")
    assert not final.tied
    assert torch.equal(final.transformer.wte.weight, load_model(hf_folder).transformer.wte.weight)


@pytest.mark.parametrize(
    ("setup", "precision"),
    [(lora.setup, "32-true"), (lora.setup, "bf16-mixed"), (full.setup, "32-true")],
    ids=["lora", "lora-mixed", "full"],
)
def test_a_resumed_run_is_the_run_that_never_stopped(
    setup: Callable[..., None], precision: str, lit_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    asked = {"precision": precision}
    whole = run(setup, lit_folder, data_file, tmp_path / "whole", **asked)
    run(setup, lit_folder, data_file, tmp_path / "parts", train={"save_interval": 2}, **asked)
    weights = load_pth(whole / "final" / "lit_model.pth")
    again = run(setup, lit_folder, data_file, tmp_path / "parts", resume=tmp_path / "parts" / "step-000002", **asked)
    resumed = load_pth(again / "final" / "lit_model.pth")
    for name, tensor in weights.items():
        assert torch.equal(tensor, resumed[name]), name


def test_full_finetuning_trains_every_weight(lit_folder: Path, data_file: Path, tmp_path: Path) -> None:
    run(full.setup, lit_folder, data_file, tmp_path)
    before, after = load_model(lit_folder).state_dict(), load_model(tmp_path / "final").state_dict()
    assert not [name for name, tensor in after.items() if torch.equal(tensor, before[name])]


def test_more_training_lowers_the_validation_loss(
    lit_folder: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = dict(train={"max_steps": 20}, eval={"initial_validation": True}, lora_mlp=True)
    run(lora.setup, lit_folder, data_file, tmp_path, **settings)
    metrics = (tmp_path / "logs" / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    column = metrics[0].split(",").index("val_loss")
    losses = [float(cells[column]) for line in metrics[1:] if (cells := line.split(","))[column]]
    assert losses[-1] < losses[0] - 0.5
    printed = capsys.readouterr().out
    assert "Training " in printed and "Answer: " in printed


def test_a_limit_above_the_context_is_the_context(
    lit_folder: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(lora.setup, lit_folder, data_file, tmp_path, train={"max_seq_length": 4096, "max_steps": 1})
    printed = capsys.readouterr().out
    assert "train.max_seq_length is 4096; samples end at the model's context of 256 tokens." in printed
    assert "(limit 256, context 256)" in printed


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"quantize": "bnb.nf4", "precision": "bf16-mixed"}, "bnb.nf4 computes in one dtype"),
        ({"train": {"max_seq_length": 8}}, "No prompt leaves room"),
        ({"train": {"tie_embeddings": True}}, "tie_embeddings is for pretraining"),
        ({"eval": {"evaluate_example": 99}}, "evaluate_example is 99"),
        ({"lora_query": False, "lora_value": False}, "All of lora_query"),
    ],
)
def test_what_cannot_be_is_told_in_one_sentence(
    lit_folder: Path, data_file: Path, tmp_path: Path, arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(LitGPTError, match=complaint) as caught:
        run(lora.setup, lit_folder, data_file, tmp_path, **arguments)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "logs").exists(), "told after the training began"


def test_a_label_that_the_loss_would_learn_is_refused(lit_folder: Path, data_file: Path, tmp_path: Path) -> None:
    data = JSON(data_file, mask_prompt=True, val_split_fraction=0.2, ignore_index=5)
    with pytest.raises(LitGPTError, match="ignore_index is -100 in training"):
        run(lora.setup, lit_folder, data_file, tmp_path, data=data)


def test_no_data_means_alpaca_and_no_checkpoint_is_an_error(
    lit_folder: Path, data_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").touch()  # so that nothing is downloaded
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LitGPTError, match="data/alpaca"):
        lora.setup(lit_folder, out_dir=tmp_path)
    with pytest.raises(LitGPTError, match="no checkpoint folder"):
        run(lora.setup, tmp_path / "nowhere", data_file, tmp_path)


def test_an_output_folder_that_cannot_be_is_told_before_anything_is_read(data_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LitGPTError, match="Cannot write to .*file/out"):
        run(lora.setup, tmp_path / "nowhere", data_file, tmp_path / "file" / "out")


def test_the_model_that_was_trained_on_stays_as_it_is(lit_folder: Path, finished: Path) -> None:
    torch.manual_seed(0)
    fresh = GPT(Config.from_checkpoint(lit_folder)).state_dict()
    for name, tensor in load_model(lit_folder).state_dict().items():
        assert torch.equal(tensor, fresh[name]), name


def test_unwrapping_gives_the_merged_model(finished: Path, lit_folder: Path) -> None:
    model = load_model(lit_folder)
    method = LoRA(r=4, mlp=True, head=True)
    method.attach(model)
    load_owned(model, method.owns, load_pth(finished / "final" / "lit_model.pth.lora"), "update")
    unwrap_modules(model)
    merged = load_pth(finished / "final" / "lit_model.pth")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, merged[name]), name


def test_a_run_resumes_beside_its_own_base_alone(lit_folder: Path, data_file: Path, tmp_path: Path) -> None:
    base, out_dir = Path(shutil.copytree(lit_folder, tmp_path / "base")), tmp_path / "out"
    run(lora.setup, base, data_file, out_dir)
    state = {name: tensor * 1.1 for name, tensor in load_pth(base / "lit_model.pth").items()}
    save_state(base / "lit_model.pth", state)
    with pytest.raises(LitGPTError, match="was trained on other weights than"):
        run(lora.setup, base, data_file, out_dir, resume="auto", train={"max_steps": 6})


@pytest.mark.parametrize("setup", [lora.setup, full.setup])
def test_a_mistake_in_the_optimizer_comes_before_anything_is_read(
    setup: Callable[..., None], data_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="optimizer: AdamW refuses its arguments"):
        mistaken = {"class_path": "AdamW", "init_args": {"lr": -1}}
        run(setup, tmp_path / "nowhere", data_file, tmp_path / "out" / "run", optimizer=mistaken)
    with pytest.raises(LitGPTError, match="no checkpoint folder"):
        run(setup, tmp_path / "nowhere", data_file, tmp_path / "out" / "run")
    assert not (tmp_path / "out").exists(), "a command that fails leaves no folder"

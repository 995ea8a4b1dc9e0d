"""`litgpt plan`: what a training command will take, told without its weights."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from pathlib import Path

import pytest

from litgpt.__main__ import dispatch
from litgpt.args import EvalArgs, TrainArgs
from litgpt.cli.plan import COMMANDS
from litgpt.data import TextFiles
from litgpt.errors import LitGPTError, UsageError
from litgpt.pretrain import setup
from litgpt.training.incompatibilities import INCOMPATIBILITIES
from tests.paths import ROOT
from tests.test_pretrain import TEXT, tiny

MODEL = ROOT / "litgpt" / "assets" / "austen-2m"
SHORT = ["--train.max_seq_length", "32", "--train.micro_batch_size", "2", "--precision", "32-true"]
SHORT += ["--plan.peak_tflops", "1"]  # measuring it takes a third of a second


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    dispatch(["plan", *arguments])
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose weights nobody could load."""
    folder = tmp_path_factory.mktemp("checkpoint")
    shutil.copytree(MODEL, folder, dirs_exist_ok=True)
    weights = next(path for path in folder.iterdir() if path.suffix in (".pth", ".safetensors"))
    weights.write_bytes(b"no weights")
    return folder


@cache
def trained(kind: str) -> str:
    return {
        "pretrain": "Full",
        "finetune": "LoRA",
        "finetune_lora": "LoRA",
        "finetune_dpo": "LoRA",
        "finetune_grpo": "LoRA",
        "finetune_distill": "Full",
        "finetune_full": "Full",
    }.get(kind, "AdapterV2" if kind.endswith("v2") else "Adapter")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_training_command_is_planned_without_weights_or_data(command, checkpoint, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    place = [str(checkpoint)]
    if command == "pretrain":
        place = ["austen", "--initial_checkpoint_dir", str(checkpoint), "--train.max_tokens", "1000"]
    if command == "finetune_distill":
        place += ["--teacher", str(checkpoint)]
    told = plan(capsys, command, *place, *SHORT)
    assert f"trained ({trained(command)})" in told
    assert all(part in told for part in ("weights", "gradients", "optimizer", "activations", "loss", "fits", "FLOPs"))
    assert ("Chinchilla" in told) == (command == "pretrain")
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


def test_what_does_not_fit_is_told_with_what_to_change(checkpoint, capsys):
    told = plan(capsys, "finetune_full", str(checkpoint), *SHORT, "--plan.memory_gb", "0.46")
    assert "does NOT fit" in told
    first = re.search(r"^Change +(.*): ", told, re.M)
    assert first and first[1] == "--train.micro_batch_size 1"
    flags = re.findall(r"--train\.[\w.]+ \w+", told)
    assert "--train.activation_checkpointing full" in flags
    needed = [float(size) for size in re.findall(r": (\d+\.\d+) GB$", told, re.M)]
    assert len(needed) >= 1 and needed == sorted(needed, reverse=True)


def test_nothing_helps_where_there_is_no_memory(checkpoint, capsys):
    smallest = ["--train.micro_batch_size", "1", "--train.max_seq_length", "32", "--precision", "bf16-true"]
    told = plan(capsys, "finetune_full", str(checkpoint), *smallest, "--plan.memory_gb", "0.01")
    assert "None of this is enough: finetune_lora trains far fewer parameters" in told


def test_a_recipe_is_planned_too(checkpoint, capsys, tmp_path):
    recipe = {"checkpoint_dir": str(checkpoint), "train": {"max_steps": 7, "max_seq_length": 16}, "lora_r": 2}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    told = plan(capsys, "finetune_lora", "--config", str(tmp_path / "recipe.yaml"), "--plan.peak_tflops", "1")
    assert "7 steps" in told and "x 16 tokens" in told and "of 1 TFLOPS" in told


def test_a_model_that_is_not_there_yet_is_planned_by_its_name(capsys):
    told = plan(capsys, "finetune_lora", "EleutherAI/pythia-14m", *SHORT)
    assert "pythia-14m: 14,0" in told


@pytest.mark.parametrize("resized", [False, True])
def test_new_tokens_are_planned(checkpoint, capsys, resized):
    """LoRA trains embedding and head whole then; where the tokenizer has no new ones, nothing changes."""
    flags = [*SHORT, "--resize_vocab", str(resized).lower()]
    expected = "12,902,656 of them trained" if resized else "24,576 of them trained"
    assert expected in plan(capsys, "finetune_lora", "EleutherAI/pythia-14m", *flags)
    assert "20,480 of them trained" in plan(capsys, "finetune_lora", str(checkpoint), *flags)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--train.epochs", "2", "--train.max_steps", "null"], "its length is not known: --plan.samples N"),
        (["--train.epochs", "2", "--plan.samples", "80", "--train.global_batch_size", "8"], "20 steps, 5,120 tokens"),
        (["--train.max_steps", "9", "--plan.tokens_per_sample", "10"], "9 steps, 1,440 tokens"),
    ],
)
def test_how_long_it_takes(checkpoint, capsys, flags, sentence):
    assert sentence in plan(capsys, "finetune_lora", str(checkpoint), *SHORT, *flags)


def test_the_size_of_a_checkpoint_is_the_real_one(capsys, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    setup(
        "tiny",
        model_config=tiny(n_embd=64, n_layer=2),
        out_dir=tmp_path / "out",
        precision="32-true",
        data=TextFiles(tmp_path / "text.txt", characters=True, cache_dir=tmp_path / "cache"),
        train=TrainArgs(max_steps=1, save_interval=1, global_batch_size=1, micro_batch_size=1, lr_warmup_steps=0),
        eval=EvalArgs(final_validation=False),
        devices=1,
        logger_name="csv",
    )
    step = tmp_path / "out" / "step-00000001"
    real = sum((step / name).stat().st_size for name in ("lit_model.pth", "training_state.pt"))
    told = plan(capsys, "pretrain", "tiny", "--model_config", str(step / "model_config.yaml"), "--precision", "32-true")
    found = re.search(r"Disk +([\d.]+) MB a step", told)
    assert found and float(found[1]) * 1e6 == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (["generate"], UsageError, "knows no command 'generate'"),
        (["finetune_lor"], UsageError, "Closest: finetune_lora"),
        (["finetune_lora", str(MODEL), "--train.max_step", "3"], UsageError, "no flag --train.max_step"),
        (["finetune_lora", str(MODEL), "--plan.share", "3"], UsageError, "no flag --plan.share"),
        (["finetune_lora", str(MODEL), "--plan.peak_share", "3"], LitGPTError, "at most 1, not 3"),
        (["finetune_lora", str(MODEL), "--plan.samples", "0"], LitGPTError, "must be above 0, not 0"),
        (["finetune_lora", "nowhere"], LitGPTError, "nowhere"),
        (["finetune_lora", str(MODEL), "--plan.tokens_per_sample", "99999"], LitGPTError, "context is"),
        (["finetune_lora", str(MODEL), "--lora_r", "0"], LitGPTError, "at least 1"),
        (["finetune_full", str(MODEL), *SHORT, "--optimizer", "Adan"], LitGPTError, "no optimizer 'Adan'"),
    ],
)
def test_a_mistake_is_one_sentence(arguments, error, sentence):
    with pytest.raises(error, match=sentence) as caught:
        dispatch(["plan", *arguments])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_says_what_can_be_planned(capsys, arguments):
    told = plan(capsys, *arguments)
    assert all(command in told for command in COMMANDS)


def test_help_of_a_command_has_its_flags_and_the_plans(capsys):
    with pytest.raises(SystemExit):
        dispatch(["plan", "finetune_lora", "--help"])
    told = capsys.readouterr().out
    assert "litgpt plan finetune_lora" in told
    assert all(flag in told for flag in ("--lora_r", "--train.max_steps", "--plan.peak_share"))


@pytest.mark.parametrize(
    ("command", "flags", "sentence"),
    [
        (
            "finetune_full",
            ["--train.optimizer_in_backward", "true"],
            INCOMPATIBILITIES["optimizer in backward, accumulation"][1],
        ),
        ("finetune_lora", ["--train.activation_offload", "true"], INCOMPATIBILITIES["activation offload, no GPU"][1]),
        ("finetune_lora", ["--train.document_masks", "true"], "train.document_masks is for pretraining"),
        ("finetune_lora", ["--train.tie_embeddings", "true"], "train.tie_embeddings is for pretraining"),
        (
            "pretrain",
            ["--train.document_masks", "true", "--train.packing", "false"],
            INCOMPATIBILITIES["document masks, padding"][1],
        ),
    ],
)
def test_what_training_refuses_the_plan_refuses(command, flags, sentence, checkpoint):
    place = ["austen", "--initial_checkpoint_dir"] if command == "pretrain" else []
    with pytest.raises(LitGPTError, match=re.escape(sentence)):
        dispatch(["plan", command, *place, str(checkpoint), *SHORT, *flags])

"""`finetune_dpo` from its arguments to a folder that other commands open, by any method."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from litgpt.args import EvalArgs, TrainArgs
from litgpt.checkpoint.finetuned import find_finetuned
from litgpt.checkpoint.reader import load_model, load_pth
from litgpt.cli.plan import plan
from litgpt.data import JSON, Preferences
from litgpt.errors import LitGPTError, UsageError
from litgpt.finetune import dpo, full, lora
from litgpt.training.metrics import metrics
from litgpt.training.metrics.loggers import read_metrics
from tests.paths import ROOT

FAST = {"class_path": "AdamW", "init_args": {"lr": 0.01}}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own, and no pictures."""
    monkeypatch.setenv("LITGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(metrics, "draw_loss", lambda rows, path, title: path)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.json"
    words = ["cat", "dog", "cow", "hen", "pig", "fox", "bee", "ant", "owl", "elk"]
    rows = [{"prompt": f"Name the {word}.", "chosen": f"It is the {word}.", "rejected": "No."} for word in words]
    path.write_text(json.dumps(rows))
    return path


def run(folder: Path, pairs: Path, out_dir: Path, **arguments: Any) -> list[dict[str, float]]:
    """One short run; the rows of its metrics."""
    settings = dict(
        global_batch_size=4, micro_batch_size=2, lr_warmup_steps=0, max_steps=4, save_interval=2, min_lr=0.0
    )
    train = TrainArgs(**{**settings, **arguments.pop("train", {})})
    data = Preferences(path=pairs, val_split_fraction=0.2, prompt_style="default", seed=1)
    given = {"precision": "32-true", "optimizer": FAST, "data": data, **arguments}
    evaluation = EvalArgs(interval=2, max_new_tokens=2, initial_validation=True)
    dpo.setup(folder, out_dir=out_dir, train=train, eval=evaluation, **given)
    return read_metrics(sorted((out_dir / "logs" / "csv").iterdir())[-1] / "metrics.csv")


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "log_probs").glob("*"))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "method", ["lora", "full", pytest.param("adapter", marks=SLOW), pytest.param("adapter_v2", marks=SLOW)]
)
def test_every_method_starts_at_the_reference_and_resumes_exactly(
    method: Any, lit_folder: Path, pairs: Path, tmp_path: Path
) -> None:
    rows = run(lit_folder, pairs, tmp_path / "whole", method=method)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and losses[-1] < losses[0]
    assert rows[0]["val_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[-1]["val_margin"] > 0 and "val_ppl" not in rows[-1]
    assert len(cached(tmp_path)) == (0 if method == "lora" else 2)  # of both data sets
    again = run(lit_folder, pairs, tmp_path / "again", method=method, resume=tmp_path / "whole" / "step-000002")
    assert [row["loss"] for row in again if "loss" in row] == losses
    suffix = {"lora": ".lora", "full": ""}.get(method, f".{method}")
    for name, tensor in load_pth(tmp_path / "whole" / "final" / f"lit_model.pth{suffix}").items():
        assert torch.equal(tensor, load_pth(tmp_path / "again" / "final" / f"lit_model.pth{suffix}")[name]), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "precision", "tolerance"),
    [("dpo", "32-true", 1e-6), ("dpo", "bf16-true", 1e-3), ("kto", "32-true", 1e-6)],
)
def test_beside_weights_in_four_bits_the_reference_is_the_adapter_switched_off(
    loss: Any, precision: str, tolerance: float, lit_folder: Path, pairs: Path, tmp_path: Path
) -> None:
    """In bfloat16, attention that has a backward pass rounds otherwise than attention that has none."""
    pytest.importorskip("bitsandbytes")
    options: dict[str, Any] = dict(loss=loss, quantize="bnb.nf4", precision=precision)
    rows = run(lit_folder, pairs, tmp_path / "whole", **options)
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[0] == pytest.approx(math.log(2) if loss == "dpo" else 0.5, abs=tolerance) and losses[-1] < losses[0]
    assert cached(tmp_path) == []
    again = run(lit_folder, pairs, tmp_path / "again", resume=tmp_path / "whole" / "step-000002", **options)
    assert [row["loss"] for row in again if "loss" in row] == losses


@pytest.mark.parametrize("loss", ["ipo", "simpo", "orpo", "kto"])
def test_every_loss_trains_and_both_references_are_one(
    loss: Any, lit_folder: Path, pairs: Path, tmp_path: Path
) -> None:
    rows = run(lit_folder, pairs, tmp_path / "off", loss=loss, train={"max_steps": 6})
    own = [row for row in rows if "val_loss" in row]
    assert own[-1]["val_loss"] < own[0]["val_loss"] and own[-1]["val_accuracy"] >= own[0]["val_accuracy"]
    assert cached(tmp_path) == []
    if loss in ("ipo", "kto"):
        other = run(lit_folder, pairs, tmp_path / "kept", loss=loss, train={"max_steps": 6}, reference="precomputed")
        for name in ("loss", "margin", "val_loss"):
            ours, theirs = ([row[name] for row in each if name in row] for each in (rows, other))
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4), name


@pytest.mark.slow
def test_what_was_computed_once_is_found_again_for_the_same_model_and_data_alone(
    lit_folder: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"max_steps": 1, "save_interval": None}
    run(lit_folder, pairs, tmp_path / "a", method="full", train=few)
    assert capsys.readouterr().out.count("Computing what the reference gives") == 2
    run(lit_folder, pairs, tmp_path / "b", method="full", train=few)
    assert "Computing what" not in capsys.readouterr().out and len(cached(tmp_path)) == 2
    run(tmp_path / "a" / "final", pairs, tmp_path / "c", method="full", train=few)  # another model
    assert capsys.readouterr().out.count("Computing what") == 2 and len(cached(tmp_path)) == 4
    other = tmp_path / "other.json"
    other.write_text(pairs.read_text().replace("No.", "Never."))
    run(lit_folder, other, tmp_path / "d", method="full", train=few)
    assert len(cached(tmp_path)) == 6
    for file in cached(tmp_path):
        file.write_bytes(b"damaged")
    with pytest.raises(LitGPTError, match="log_probs"):
        run(lit_folder, pairs, tmp_path / "e", method="full", train=few)


@pytest.mark.slow
def test_updates_that_were_trained_before_are_their_own_reference(
    lit_folder: Path, pairs: Path, data_file: Path, tmp_path: Path
) -> None:
    train = TrainArgs(global_batch_size=4, micro_batch_size=2, lr_warmup_steps=0, max_steps=2, save_interval=2)
    data = JSON(data_file, val_split_fraction=0.2, prompt_style="default")
    lora.setup(lit_folder, out_dir=tmp_path / "sft", data=data, train=train, precision="32-true", optimizer=FAST)
    start = tmp_path / "sft" / "step-000002"
    rows = run(start, pairs, tmp_path / "out", train={"max_steps": 2})
    assert rows[1]["loss"] == pytest.approx(math.log(2), abs=1e-6) and len(cached(tmp_path)) == 2
    with pytest.raises(LitGPTError, match="--reference adapter_off is not the model that training starts from"):
        run(start, pairs, tmp_path / "refused", reference="adapter_off")


@pytest.mark.slow
def test_what_it_leaves_is_what_other_commands_open(lit_folder: Path, pairs: Path, tmp_path: Path) -> None:
    run(lit_folder, pairs, tmp_path, lora_r=4)
    found = find_finetuned(tmp_path / "step-000002")
    assert found is not None and found.method.r == 4  # type: ignore[attr-defined]
    tokens = torch.arange(9)[None]
    assert not torch.equal(load_model(tmp_path / "final")(tokens), load_model(lit_folder)(tokens))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"data": None}, "give --data Preferences"),
        ({"method": "full", "quantize": "bnb.nf4"}, "--quantize keeps frozen weights"),
        ({"method": "adapter", "lora_r": 4}, "--lora_r is for --method lora"),
        ({"loss": "orpo", "reference": "precomputed"}, "--reference is for --loss dpo, ipo, kto"),
        ({"loss": "kto", "label_smoothing": 0.1}, "--label_smoothing is for"),
        ({"train": {"label_smoothing": 0.1}}, "train.label_smoothing is of the cross-entropy"),
        ({"train": {"z_loss": 0.1}}, "train.z_loss is of the cross-entropy"),
    ],
)
def test_what_does_not_go_together_is_refused(
    arguments: dict[str, Any], complaint: str, lit_folder: Path, pairs: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=complaint):
        run(lit_folder, pairs, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_preferences_are_for_this_command_alone(lit_folder: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(LitGPTError, match="--data Preferences is for finetune_dpo"):
        full.setup(lit_folder, out_dir=tmp_path, data=Preferences(path=pairs))


@pytest.mark.slow
def test_another_loss_is_another_run(lit_folder: Path, pairs: Path, tmp_path: Path) -> None:
    run(lit_folder, pairs, tmp_path / "whole", train={"max_steps": 2})
    with pytest.raises(LitGPTError, match="loss = dpo, this one has ipo"):
        run(lit_folder, pairs, tmp_path / "out", loss="ipo", resume=tmp_path / "whole" / "step-000002")


@pytest.mark.slow
def test_dynamic_finetuning_learns_otherwise_and_says_what_it_refuses(
    lit_folder: Path, data_file: Path, tmp_path: Path
) -> None:
    def trained(name: str, loss: Any, **more: Any) -> torch.Tensor:
        train = TrainArgs(global_batch_size=4, micro_batch_size=2, lr_warmup_steps=0, max_steps=2, **more)
        data = JSON(data_file, val_split_fraction=0.2, prompt_style="default")
        full.setup(lit_folder, out_dir=tmp_path / name, data=data, train=train, precision="32-true", loss=loss)
        return load_pth(tmp_path / name / "final" / "lit_model.pth")["lm_head.weight"]

    assert not torch.equal(trained("ce", "cross_entropy"), trained("dft", "dft"))
    with pytest.raises(LitGPTError, match="--loss dft weighs the loss of the target alone"):
        trained("refused", "dft", z_loss=0.1)


def test_it_is_planned_as_pairs(lit_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = [str(lit_folder), "--train.max_seq_length", "64", "--train.max_steps", "2", "--plan.peak_tflops", "1"]
    for arguments in (["--method", "full"], ["--loss", "kto", "--beta", "0.2"]):
        plan("finetune_dpo", *common, *arguments)
        out = capsys.readouterr().out
        assert "16 micro-batches of 2 x 64 tokens" in out and f"{2 * 16 * 2 * 64:,} tokens" in out
    with pytest.raises(UsageError, match="--simpo_gamma is for"):
        plan("finetune_dpo", *common, "--simpo_gamma", "1")


# ------------------------------------------------------------------------------------------------- the real thing


@pytest.mark.slow
def test_two_epochs_prefer_held_out_answers(shared_assets: Path, stories260k: Path, tmp_path: Path) -> None:
    data = Preferences(
        path=shared_assets / "instruct" / "dpo_en_demo.json", val_split_fraction=0.2, prompt_style="default", seed=3
    )
    dpo.setup(
        stories260k,
        out_dir=tmp_path,
        data=data,
        method="full",
        precision="32-true",
        optimizer={"class_path": "AdamW", "init_args": {"lr": 2e-4}},
        train=TrainArgs(
            epochs=2, global_batch_size=8, micro_batch_size=8, max_seq_length=192, lr_warmup_steps=5, min_lr=0.0
        ),
        eval=EvalArgs(interval=1000, max_new_tokens=0, initial_validation=True),
    )
    rows = [row for row in read_metrics(tmp_path / "logs" / "csv" / "version_0" / "metrics.csv") if "val_loss" in row]
    assert rows[0]["val_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[-1]["val_accuracy"] >= rows[0]["val_accuracy"] + 0.1
    assert rows[-1]["val_margin"] > 0


def test_the_recipe_is_read(tmp_path: Path) -> None:
    from litgpt.cli.parser import parse

    recipe = ROOT / "config_hub" / "finetune" / "smollm2-135m" / "dpo.yaml"
    values = parse("finetune_dpo", dpo.setup, ["--config", str(recipe), "--out_dir", str(tmp_path)])
    assert isinstance(values["data"], Preferences) and values["loss"] == "dpo"
    assert values["optimizer"]["init_args"] == {"lr": 1e-4}
    usual = parse("finetune_dpo", dpo.setup, [str(tmp_path)])
    assert usual["optimizer"] == {"class_path": "AdamW", "init_args": {"lr": 1e-5}}

"""`finetune_distill` from its arguments to a folder, with every kind of teacher; and `distill prepare`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from litgpt.args import EvalArgs, TrainArgs
from litgpt.checkpoint.reader import load_pth
from litgpt.checkpoint.writer import save_state
from litgpt.config import Config
from litgpt.data import JSON
from litgpt.engine.inference_model import InferenceModel
from litgpt.errors import LitGPTError, UsageError
from litgpt.finetune import distill, full
from litgpt.model import GPT
from litgpt.scripts.distill_prepare import prepare
from litgpt.training.metrics import metrics
from litgpt.training.metrics.loggers import read_metrics
from tests.deploy.served import make_service, running
from tests.tiny_tokenizer import SIZE

FAST = {"class_path": "AdamW", "init_args": {"lr": 0.01}}


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(metrics, "draw_loss", lambda rows, path, title: path)


@pytest.fixture(scope="module")
def teacher(lit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wider model of the same tokenizer, with more rows than there are tokens."""
    folder = tmp_path_factory.mktemp("teacher") / "model"
    shutil.copytree(lit_folder, folder)
    torch.manual_seed(5)
    sizes = dict(n_layer=2, n_head=4, n_embd=48, vocab_size=SIZE, padding_multiple=64, block_size=256)
    model = GPT(Config(**sizes))
    model.config.save(folder)
    save_state(folder / "lit_model.pth", model.state_dict())
    return folder


def data_of(file: Path, **changes: Any) -> JSON:
    return JSON(file, **{"val_split_fraction": 0.2, "prompt_style": "default", "mask_prompt": True, **changes})


def run(folder: Path, teacher: object, data_file: Path, out_dir: Path, **arguments: Any) -> list[dict[str, float]]:
    settings = dict(global_batch_size=4, micro_batch_size=2, lr_warmup_steps=0, max_steps=4, save_interval=2)
    train = TrainArgs(**{**settings, "min_lr": 0.0, **arguments.pop("train", {})})
    evaluation = EvalArgs(interval=2, max_new_tokens=2, initial_validation=True)
    given = {"data": data_of(data_file), "precision": "32-true", "optimizer": FAST, **arguments}
    distill.setup(folder, teacher=str(teacher), out_dir=out_dir, train=train, eval=evaluation, **given)
    return read_metrics(sorted((out_dir / "logs" / "csv").iterdir())[-1] / "metrics.csv")


def column(rows: list[dict[str, float]], name: str) -> list[float]:
    return [row[name] for row in rows if name in row]


def test_a_student_nears_its_teacher_and_resumes_exactly_with_its_own_answers_too(
    lit_folder: Path, teacher: Path, data_file: Path, tmp_path: Path
) -> None:
    options = dict(on_policy=0.5, max_new_tokens=6, divergence="jsd", alpha=0.9)
    rows = run(lit_folder, teacher, data_file, tmp_path / "whole", **options)
    near = column(rows, "val_divergence")
    assert near[-1] < near[0] and "val_ppl" in rows[0]
    again = run(lit_folder, teacher, data_file, tmp_path / "b", resume=tmp_path / "whole" / "step-000002", **options)
    assert column(again, "loss") == column(rows, "loss")
    ours, theirs = (load_pth(tmp_path / name / "final" / "lit_model.pth") for name in ("whole", "b"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    off = run(lit_folder, teacher, data_file, tmp_path / "off", **{**options, "on_policy": 0.0}, train={"max_steps": 1})
    assert column(off, "total_tokens")[0] != column(rows, "total_tokens")[0]  # the answers are others


def test_stored_and_served_teachers_say_what_the_model_beside_it_says(
    lit_folder: Path, teacher: Path, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = dict(train={"max_steps": 2, "save_interval": None}, method="lora")
    beside = run(lit_folder, teacher, data_file, tmp_path / "beside", **short)
    common: Any = dict(data=data_of(data_file), precision="32-true", out_dir=tmp_path / "top")
    prepare(lit_folder, str(teacher), top_k=10_000 % 4096, **common)  # all tokens
    stored = run(lit_folder, tmp_path / "top", data_file, tmp_path / "stored", **short)
    with running(make_service(InferenceModel.load(teacher, "cpu", "32-true"))) as address:
        served = run(lit_folder, address, data_file, tmp_path / "served", **short)
        prepare(lit_folder, address, data=data_of(data_file), out_dir=tmp_path / "from_server", top_k=20)
    again = run(lit_folder, tmp_path / "from_server", data_file, tmp_path / "again", **short)
    assert column(stored, "loss") == pytest.approx(column(beside, "loss"), rel=1e-4)
    assert column(again, "loss") == pytest.approx(column(served, "loss"), rel=1e-4)
    assert all(few < whole + 1e-4 for few, whole in zip(column(served, "loss"), column(beside, "loss"), strict=True))
    for changed, complaint in (
        ({"data": data_of(data_file, prompt_style="alpaca")}, "another training set"),
        ({"temperature": 2.0}, "another temperature"),
        ({"on_policy": 0.5}, "--on_policy makes others"),
    ):
        with pytest.raises(LitGPTError, match=complaint):
            run(lit_folder, tmp_path / "top", data_file, tmp_path / "refused", **changed)
    capsys.readouterr()
    prepare(lit_folder, str(teacher), top_k=10_000 % 4096, **common)
    assert capsys.readouterr().out.splitlines()[-1].startswith("0 samples asked")


def test_what_does_not_go_together_is_refused(lit_folder: Path, teacher: Path, data_file: Path, tmp_path: Path) -> None:
    cases: list[tuple[object, dict[str, Any], str]] = [
        ("", {}, "Give --teacher"),
        (teacher, {"teacher_name": "a"}, "--teacher_name is for a teacher that is served"),
        (teacher, {"on_policy": 2.0}, "--on_policy is a share"),
        (teacher, {"on_policy": 0.5, "data": data_of(data_file, mask_prompt=False)}, "where answers begin"),
        (teacher, {"train": {"z_loss": 0.1}}, "train.z_loss is of the cross-entropy"),
        (teacher, {"method": "full", "quantize": "bnb.nf4"}, "--quantize keeps frozen"),
        ("http://127.0.0.1:9", {"temperature": 2.0}, "--temperature is 1 with a server"),
        ("http://127.0.0.1:9", {"teacher_quantize": "int8"}, "--teacher_quantize is for a teacher's folder"),
    ]
    for which, arguments, complaint in cases:
        with pytest.raises(UsageError, match=complaint):
            run(lit_folder, which, data_file, tmp_path / "out", **arguments)
    with pytest.raises(LitGPTError, match="doesn't answer"):
        run(lit_folder, "http://127.0.0.1:9", data_file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_vocabulary_is_refused_in_one_sentence(lit_folder: Path, data_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(lit_folder, other)
    file = other / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = [token for token in vocabulary if token.isalpha()][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]  # two tokens, the other way round
    file.write_text(json.dumps(content))
    with pytest.raises(LitGPTError, match="has another vocabulary than the student"):
        run(lit_folder, other, data_file, tmp_path / "out")


# ------------------------------------------------------------------------------------------------- the real thing


@pytest.mark.slow
def test_a_distilled_student_beats_one_without_a_teacher_on_held_out_text(
    stories260k: Path, shared_assets: Path, tmp_path: Path
) -> None:
    """The teacher is the real model; the student, half of its layers, relearns from what the teacher itself writes."""
    student = tmp_path / "student"
    shutil.copytree(stories260k, student, copy_function=shutil.copyfile)
    config = json.loads((student / "config.json").read_text())
    config["num_hidden_layers"] = config["num_hidden_layers"] // 2 + 1
    (student / "config.json").write_text(json.dumps(config))
    (student / "model.safetensors").unlink()
    state = {
        name: tensor
        for name, tensor in InferenceModel.load(stories260k, "cpu", "32-true").model.state_dict().items()
        if not name.startswith("transformer.h.") or int(name.split(".")[2]) < config["num_hidden_layers"]
    }
    lit = tmp_path / "lit"
    lit.mkdir()
    for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(stories260k / name, lit / name)
    Config.from_hf(student).save(lit)
    save_state(lit / "lit_model.pth", state)
    stories = tmp_path / "stories.jsonl"
    model = InferenceModel.load(stories260k, "cpu", "32-true")
    engine = model.engine(32, 130)
    from litgpt.engine.sampling import Sampling

    asked = [engine.submit(model.encode("Once upon a time"), Sampling(seed=n), model.stops, 120) for n in range(64)]
    with stories.open("w") as out:
        for text in [model.tokenizer.decode(request.result()) for request in asked]:
            out.write(json.dumps({"instruction": "Once upon a time", "output": text}) + "\n")
    common: Any = dict(
        data=JSON(stories, val_split_fraction=0.25, prompt_style="default", seed=3),
        precision="32-true",
        optimizer={"class_path": "AdamW", "init_args": {"lr": 1e-3}},
        train=TrainArgs(max_steps=30, global_batch_size=8, micro_batch_size=8, lr_warmup_steps=2, min_lr=0.0),
        eval=EvalArgs(interval=1000, max_new_tokens=0),
    )
    full.setup(lit, out_dir=tmp_path / "alone", **common)
    distill.setup(lit, teacher=str(stories260k), alpha=0.5, method="full", out_dir=tmp_path / "taught", **common)
    alone, taught = (
        column(read_metrics(tmp_path / name / "logs" / "csv" / "version_0" / "metrics.csv"), "val_loss")[-1]
        for name in ("alone", "taught")
    )
    print(f"validation loss alone {alone:.4f}, taught {taught:.4f}")
    assert taught < alone - 0.01

"""The options of a step, in whole runs: the guard, steps in the backward pass, and resuming with each of them."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from litgpt.checkpoint.reader import load_pth
from litgpt.lora import LoRA
from litgpt.runtime import make_fabric
from litgpt.training import blocks
from litgpt.training import spike_guard as guard
from litgpt.training.batching.documents import Documents
from litgpt.training.loop import fit
from litgpt.training.run import Run
from litgpt.training.state import resume_point
from tests.training.runs import LENGTHS, column, make_run, make_samples, tiny_model, weights

pytestmark = pytest.mark.usefixtures("no_picture")


# --------------------------------------------------------------------------------------------------------- guard


def test_steps_with_a_loss_that_is_not_finite_are_skipped_and_said(tmp_path, capsys):
    def train(out_dir: Path, **train: Any) -> Run:
        model = tiny_model()
        with torch.no_grad():
            model.transformer.wte.weight[5] = float("nan")
        samples = make_samples([8] * 4)
        for number, sample in enumerate(samples):
            sample["input_ids"][sample["input_ids"] == 5] = 6
            sample["input_ids"][3] = 5 if number == 2 else 7
        run = make_run(
            out_dir,
            model=model,
            train_dataset=samples,
            train={"global_batch_size": 1, "max_steps": 8, **train},
            optimizer={"class_path": "AdamW", "init_args": {"lr": 1e-2, "weight_decay": 0.0}},
        )
        fit(run)
        return run

    guarded = train(tmp_path / "guarded", guard=0)
    said = [
        line for line in capsys.readouterr().out.splitlines() if "is skipped by train.guard: its loss is nan" in line
    ]
    assert len(said) == 2 and said[1].endswith("(2 so far).")
    assert column(tmp_path / "guarded", "skipped_steps")[-1] == 2
    assert int(weights(guarded).isnan().sum()) == guarded.model.config.n_embd  # the row that was
    assert int(weights(train(tmp_path / "not")).isnan().sum()) > 1000


def test_the_norm_of_the_gradients_is_always_logged(tmp_path):
    runs = {"plain": {}, "clipped": {"max_norm": 0.5}, "guarded": {"guard": 1000.0}}
    runs["in backward"] = {"optimizer_in_backward": True, "micro_batch_size": 4}
    found = {}
    for name, train in runs.items():
        run = make_run(tmp_path / name, train=train, optimizer={"class_path": "SGD", "init_args": {"lr": 0.0}})
        fit(run)
        found[name] = column(tmp_path / name, "grad_norm")
        assert len(found[name]) == 3
    for name in runs:
        assert found[name] == pytest.approx(found["plain"], rel=1e-5), name


# ---------------------------------------------------------------------------------------------- equal and resumable

ADAMW = {"class_path": "AdamW", "init_args": {"lr": 1e-2}}
OPTIONS: dict[str, tuple[dict[str, Any], Any]] = {
    "checkpointing": (dict(activation_checkpointing="full"), ADAMW),
    "checkpointing every other": (dict(activation_checkpointing=2), ADAMW),
    "in backward": (dict(optimizer_in_backward=True, micro_batch_size=4), ADAMW),
    "Muon": (dict(max_norm=1.0), {"class_path": "Muon", "init_args": {"lr": 1e-2, "adamw_lr": 3e-3}}),
    "Muon in backward": (dict(optimizer_in_backward=True, micro_batch_size=4), "Muon"),
    "8 bits": ({}, "AdamW8bit"),
    "guard": (dict(guard=1.02), ADAMW),
    "z-loss and smoothing": (dict(z_loss=1e-2, label_smoothing=0.1), ADAMW),
    "linear": (dict(lr_schedule="linear"), ADAMW),
    "wsd": (dict(lr_schedule="wsd", lr_decay_fraction=0.5), ADAMW),
    "constant": (dict(lr_schedule="constant"), ADAMW),
    "all decay": (dict(decay_norms_and_biases=True), ADAMW),
    "document masks": (dict(document_masks=True), ADAMW),
}


def option_run(out_dir: Path, option: str, method: str = "full", **fields: Any) -> Run:
    settings, optimizer = OPTIONS[option]
    train = {"max_steps": 6, "save_interval": 3, "lr_warmup_steps": 2, **settings, **fields.pop("train", {})}
    model, samples = tiny_model(), make_samples(LENGTHS)
    if settings.get("document_masks"):
        fields["train_dataset"] = Documents(samples, None, 7)
    else:
        fields["train_dataset"] = samples
    if method == "lora":
        lora = LoRA(r=2, dropout=0.5, mlp=True)
        torch.manual_seed(7)
        lora.attach(model)
        fields.update(owns=lora.owns, weights_file="lit_model.pth.lora")
    return make_run(out_dir, model=model, train=train, optimizer=optimizer, **fields)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("option", OPTIONS)
def test_a_run_with_an_option_resumes_exactly(tmp_path, option, method, monkeypatch):
    if "8 bits" in option:
        pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(guard, "ENOUGH", 2)
    whole = option_run(tmp_path / "whole", option, method)
    fit(whole)
    resumed = option_run(tmp_path / "again", option, method, resume=tmp_path / "whole" / "step-000003")
    fit(resumed)
    assert torch.equal(weights(whole), weights(resumed))
    assert column(tmp_path / "again", "loss")[-3:] == column(tmp_path / "whole", "loss")[-3:]
    if option == "guard" and method == "full":
        assert 0 < column(tmp_path / "whole", "skipped_steps")[-1] == column(tmp_path / "again", "skipped_steps")[-1]


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("option", ["checkpointing", "checkpointing every other", "in backward"])
def test_options_of_memory_change_no_weight(tmp_path, option, method):
    plain = dict(activation_checkpointing="off", optimizer_in_backward=False)
    runs = [option_run(tmp_path / str(i), option, method, train=train) for i, train in enumerate(({}, plain))]
    for run in runs:
        fit(run)
    assert torch.equal(weights(runs[0]), weights(runs[1]))
    assert resume_point("auto", tmp_path / "0") == tmp_path / "0" / "step-000006"


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("option", ["checkpointing", "in backward", "Muon", "8 bits", "guard", "z-loss and smoothing"])
def test_options_learn_in_every_precision(tmp_path, option, precision):
    if "8 bits" in option:
        pytest.importorskip("bitsandbytes")
    fabric = make_fabric(1, precision=precision, device="cpu")
    train = {"max_steps": 20, "save_interval": None, "lr_warmup_steps": 0}
    if option == "guard":
        train["guard"] = 10.0
    run = option_run(tmp_path, option, train=train, fabric=fabric)
    if isinstance(run.optimizer, str):
        run.optimizer = {"class_path": run.optimizer, "init_args": {"lr": 1e-2}}
    fit(run)
    found = column(tmp_path, "loss")
    assert sum(found[-3:]) < sum(found[:3]) - 0.3


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_run_has_the_losses_of_a_plain_one(tmp_path, monkeypatch):
    compile_blocks = blocks.compile_blocks
    monkeypatch.setattr(blocks, "compile_blocks", lambda model, device: compile_blocks(model, device, "eager"))
    for name, compile in (("plain", False), ("compiled", True)):
        train = {"compile": compile, "activation_checkpointing": "full"}
        run = make_run(tmp_path / name, train=train, val_dataset=make_samples([9, 20]))
        fit(run)
        assert "forward" not in vars(run.model.transformer.h[0])
    torch._dynamo.reset()
    for found in ("loss", "val_loss"):
        assert column(tmp_path / "compiled", found) == pytest.approx(column(tmp_path / "plain", found), abs=1e-6)


# ------------------------------------------------------------------------------------------------------- two ranks


def train_on(out_dir: Path, ranks: int, **train: Any) -> None:
    settings = dict(epochs=2, max_steps=None, global_batch_size=5, guard=1.5, label_smoothing=0.1, z_loss=1e-3)
    run = make_run(
        out_dir,
        train_dataset=make_samples(LENGTHS, masked=True),
        train={**settings, **train},
        optimizer={"class_path": "SGD", "init_args": {"lr": 0.5}},
        fabric=make_fabric(ranks, precision="32-true", device="cpu", seed=3),
    )
    fit(run)


def rank(number: int, port: int, out_dir: Path) -> None:
    address = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", NODE_RANK="0")
    os.environ.update(address, LOCAL_RANK=str(number))
    torch.set_num_threads(1)
    train_on(out_dir, 2, micro_batch_size=2, activation_checkpointing="full")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def test_two_ranks_that_checkpoint_and_guard_are_one_that_keeps_all(tmp_path):
    train_on(tmp_path / "one", 1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.get_context("forkserver").set_forkserver_preload(["lightning.fabric"])
    multiprocessing.start_processes(rank, args=(port, tmp_path / "two"), nprocs=2, start_method="forkserver")
    one, two = (load_pth(tmp_path / name / "final" / "lit_model.pth") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-6, atol=1e-6)
    for name in ("loss", "grad_norm", "skipped_steps"):
        assert column(tmp_path / "one", name) == pytest.approx(column(tmp_path / "two", name), rel=1e-6, abs=1e-6)

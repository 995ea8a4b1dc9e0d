"""Two gloo ranks on the CPU against one."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import multiprocessing

from litgpt.args import EvalArgs
from litgpt.checkpoint.reader import load_pth
from litgpt.runtime import leave_processes, make_fabric
from litgpt.training.loop import fit
from litgpt.training.metrics.loggers import read_metrics
from tests.training.runs import LENGTHS, make_run, make_samples

SETTINGS: dict[str, Any] = dict(epochs=3, max_steps=None, global_batch_size=7, max_norm=1.0, save_interval=3)
"""Six steps; the last one has one sample, so that one rank of two has none."""


def train(out_dir: Path, ranks: int, micro_batch_size: int) -> None:
    run = make_run(
        out_dir,
        train_dataset=make_samples(LENGTHS, masked=True),
        val_dataset=make_samples([9, 14, 30], seed=5, masked=True),
        train={**SETTINGS, "micro_batch_size": micro_batch_size},
        eval=EvalArgs(interval=2),
        optimizer={"class_path": "SGD", "init_args": {"lr": 0.5}},
        fabric=make_fabric(ranks, precision="32-true", device="cpu", seed=3),
    )
    fit(run)


def rank(number: int, port: int, out_dir: Path) -> None:
    address = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", NODE_RANK="0")
    os.environ.update(address, LOCAL_RANK=str(number))
    torch.set_num_threads(1)
    train(out_dir, 2, micro_batch_size=3)
    leave_processes()
    # a thread that the process group leaves behind can abort the process at its end
    assert "gloo" not in "".join(file.read_text() for file in Path("/proc/self/task").glob("*/comm"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """What a run of one rank and a run of two left."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    train(one, 1, micro_batch_size=1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.get_context("forkserver").set_forkserver_preload(["lightning.fabric"])  # imported once, not twice
    multiprocessing.start_processes(rank, args=(port, two), nprocs=2, start_method="forkserver")
    return one, two


def test_losses_are_equal(folders):
    one, two = (read_metrics(folder / "logs" / "csv" / "version_0" / "metrics.csv") for folder in folders)
    assert len(one) == len(two) > 6
    for name in ("step", "loss", "val_loss", "grad_norm", "learning_rate", "total_tokens"):
        assert [row.get(name) for row in one] == pytest.approx([row.get(name) for row in two], abs=1e-6), name


def test_weights_are_equal(folders):
    one, two = (load_pth(folder / "final" / "lit_model.pth") for folder in folders)
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=1e-6, atol=1e-6)


def test_the_first_rank_alone_saves_a_whole_folder(folders):
    for folder in folders:
        assert sorted(path.name for path in folder.iterdir()) == [
            "final",
            "logs",
            "loss.png",
            "report.html",
            "step-000003",
            "step-000006",
        ]

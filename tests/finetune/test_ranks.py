"""Preferences and rewards on two gloo ranks against one."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from torch import multiprocessing

from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import Preferences, Prompts
from litgpt.finetune import dpo, grpo
from litgpt.runtime import leave_processes
from litgpt.training.metrics.loggers import read_metrics

WORDS = ["cat", "dog", "cow", "hen", "pig", "fox", "bee", "ant", "owl", "elk"]
COMMON: dict[str, Any] = dict(precision="32-true", optimizer={"class_path": "SGD", "init_args": {"lr": 0.05}})
SETTINGS: dict[str, Any] = dict(max_steps=3, lr_warmup_steps=0, min_lr=0.0, save_interval=None)
REWARD = "def short(prompts, completions, **columns):\n    return [-len(text) / 10 for text in completions]\n"


def preferences(folder: Path, files: Path, out_dir: Path, devices: int) -> None:
    """Three pairs a step, so that two ranks have not equally many."""
    dpo.setup(
        folder,
        out_dir=out_dir,
        devices=devices,
        data=Preferences(path=files / "pairs.json", val_split_fraction=0.2, prompt_style="default", seed=1),
        train=TrainArgs(**SETTINGS, global_batch_size=3, micro_batch_size=1),
        eval=EvalArgs(interval=2, max_new_tokens=None, initial_validation=True),
        **COMMON,
    )


def rewards(folder: Path, files: Path, out_dir: Path, devices: int) -> None:
    grpo.setup(
        folder,
        out_dir=out_dir,
        devices=devices,
        reward=f"{files}/own.py:short",
        group_size=3,
        updates=2,
        beta=0.1,
        max_new_tokens=4,
        data=Prompts(path=files / "prompts.json", val_split_fraction=0.2, prompt_style="default", seed=1),
        train=TrainArgs(**SETTINGS, global_batch_size=1, micro_batch_size=2),
        eval=EvalArgs(interval=2, max_new_tokens=None, initial_validation=True),
        **COMMON,
    )


def rank(number: int, ports: tuple[int, ...], folder: Path, files: Path, out_dir: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", WORLD_SIZE="2", NODE_RANK="0", LOCAL_RANK=str(number))
    for port, train in zip(ports, (preferences, rewards), strict=True):
        os.environ["MASTER_PORT"] = str(port)
        train(folder, files, out_dir / train.__name__, 2)
        leave_processes()


def free_ports(count: int) -> tuple[int, ...]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = tuple(each.getsockname()[1] for each in sockets)
    for each in sockets:
        each.close()
    return ports


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(lit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITGPT_CACHE", str(tmp_path / "cache"))
    pairs = [{"prompt": f"Name the {word}.", "chosen": f"It is the {word}.", "rejected": "No."} for word in WORDS]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    (tmp_path / "prompts.json").write_text(json.dumps([{"prompt": pair["prompt"]} for pair in pairs]))
    (tmp_path / "own.py").write_text(REWARD)
    one, two = tmp_path / "one", tmp_path / "two"
    for train in (preferences, rewards):
        train(lit_folder, tmp_path, one / train.__name__, 1)
    multiprocessing.get_context("forkserver").set_forkserver_preload(["lightning.fabric"])
    arguments = (free_ports(2), lit_folder, tmp_path, two)
    multiprocessing.start_processes(rank, args=arguments, nprocs=2, start_method="forkserver")
    for name in ("preferences", "rewards"):
        ours, theirs = (
            read_metrics(folder / name / "logs" / "csv" / "version_0" / "metrics.csv") for folder in (one, two)
        )
        for key in {"preferences": ("loss", "margin", "val_loss"), "rewards": ("reward", "loss", "val_reward")}[name]:
            found, expected = ([row[key] for row in rows if key in row] for rows in (theirs, ours))
            assert found and found == pytest.approx(expected, rel=1e-3, abs=1e-5), (name, key)

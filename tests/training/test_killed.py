"""Real processes, killed at a random moment: what goes on from there is the run that never stopped, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from litgpt.checkpoint.reader import load_pth
from litgpt.training.metrics.loggers import read_metrics
from tests.paths import ROOT

MODEL = ROOT / "litgpt" / "assets" / "austen-2m"
TRAIN = (
    "--train.max_steps 30 --train.save_interval 3 --train.global_batch_size 4 --train.micro_batch_size 2 "
    "--train.max_seq_length 96 --train.lr_warmup_steps 5 --train.keep_last 2 --eval.interval 5 --eval.max_iters 2 "
    "--train.keep_best true --train.patience 9 --precision 32-true --devices 1 --logger_name csv"
).split()
CASES = [
    (command, kind)
    for command in ("pretrain", "finetune_full", "finetune_lora", "finetune_adapter", "finetune_adapter_v2")
    for kind in (signal.SIGKILL, signal.SIGTERM)
]


def command_line(command: str, folder: Path, out_dir: Path) -> list[str]:
    if command == "pretrain":
        shape = ["--initial_checkpoint_dir", str(MODEL), "--train.max_tokens", "null", "--data", "TextFiles"]
        data = ["--data.train_data_path", str(MODEL.parent / "text" / "val"), "--data.cache_dir", str(folder / "cache")]
        arguments = ["austen", *shape, *data]
    else:
        rows = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n % 9)))} for n in range(40)]
        (folder / "data.json").write_text(json.dumps(rows))
        data = ["--data", "JSON", "--data.json_path", str(folder / "data.json"), "--data.val_split_fraction", "0.2"]
        arguments = [str(MODEL), *data, "--train.epochs", "null"]
    return [sys.executable, "-m", "litgpt", command, *arguments, *TRAIN, "--out_dir", str(out_dir)]


def start(line: list[str]) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, said = process.communicate(timeout=300)
    return process.returncode, said.decode()


def rows(out_dir: Path) -> list[dict[str, float]]:
    return read_metrics(out_dir / "logs" / "csv" / "version_0" / "metrics.csv")


@pytest.mark.slow
@pytest.mark.parametrize(("command", "kind"), CASES, ids=lambda value: getattr(value, "name", value))
def test_a_killed_run_goes_on_as_if_it_had_never_stopped(command, kind, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, said = ended(start(command_line(command, tmp_path, whole)))
    assert code == 0, said
    process = start(command_line(command, tmp_path, killed))
    last = random.Random(f"{command} {kind}").randint(4, 26)
    while process.poll() is None and not any(row["step"] >= last for row in rows(killed)):
        time.sleep(0.01)
    process.send_signal(kind)
    code, _ = ended(process)
    assert code == (-signal.SIGKILL if kind == signal.SIGKILL else 1)
    code, said = ended(start([*command_line(command, tmp_path, killed), "--resume", "auto"]))
    assert code == 0, said
    for place in ("final", "best"):
        files = sorted((whole / place).glob("lit_model.pth*"))
        assert files
        for file in files:
            expected, found = load_pth(file), load_pth(killed / place / file.name)
            assert expected.keys() == found.keys()
            assert all(torch.equal(expected[name], found[name]) for name in expected), file
    names = ("step", "loss", "val_loss", "learning_rate", "grad_norm", "total_tokens")
    assert [[row.get(name) for name in names] for row in rows(whole)] == [
        [row.get(name) for name in names] for row in rows(killed)
    ]
    assert len(list(killed.glob("step-*"))) == 2
    assert not list(killed.glob(".*")), "something half-written is left"

"""A run of several processes, one of which is killed: the others say so, and the run is gone on with."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from lightning.fabric.strategies.launchers import subprocess_script

from litgpt.checkpoint.reader import load_pth
from litgpt.runtime import make_fabric
from tests.paths import ROOT

COMMAND = """
pretrain tiny --model_config.name tiny --model_config.n_layer 1 --model_config.n_embd 16 --model_config.n_head 2
--model_config.block_size 32 --model_config.vocab_size 2048 --model_config.padded_vocab_size 2048
--tokenizer_dir AUSTEN --data TextFiles --data.train_data_path TEXT --data.val_data_path TEXT --devices 2
--train.global_batch_size 4 --train.micro_batch_size 2 --train.save_interval 5 --train.log_interval 1
--train.keep_last 1 --train.lr_warmup_steps 0 --eval.max_iters 1 --logger_name csv --precision 32-true
"""


def command(folder: Path, steps: int, strategy: str) -> list[str]:
    own = folder / "text.txt"
    text = sorted((ROOT / "litgpt" / "assets" / "text").rglob("*.txt"))[0].read_text(encoding="utf-8")
    own.write_text(text[:60_000], encoding="utf-8")
    words = COMMAND.replace("AUSTEN", str(ROOT / "litgpt" / "assets" / "austen-2m")).replace("TEXT", str(own)).split()
    more = ["--train.max_steps", str(steps), "--out_dir", str(folder / "out"), "--strategy", strategy]
    return [sys.executable, "-m", "litgpt", *words, *more]


@pytest.mark.slow
def test_the_others_say_that_a_process_is_gone_and_the_run_goes_on(tmp_path: Path, strategy: str = "fsdp") -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LITGPT_CACHE": str(tmp_path / "cache")}
    run = subprocess.Popen(
        command(tmp_path, 100_000, strategy), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "out").glob("step-*/*.pth*")) and run.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (second,) = [one for one in psutil.Process(run.pid).children() if "litgpt" in " ".join(one.cmdline())]
        second.send_signal(signal.SIGKILL)
        _, said = run.communicate(timeout=60)
    finally:
        run.kill()
    assert run.returncode == 1, said[-3000:]
    assert "Traceback" not in said
    (sentence,) = [line for line in said.splitlines() if line.startswith("litgpt: ")]
    assert "Another process of this run is gone" in sentence and "--resume auto goes on from" in sentence
    (kept,) = (tmp_path / "out").glob("step-*")
    last = int(kept.name.removeprefix("step-"))
    done = subprocess.run(
        [*command(tmp_path, last + 2, strategy), "--resume", "auto"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"Going on after step {last}" in done.stdout
    assert load_pth(tmp_path / "out" / "final" / "lit_model.pth")


def test_the_others_have_time_to_say_so() -> None:
    make_fabric(1, precision="32-true", device="cpu", seed=1)
    assert subprocess_script._ChildProcessObserver(1, [])._sleep_period == 60

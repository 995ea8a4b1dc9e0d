"""What each finetuning method learns: methods × tasks in one table, in the manner of PEFT's comparison of methods.

    python benchmarks/learning.py MODEL ASSETS [--samples 64] [--questions 16] [--only NAME ...]

MODEL is a folder with a chat model (SmolLM2-135M-Instruct, say), ASSETS one with `instruct/alpaca_en_demo.json`,
`instruct/gsm8k_test.jsonl` and `text/tinyshakespeare.txt`. Every method starts from the model, sees the same short
samples of both data sets in the same order, once, in steps of four, in a process of its own with one thread and
float32, with a learning rate that suits it. Measured before and after, on samples that none saw:

- alpaca: bits per byte of the answer, each after its question; and which of four answers the model finds likeliest by
  character, the right one or those of the three questions after it;
- gsm8k: bits per byte of the solution;
- other text: bits per byte of Shakespeare, which nothing teaches: what is forgotten.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contenders import ROOT, table

sys.path.insert(0, str(ROOT))

LONGEST = 220
"""Characters of a question, and of an answer: short ones, so that a CPU sees many."""
STEP = 4
"""Samples of an optimizer step."""
OTHER_TEXT = 2000
"""Characters of the text that nothing teaches."""
EVERYWHERE = dict(lora_key=True, lora_projection=True, lora_mlp=True, lora_dropout=0.0)
METHODS: dict[str, tuple[str, float, dict[str, Any]]] = {
    "none": ("", 0.0, {}),
    "full": ("full", 5e-5, {}),
    "LoRA, query and value": ("lora", 2e-3, dict(lora_dropout=0.0)),
    "LoRA": ("lora", 1e-3, EVERYWHERE),
    "rsLoRA, rank 32": ("lora", 5e-4, dict(EVERYWHERE, lora_r=32, lora_rslora=True)),
    "LoRA+": ("lora", 3e-4, dict(EVERYWHERE, lora_plus_ratio=8)),
    "DoRA": ("lora", 1e-3, dict(EVERYWHERE, lora_dora=True)),
    "PiSSA": ("lora", 3e-4, dict(EVERYWHERE, lora_init="pissa-fast")),
    "QLoRA (nf4)": ("lora", 1e-3, dict(EVERYWHERE, quantize="bnb.nf4")),
    "adapter": ("adapter", 1e-2, {}),
    "adapter v2": ("adapter_v2", 4e-3, {}),
}
"""Name -> command, learning rate, flags. LoRA has rank 8 and alpha 16 on all layers but the head, or as it says."""
Samples = dict[str, list[dict[str, str]]]
"""Data set -> rows with `prompt` and `answer`."""
COLUMNS = ["method", "trained", "memory, GB", "CPU s", "alpaca, bits", "right of 4", "gsm8k, bits", "other text, bits"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("assets", type=Path)
    parser.add_argument("--samples", type=int, default=64, help="to learn from, half of them of each data set")
    parser.add_argument("--questions", type=int, default=16, help="to evaluate on, of each data set")
    parser.add_argument("--only", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measured(arguments.one, arguments)))
        return
    rows = []
    for name in arguments.only:
        own = [str(arguments.model), str(arguments.assets), "--one", name]
        sizes = ["--samples", str(arguments.samples), "--questions", str(arguments.questions)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "Agg"}
        done = subprocess.run(
            [sys.executable, "-W", "ignore", __file__, *own, *sizes],
            env=environment,
            stdout=subprocess.PIPE,
            check=True,
        )
        rows.append(shown(name, json.loads(done.stdout.decode().strip().splitlines()[-1])))
        print(table(COLUMNS, rows), file=sys.stderr, flush=True)
    print(table(COLUMNS, rows))


def shown(name: str, found: dict[str, float]) -> list[object]:
    trained = [""] * 3
    if name != "none":
        trained = [f"{found['trained'] / 1e6:.2f} M", f"{found['memory'] / 1e9:.2f}", f"{found['seconds']:.0f}"]
    bits = [f"{found[key]:.3f}" for key in ("alpaca", "gsm8k", "other")]
    return [name, *trained, bits[0], f"{found['right']:.0%}", *bits[1:]]


def read(arguments: argparse.Namespace) -> tuple[Samples, Samples, str]:
    """The samples of both data sets to learn from and to evaluate on, and the text that nothing teaches."""
    assets = arguments.assets
    alpaca = json.loads((assets / "instruct" / "alpaca_en_demo.json").read_text(encoding="utf-8"))
    gsm8k = map(json.loads, (assets / "instruct" / "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines())
    pairs = {
        "alpaca": [{"prompt": row["instruction"], "answer": row["output"]} for row in alpaca if not row["input"]],
        "gsm8k": [{"prompt": row["question"], "answer": row["answer"]} for row in gsm8k],
    }
    half, learn, ask = arguments.samples // 2, {}, {}
    for name, rows in pairs.items():
        short = [row for row in rows if max(map(len, row.values())) <= LONGEST and len(row["answer"]) > 20]
        assert len(short) >= half + arguments.questions, f"{name} has {len(short)} short samples"
        learn[name], ask[name] = short[:half], short[-arguments.questions :]
    return learn, ask, (assets / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")[:OTHER_TEXT]


def measured(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Trains by one method and evaluates what came of it."""
    import torch

    torch.set_num_threads(1)
    learn, ask, other = read(arguments)
    found = dict(trained=0.0, memory=0.0, seconds=0.0)
    with tempfile.TemporaryDirectory() as work, contextlib.redirect_stdout(io.StringIO()):
        folder = arguments.model
        if METHODS[name][0]:
            folder, found = trained(name, arguments.model, learn, Path(work))
        return {**found, **evaluated(folder, ask, other)}


def trained(name: str, model: Path, learn: Samples, work: Path) -> tuple[Path, dict[str, float]]:
    """The folder of a finetuned model; the numbers trained, peak memory in bytes, and seconds of CPU time."""
    from importlib import import_module

    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import Conversations

    command, rate, flags = METHODS[name]
    setup = import_module(f"litgpt.finetune.{command}").setup
    rows = [row for both in zip(*learn.values(), strict=True) for row in both]
    data = work / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    start = time.process_time()
    setup(
        model,
        out_dir=work / "out",
        precision="32-true",
        data=Conversations(path=data, val_split_fraction=0.0, cache_dir=work / "cache"),
        train=TrainArgs(
            epochs=1, global_batch_size=STEP, micro_batch_size=STEP, lr_warmup_steps=2, save_interval=None, min_lr=0.0
        ),
        eval=EvalArgs(final_validation=False),
        optimizer={"class_path": "AdamW", "init_args": {"lr": rate, "weight_decay": 0.0}},
        **flags,
    )
    seconds = time.process_time() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return work / "out" / "final", dict(trained=learned(work / "out" / "final"), memory=memory, seconds=seconds)


def learned(folder: Path) -> float:
    """How many numbers a run has trained."""
    import torch

    file = next(iter(sorted(folder.glob("lit_model.pth.*"))), folder / "lit_model.pth")
    state = torch.load(file, mmap=True, weights_only=True)
    tensors = state.get("model", state).values()
    return sum({tensor.data_ptr(): tensor.numel() for tensor in tensors}.values())  # a tied head is there twice


def evaluated(folder: Path, ask: Samples, other: str) -> dict[str, float]:
    """What the docstring of this file names."""
    from litgpt.engine.inference_model import InferenceModel
    from litgpt.eval.models import LocalModel, Windows

    model = LocalModel(InferenceModel.load(folder, "cpu", "32-true"), str(folder))
    found = {}
    for name, rows in ask.items():
        prompts = [model.chat_prompt([{"role": "user", "content": row["prompt"]}]) for row in rows]
        answers = [row["answer"] for row in rows]
        choices = 4 if name == "alpaca" else 1
        pairs = [(prompt, answers[(i + k) % len(rows)]) for i, prompt in enumerate(prompts) for k in range(choices)]
        nats = [-one.logprob for one in model.loglikelihood(pairs)]
        found[name] = sum(nats[::choices]) / math.log(2) / sum(len(answer.encode()) for answer in answers)
        if choices > 1:
            by_character = [n / len(pair[1]) for n, pair in zip(nats, pairs, strict=True)]
            questions = [by_character[i : i + choices] for i in range(0, len(by_character), choices)]
            found["right"] = sum(min(one) == one[0] for one in questions) / len(questions)
    (text,) = model.rolling([other], Windows())
    found["other"] = -text.logprob / math.log(2) / len(other.encode())
    return found


if __name__ == "__main__":
    main()

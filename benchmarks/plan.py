"""What `litgpt plan` says a training takes on a CPU, beside what it takes.

    python benchmarks/plan.py [--only lora,full] [--json]

Every set-up trains random weights of SmolLM2-135M's width for two steps, in a process of its own, whose peak of
resident memory is measured. Printed, in MB: that peak, what the plan says is needed, their ratio; and the same above
what Python and the libraries take (measured by a training of next to nothing; in the plan `planner.LIBRARIES`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from litgpt.adapter import Adapter
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.peft import Full
from litgpt.quantize import quantize_model
from litgpt.runtime import make_fabric, parameter_dtype, peak_memory
from litgpt.training.loop import fit
from litgpt.training.planner.memory_estimate import RunSpec, estimate_memory
from litgpt.training.planner.planner import LIBRARIES, needed_memory
from litgpt.training.run import Run

CHECKPOINTED = {"activation_checkpointing": "full"}
METHODS = {"full": Full, "lora": LoRA, "adapter": Adapter}
SETUPS: dict[str, tuple[str, str, int, int, int, dict[str, Any]]] = {
    # method, precision, layers, micro-batch, tokens of a sample, other settings
    "full": ("full", "32-true", 6, 2, 256, {}),
    "full, checkpointing": ("full", "32-true", 6, 2, 256, CHECKPOINTED),
    "full, long": ("full", "32-true", 4, 1, 1024, {}),
    "full, bf16": ("full", "bf16-true", 12, 1, 64, {}),
    "full, bf16, checkpointing": ("full", "bf16-true", 12, 1, 64, CHECKPOINTED),
    "lora": ("lora", "32-true", 12, 2, 256, {}),
    "lora, checkpointing": ("lora", "32-true", 12, 4, 256, CHECKPOINTED),
    "lora, bf16": ("lora", "bf16-true", 12, 1, 128, {}),
    "adapter": ("adapter", "32-true", 12, 1, 256, {}),
    "qlora": ("lora", "bf16-true", 12, 1, 128, {"quantize": "bnb.nf4"}),
}
NOTHING = ("full", "32-true", 1, 1, 16, {"n_embd": 64, "n_head": 2, "n_query_groups": 2, "intermediate_size": 64})


def spec_of(setup: tuple[str, str, int, int, int, dict[str, Any]]) -> RunSpec:
    """The set-up as the planner takes it."""
    method, precision, layers, size, length, more = setup
    train = {name: value for name, value in more.items() if name in TrainArgs.__dataclass_fields__}
    shape = {name: value for name, value in more.items() if name in Config.__dataclass_fields__}
    return RunSpec(
        config=Config.from_name("SmolLM2-135M", n_layer=layers, vocab_size=8192, padded_vocab_size=8192, **shape),
        method=METHODS[method](),
        train=TrainArgs(
            micro_batch_size=size,
            global_batch_size=2 * size,
            max_steps=2,
            lr_warmup_steps=0,
            save_interval=None,
            **train,
        ),
        optimizer="AdamW",
        precision=precision,
        device=torch.device("cpu"),
        length=length,
        quantize=more.get("quantize"),
    )


def train(spec: RunSpec) -> int:
    """Trains; the peak of this process's memory, in bytes."""
    fabric = make_fabric(1, precision=spec.precision, device="cpu")
    dtype = parameter_dtype(spec.precision)
    model = GPT.skeleton(spec.config).to(dtype).to_empty(device="cpu")
    model.tie()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    if spec.quantize:
        quantize_model(model, spec.quantize, dtype)
    spec.method.attach(model)
    samples = [dict.fromkeys(("input_ids", "labels"), ids) for ids in torch.randint(8000, (16, spec.length + 1))]
    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, Any] = dict(model=model, train_dataset=samples, val_dataset=None, save=lambda folder: None)
        fit(Run(train=spec.train, eval=EvalArgs(), out_dir=Path(folder), fabric=fabric, owns=spec.method.owns, **parts))
    return peak_memory(fabric.device)


def measured(setup: tuple[str, str, int, int, int, dict[str, Any]]) -> int:
    """The same in a process of its own."""
    code = [sys.executable, __file__, "--measure", json.dumps(setup)]
    done = subprocess.run(code, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(done.stderr)
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="set-ups, separated by `;`")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(train(spec_of(json.loads(args.measure))))
        return
    libraries = measured(NOTHING)
    if not args.json:
        print(f"Libraries: {libraries / 1e6:,.0f} MB, planned {LIBRARIES['cpu'] / 1e6:,.0f}.")
        print(f"{'MB':<28}measured  planned    ratio  above libraries: measured  planned    ratio")
    for name in args.only.split(";") if args.only else SETUPS:
        of = spec_of(SETUPS[name])
        planned, real = needed_memory(estimate_memory(of), of.device), measured(SETUPS[name])
        above, planned_above = real - libraries, planned - LIBRARIES["cpu"]
        if args.json:
            print(json.dumps({"name": name, "measured": real, "planned": planned, "libraries": libraries}), flush=True)
            continue
        print(
            f"{name:<28}{real / 1e6:8,.0f} {planned / 1e6:8,.0f} {planned / real:8.3f}"
            f"{above / 1e6:26,.0f} {planned_above / 1e6:8,.0f} {planned_above / above:8.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

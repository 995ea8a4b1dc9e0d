"""Peak memory and time of a step on one pair of preferences against a finetuning step of the same tokens.

    python benchmarks/preference.py [--length 1024] [--methods lora,full] [--rounds 3]

Each side is a process of its own, one after the other in turn, so that what one leaves behind is not in the other's
peak; the table has medians.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time

SIZES = dict(n_layer=8, n_head=8, n_embd=512, n_query_groups=4, intermediate_size=1408, vocab_size=49152)

STEPS = 1
"""Memory is the same in every one; more of them for steadier seconds."""
LLAMA = dict(
    padded_vocab_size=49152,
    rotary_percentage=1.0,
    bias=False,
    parallel_residual=False,
    norm_class_name="RMSNorm",
    mlp_class_name="LLaMAMLP",
)


def step(side: str, method: str, length: int) -> tuple[float, float, float]:
    """Bytes of the model in memory, the peak above them, and seconds of the last step."""
    import torch

    from litgpt.config import Config
    from litgpt.lora import LoRA
    from litgpt.model import GPT
    from litgpt.model.initialization import initialize
    from litgpt.peft import Full, switched_off
    from litgpt.training.batching.packing import GIVEN, pack
    from litgpt.training.loss import NextToken
    from litgpt.training.preference.losses import PreferenceLoss
    from litgpt.training.preference.objective import Preferences

    torch.manual_seed(0)
    shared = dict(bias=False, parallel_residual=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP")
    model = GPT(
        Config(name="bench", block_size=length + 1, padded_vocab_size=49152, rotary_percentage=1.0, **SIZES, **shared)
    )
    initialize(model)
    chosen = LoRA(dropout=0.0) if method == "lora" else Full()
    chosen.attach(model)
    ids = torch.randint(SIZES["vocab_size"], (2, length + 1))
    one = [{"input_ids": row, "labels": row} for row in ids]
    if side == "sft":
        objective, batch = NextToken(model), pack(one)
    else:
        off = switched_off if method == "lora" else None
        objective = Preferences(model, PreferenceLoss("dpo"), off)  # type: ignore[assignment]
        pair = {"input_ids": ids.flatten(), "labels": ids.flatten(), "documents": torch.tensor([length + 1, length])}
        batch = pack([pair if off else {**pair, GIVEN: torch.tensor([-1e4, -1e4])}])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for _ in range(STEPS):
        start = time.perf_counter()
        objective(batch.inputs, batch.targets, batch.lengths, batch.given).backward()
        model.zero_grad()
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return before, peak - before, seconds


def main() -> None:
    """Runs both sides in turn and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--methods", default="lora,full")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(*step(*args.side, args.length))
        return
    print(f"A step of 2 x {args.length} tokens, {SIZES['vocab_size']:,} tokens in the vocabulary, float32, CPU")
    print(f"{'method':8}{'finetuning':>14}{'DPO':>14}{'ratio':>8}{'whole process':>16}{'seconds':>18}")
    for method in args.methods.split(","):
        found: dict[str, list[tuple[float, ...]]] = {"sft": [], "dpo": []}
        for _ in range(args.rounds):
            for side in found:
                command = [sys.executable, __file__, "--length", str(args.length), "--side", side, method]
                out = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout
                found[side].append(tuple(map(float, out.split())))
        base, peak, seconds = (
            {side: statistics.median(row[at] for row in rows) for side, rows in found.items()} for at in range(3)
        )
        whole = (base["dpo"] + peak["dpo"]) / (base["sft"] + peak["sft"])
        print(
            f"{method:8}{peak['sft'] / 1e6:>11,.0f} MB{peak['dpo'] / 1e6:>11,.0f} MB{peak['dpo'] / peak['sft']:>8.2f}"
            f"{whole:>16.2f}{seconds['sft']:>8.1f} → {seconds['dpo']:.1f}"
        )


if __name__ == "__main__":
    main()

"""Seconds from a file of instructions to the end of the first epoch, and of a second run, beside LitGPT.

    python benchmarks/tokenize.py [TOKENIZER] [--data FILE] [--samples 3000] [--peer PYTHON] [--rounds 7]

TOKENIZER is a folder with a tokenizer (the one that comes with litgpt if none is given), FILE a `.json` or `.jsonl`
file of instructions, whose rows are repeated, each with its number, up to `--samples`; without one, they are those that
come with litgpt, their answers made longer until they are as long as Alpaca's (log-normal, 120 tokens on average).
PYTHON is the interpreter of an environment with litgpt==0.5.13; without one, such an environment is made. Imports are
not counted. The start is all that happens before the first step: reading, splitting, tokenizing; LitGPT looks for the
longest sample there, which tokenizes everything once, and tokenizes it again in each epoch. An epoch reads every
training sample. All contenders must have the same tokens. Runs take turns; CPU seconds of all threads, and of the
clock, and how many of the machine's cores were busy; ratios are medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from contenders import ROOT, Contender, in_turn, paired, peer_python, table

OWN = ROOT / "litgpt/assets/instructions/train.jsonl"

FRAME = """
import json, os, sys, tempfile, time
os.environ["TOKENIZERS_PARALLELISM"] = "true"
folder, file = sys.argv[1:3]
from pathlib import Path
import torch
from litgpt.data import JSON
from litgpt.tokenizer import Tokenizer
tokenizer = Tokenizer(folder)
tokenizer.encode("warm")
print("null", flush=True)
for line in sys.stdin:
    cache = line.strip()
    clock = [(time.process_time(), time.perf_counter())]
    data = JSON(Path(file), mask_prompt=True, val_split_fraction=0.05{more})
    data.log = lambda sentence: None
    data.connect(tokenizer, batch_size=1)
    data.prepare_data()
    data.setup()
    longest = {longest}
    clock.append((time.process_time(), time.perf_counter()))
    tokens = total = learned = 0
    dataset = data.train_dataset
    for index in range(len(dataset)):
        sample = dataset[index]
        tokens += len(sample["input_ids"])
    clock.append((time.process_time(), time.perf_counter()))
    for index in range(0, len(dataset), 7):
        sample = dataset[index]
        total += int(sample["input_ids"].sum()) * (index + 1)
        learned += int((sample["labels"] != -100).sum())
    print(json.dumps(dict(clock=clock, seen=[len(dataset), longest, tokens, total, learned])), flush=True)
"""
OURS = FRAME.replace("{more}", ", cache_dir=Path(cache)").replace("{longest}", "max(data.train_dataset.lengths)")
THEIRS = FRAME.replace("{more}", "").replace(
    "{longest}", 'max(len(sample["input_ids"]) for sample in data.train_dataset)'
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", nargs="?", type=Path, default=ROOT / "litgpt/assets/austen-2m")
    parser.add_argument("--data", type=Path, help="a .json or .jsonl file; without one, ours at Alpaca's lengths")
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--peer", help="python of an environment with litgpt==0.5.13")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        file = instructions(arguments.data, arguments.samples, Path(work) / "data.json")
        peer = peer_python(arguments.peer, Path(work) / "peer")
        tokenizer = arguments.tokenizer.resolve()
        with (
            Contender("litgpt (here)", sys.executable, OURS, tokenizer, file) as ours,
            Contender("LitGPT 0.5.13", peer, THEIRS, tokenizer, file) as theirs,
        ):
            compare(ours, theirs, Path(work), arguments.rounds)


def instructions(source: Path | None, samples: int, target: Path) -> Path:
    """A file of `samples` instructions that are all different: the rows of `source`, or ours at Alpaca's lengths."""
    text = (source or OWN).read_text(encoding="utf-8")
    own_lines = (source or OWN).suffix == ".jsonl"
    rows = [json.loads(line) for line in text.splitlines() if line] if own_lines else json.loads(text)
    lengths = alpaca_characters(samples) if source is None else [0] * samples
    chosen = []
    for number, length in enumerate(lengths):
        row = dict(rows[number % len(rows)])
        row["instruction"] = f"{number}. {row['instruction']}"
        following = number
        while len(row["instruction"]) + len(row["output"]) < length:
            following += 1
            row["output"] += f" {rows[following % len(rows)]['output']}"
        chosen.append(row)
    target.write_text(json.dumps(chosen), encoding="utf-8")
    return target


def alpaca_characters(samples: int) -> list[int]:
    """How long Alpaca's samples are, without the prompt's frame: log-normal, 120 tokens on average, at most 512."""
    spread = statistics.NormalDist(math.log(120) - 0.32, 0.8)
    lengths = [round(4 * min(512, math.exp(spread.inv_cdf((i + 0.5) / samples)))) for i in range(samples)]
    random.Random(0).shuffle(lengths)
    return lengths


def compare(ours: Contender, theirs: Contender, work: Path, rounds: int) -> None:
    """Runs all, checks that they saw the same, and prints the table."""
    first, second, peer = [], [], []
    for number in range(rounds):
        cache = str(work / f"cache-{number}")  # a new one: the first run of a round tokenizes, the second one reads
        ((one,), (other,)) = in_turn([ours, theirs], 1, cache)
        first.append(one)
        peer.append(other)
        second.append(ours.ask(cache))
    seen = {json.dumps(run["seen"]) for run in (*first, *second, *peer)}
    if len(seen) > 1:
        sys.exit(f"The contenders saw different data (samples, longest, tokens, sums): {seen}")
    samples, longest, tokens, *_ = first[0]["seen"]
    print(f"{samples:,} training samples, {tokens:,} tokens, the longest {longest}; {rounds} rounds\n")
    rows: list[list[object]] = []
    for name, runs in (("LitGPT 0.5.13", peer), ("litgpt (here), first run", first), ("litgpt (here), again", second)):
        for what, column in (("CPU", 0), ("clock", 1)):
            row: list[object] = [name, what]
            for start, end in ((0, 1), (1, 2), (0, 2)):
                spent = [taken(of, start, end, column) for of in (runs, peer)]
                row += [f"{statistics.median(spent[0]):.3f}", f"{paired(spent[1], spent[0]):.1f} ×"]
            busy = paired(taken(runs, 0, 1, 0), taken(runs, 0, 1, 1))
            rows.append([*row, f"{busy:.1f} of {os.cpu_count()}" if column else ""])
    shown = ["contender", "seconds", "start", "faster", "epoch", "faster", "both", "faster", "cores busy at the start"]
    print(table(shown, rows))


def taken(runs: list[dict[str, Any]], start: int, end: int, column: int) -> list[float]:
    """Seconds from one point to another: of CPU (column 0), or of the clock (1)."""
    return [run["clock"][end][column] - run["clock"][start][column] for run in runs]

"""Time and memory of the loss, from hidden states to gradients, beside LitGPT's.

    python benchmarks/loss.py [--peer PYTHON] [--rounds 7] [--only bfloat16] [--tokens 4096 --vocabulary 128256]

PYTHON is the interpreter of an environment with litgpt==0.5.13; without one, an environment is made for the time of
the benchmark. Every variant is a process of its own with one thread. First their losses are compared, then each round
runs all of them in turn. Printed: the median of the CPU seconds (user + system) of forward and backward pass, the
median over the rounds of the ratio to each of LitGPT's, and the peak of memory above what hidden states and weights
take, gradients included, of a first pass. LitGPT is measured as it finetunes (logits in chunks of 128 positions) and
as it pretrains (whole logits), and with memory that the C library keeps for reuse, which is this package's setting in
training. At the sizes above all contenders together hold 20 GB.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from contenders import Contender, in_turn, paired, peer_python, table

FRAME = """
import ctypes, json, re, resource, sys, time
import torch
dtype, frozen, keeps = getattr(torch, sys.argv[1]), sys.argv[2] == "frozen", sys.argv[3] == "keeps"
N, C, V = map(int, sys.argv[4:7])
torch.set_num_threads(1)
torch.manual_seed(0)
if keeps:
    libc = ctypes.CDLL(None)
    libc.mallopt(-4, 0), libc.mallopt(-1, 2**31 - 1)
hidden = torch.randn(N, C).to(dtype).requires_grad_()
weight = torch.nn.Parameter((torch.randn(V, C) / C**0.5).to(dtype), requires_grad=not frozen)
targets = torch.randint(V, (N,))
{define}
def one():
    hidden.grad = weight.grad = None
    start = time.process_time()
    result = loss(hidden, weight, targets)
    result.backward()
    return time.process_time() - start, float(result.detach())
def status(field):
    with open("/proc/self/status") as lines:
        return 1024 * int(re.search(field + r":\\s+(\\d+) kB", lines.read())[1])
def peak():
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    _, value = one()
    return status("VmHWM") - before, value
product = hidden[:16].detach() @ weight[:16].detach().T  # what the first product sets up is nobody's
print("null", flush=True)
for line in sys.stdin:
    print(json.dumps(peak() if line.strip() == "memory" else one()), flush=True)
"""
OURS = """
from litgpt.training.loss import Buffers, linear_cross_entropy
buffers = Buffers()
def loss(hidden, weight, targets):
    return linear_cross_entropy(hidden, weight, targets, buffers=buffers) / N
"""
FULL = """
def loss(hidden, weight, targets):
    return torch.nn.functional.cross_entropy((hidden @ weight.T).float(), targets)
"""
THEIRS = """
from litgpt.utils import chunked_cross_entropy
head = torch.nn.Linear(C, V, bias=False, device="meta")
def loss(hidden, weight, targets):
    head.weight = weight
    B = max(1, N // 512)
    x, y = hidden.view(B, -1, C), targets.view(B, -1)
"""
FINETUNING = THEIRS + "    return chunked_cross_entropy([head(part) for part in x.split(128, dim=1)], y)\n"
PRETRAINING = THEIRS + "    return chunked_cross_entropy(head(x), y)\n"


class Variant(NamedTuple):
    """One row of the table."""

    name: str
    define: str
    python: str
    keeps: bool = False


def variants(peer: str) -> list[Variant]:
    """All rows; the first two, of LitGPT's, are what the ratios are to."""
    return [
        Variant("LitGPT 0.5.13, chunks of 128 (finetuning)", FINETUNING, peer),
        Variant("LitGPT 0.5.13, whole logits (pretraining)", PRETRAINING, peer),
        Variant("LitGPT 0.5.13, chunks, memory kept", FINETUNING, peer, keeps=True),
        Variant("LitGPT 0.5.13, whole logits, memory kept", PRETRAINING, peer, keeps=True),
        Variant("torch, whole logits", FULL, sys.executable),
        Variant("litgpt (here)", OURS, sys.executable),
        Variant("litgpt (here), memory kept", OURS, sys.executable, keeps=True),
    ]


def measure(dtype: str, head: str, sizes: list[int], rows: list[Variant], rounds: int) -> list[list[object]]:
    """One part of the table."""
    running = [
        Contender(
            row.name,
            row.python,
            FRAME.replace("{define}", row.define),
            *(dtype, head, "keeps" if row.keeps else "returns", *sizes),
        )
        for row in rows
    ]
    memory, losses = zip(*(contender.ask("memory") for contender in running), strict=True)
    tolerance = 1e-4 if dtype == "float32" else 5e-3  # in bfloat16 LitGPT's own softmax is rounded
    for row, loss in zip(rows, losses, strict=True):
        if abs(loss - losses[-1]) > tolerance * losses[-1]:
            sys.exit(f"{row.name}: a loss of {loss:.5f}, not {losses[-1]:.5f}: nothing to compare.")
    seconds = [[answer[0] for answer in found] for found in in_turn(running, rounds, "time")]
    for contender in running:
        contender.close()
    cells: list[list[object]] = []
    for row, own, nbytes in zip(rows, seconds, memory, strict=True):
        ratios = [f"{paired(own, seconds[peer]):.2f}" for peer in (0, 1)]
        extra = ["–", "–"] if row.keeps else [f"{nbytes / 1e6:,.0f}", f"{nbytes / memory[0]:.0%}"]
        cells.append([f"{dtype}, {head} head", row.name, f"{statistics.median(own):.2f}", *ratios, *extra])
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python of an environment with litgpt==0.5.13")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=("bfloat16", "float32"), help="measure in this type alone")
    parser.add_argument("--head", choices=("trained", "frozen"), help="measure with this head alone")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=128256)
    arguments = parser.parse_args()
    sizes = [arguments.tokens, arguments.width, arguments.vocabulary]
    print(f"{sizes[0]} tokens, width {sizes[1]}, vocabulary {sizes[2]}; one thread, {arguments.rounds} rounds\n")
    rows: list[list[object]] = []
    with tempfile.TemporaryDirectory() as work:
        contending = variants(peer_python(arguments.peer, Path(work) / "peer"))
        for dtype in [arguments.only] if arguments.only else ["bfloat16", "float32"]:
            for head in [arguments.head] if arguments.head else ["trained", "frozen"]:
                rows += measure(dtype, head, sizes, contending, arguments.rounds)
    print(table(["case", "contender", "CPU s", "× chunks", "× whole", "extra peak MB", "× chunks"], rows))


if __name__ == "__main__":
    main()

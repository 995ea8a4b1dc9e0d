"""Tokens per CPU second and time to the first token, beside LitGPT 0.5.13 and transformers, in one run.

    python benchmarks/generate.py FOLDER [--peer PYTHON] [--dtypes float32 bfloat16] [--rounds 7] [--only CASE ...]

FOLDER is a Hugging Face folder (SmolLM2-135M); PYTHON is the interpreter of an environment with litgpt==0.5.13. Each
contender is a process of its own with one thread, that loads its model once and then answers one case after another;
the contenders take turns within a round, and what is compared is the median of the rounds' ratios of process CPU time
(user + system). Tokens are counted where they are asked for: all are greedy and none stops early. Before anything is
timed, in float32, the contenders' tokens are compared.

Cases:
    single      one prompt of 64 tokens, 64 new ones
    first-64    the first token after a prompt of 64 tokens; first-512: of 512
    mixed       16 prompts of 8 to 248 tokens, 16 to 64 new ones: LitGPT one after another, transformers as one
                left-padded batch, which goes on until its longest answer has ended
    cache-256   8 prompts of 64 tokens, 64 new ones, in a cache of 256 tokens a request; cache-2048: of 2048
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HERE, PEER, TRANSFORMERS = "litgpt (here)", "LitGPT 0.5.13", "transformers"

FRAME = """
import json, random, sys, time
import torch
torch.set_num_threads(1)
folder, kind = sys.argv[1], sys.argv[2]
dtype = getattr(torch, kind.split("+")[0])
rng = random.Random(0)
def prompt(n):
    return [rng.randrange(1000, 40000) for _ in range(n)]
single, longer = prompt(64), prompt(512)
mixed = [(prompt(8 + 16 * i), 16 + 48 * ((7 * i) % 16) // 15) for i in range(16)]
eight = [prompt(64) for _ in range(8)]
CASES = {
    "single": lambda: answer([(single, 64)]),
    "first-64": lambda: answer([(single, 1)]),
    "first-512": lambda: answer([(longer, 1)]),
    "mixed": lambda: answer(mixed),
    "cache-256": lambda: answer([(p, 64) for p in eight], 256),
    "cache-2048": lambda: answer([(p, 64) for p in eight], 2048),
}
{program}
print("ready", flush=True)
for line in sys.stdin:
    start = time.process_time()
    with torch.no_grad():
        tokens = CASES[line.strip()]()
    print(json.dumps(dict(seconds=time.process_time() - start, tokens=tokens)), flush=True)
"""
OURS = """
from litgpt.generate.sampling import Sampling
from litgpt.generate.speaker import Speaker
precision = {torch.float32: "32-true", torch.bfloat16: "bf16-true"}[dtype]
speaker = Speaker.load(folder, precision=precision, quantize=kind.partition("+")[2] or None)
def answer(requests, room=None):
    longest = max(len(prompt) + n for prompt, n in requests)
    engine = speaker.engine(len(requests), room or longest)
    handles = [engine.submit(prompt, Sampling(temperature=0), (), n) for prompt, n in requests]
    return [handle.result() for handle in handles]
"""
THEIRS = """
from pathlib import Path
import lightning as L
from litgpt import GPT, Config
from litgpt.generate.base import generate
from litgpt.utils import load_checkpoint
precision = {torch.float32: "32-true", torch.bfloat16: "bf16-true"}[dtype]
fabric = L.Fabric(devices=1, accelerator="cpu", precision=precision)
with fabric.init_module(empty_init=True):
    model = GPT(Config.from_file(Path(folder) / "model_config.yaml"))
model = fabric.setup_module(model.eval())
load_checkpoint(fabric, model, Path(folder) / "lit_model.pth")
def answer(requests, room=None):
    answers = []
    for prompt, n in requests:
        model.max_seq_length = len(prompt) + n
        with fabric.init_tensor():
            model.set_kv_cache(batch_size=1)
        out = generate(model, torch.tensor(prompt), len(prompt) + n, temperature=0.0, include_prompt=False)
        answers.append(out.tolist())
        model.clear_kv_cache()
    return answers
"""
HF = """
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
def answer(requests, room=None):
    longest, n = max(len(prompt) for prompt, _ in requests), max(n for _, n in requests)
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt, _ in requests])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in requests])
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0
    )
    return [row[longest : longest + asked] for row, (_, asked) in zip(out.tolist(), requests)]
"""


class Contender:
    """A process that answers cases."""

    def __init__(self, python: str, program: str, folder: Path, kind: str) -> None:
        ours = {"PYTHONPATH": str(ROOT)} if program == OURS else {"PYTHONPATH": ""}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **ours}
        command = [python, "-W", "ignore", "-c", FRAME.replace("{program}", program), str(folder), kind]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True, cwd="/")
        self.answered = 0
        self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"A contender ended with status {self.process.wait()}.")
        return line

    def run(self, case: str) -> tuple[float, list[list[int]]]:
        """CPU seconds, and the tokens of each answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{case}\n")
        self.process.stdin.flush()
        result = json.loads(self._line())
        return result["seconds"], result["tokens"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


CASES: dict[str, tuple[tuple[str, ...], str]] = {
    "single": ((PEER, TRANSFORMERS), "64 + 64 tokens"),
    "first-64": ((PEER, TRANSFORMERS), "first token, prompt of 64"),
    "first-512": ((PEER, TRANSFORMERS), "first token, prompt of 512"),
    "mixed": ((PEER, TRANSFORMERS), "16 requests of mixed lengths"),
    "cache-256": ((), "8 x (64 + 64), cache of 256"),
    "cache-2048": ((), "8 x (64 + 64), cache of 2048"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", help="python of an environment with litgpt==0.5.13")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16"))
    parser.add_argument("--quantize", nargs="*", default=["int8", "int4"], help="single-stream rows beside bfloat16's")
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    print("CPU seconds, one thread, medians; ratios are medians of the rounds' (here ÷ the other, in speed)\n")
    print(f"| {'case':28} | weights  | {HERE:13} | tokens/s | {PEER:>13} | ratio | {TRANSFORMERS:>13} | ratio |")
    print("|---" * 8 + "|")
    with tempfile.TemporaryDirectory() as work:
        lit = litgpt_folder(arguments.folder, Path(work)) if arguments.peer else arguments.folder
        for kind in arguments.dtypes:
            contenders = {HERE: Contender(sys.executable, OURS, arguments.folder, kind)}
            if arguments.peer:
                contenders[PEER] = Contender(arguments.peer, THEIRS, lit, kind)
            if find_spec("transformers"):
                contenders[TRANSFORMERS] = Contender(sys.executable, HF, arguments.folder, kind)
            compare(contenders, arguments.only, kind, arguments.rounds)
            for contender in contenders.values():
                contender.close()
        if arguments.quantize and "single" in arguments.only:
            compare_quantized(arguments.folder, arguments.quantize, arguments.rounds)


def compare(contenders: dict[str, Contender], cases: list[str], kind: str, rounds: int) -> None:
    """Prints a row a case, and what growing the cache costs."""
    seconds: dict[tuple[str, str], list[float]] = {}
    counts: dict[str, int] = {}
    for case in cases:  # the first round warms up and compares
        tokens = {name: found.run(case)[1] for name, found in taking_part(contenders, case).items()}
        counts[case] = sum(map(len, tokens[HERE]))
        if kind == "float32" and any(found != tokens[HERE] for found in tokens.values()):
            print(f"(the contenders' tokens differ in {case})", file=sys.stderr)
    for _ in range(rounds):
        for case in cases:
            for name, contender in taking_part(contenders, case).items():
                seconds.setdefault((case, name), []).append(contender.run(case)[0])
    for case in cases:
        own = seconds[case, HERE]
        cells = [f"{statistics.median(own):13.3f}", f"{counts[case] / statistics.median(own):8.1f}"]
        for name in (PEER, TRANSFORMERS):
            other = seconds.get((case, name))
            cells += (
                ["–".rjust(13), "–".rjust(5)]
                if other is None
                else [f"{statistics.median(other):13.3f}", f"{paired(other, own):5.2f}"]
            )
        print(f"| {CASES[case][1]:28} | {kind:8} | " + " | ".join(cells) + " |", flush=True)
    if {"cache-256", "cache-2048"} <= set(cases):
        cost = paired(seconds["cache-2048", HERE], seconds["cache-256", HERE])
        print(f"\nA cache of 2048 tokens instead of 256 ({kind}): {cost:.2f} × the time\n")


def compare_quantized(folder: Path, kinds: list[str], rounds: int) -> None:
    """Prints single-stream rows of quantized weights beside bfloat16's."""
    contenders = {name: Contender(sys.executable, OURS, folder, f"bfloat16+{name}") for name in kinds}
    contenders["bfloat16"] = Contender(sys.executable, OURS, folder, "bfloat16")
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for round in range(rounds + 1):
        for name, contender in contenders.items():
            spent = contender.run("single")[0]
            if round:  # the first one warms up
                seconds[name].append(spent)
    print("\n| weights, 64 + 64 tokens | tokens/s | of bfloat16's speed |\n|---|---|---|")
    for name, spent in seconds.items():
        print(f"| {name:8} | {64 / statistics.median(spent):8.1f} | {paired(seconds['bfloat16'], spent):.2f} |")
    for contender in contenders.values():
        contender.close()


def taking_part(contenders: dict[str, Contender], case: str) -> dict[str, Contender]:
    """Those that a case is for."""
    return {name: found for name, found in contenders.items() if name == HERE or name in CASES[case][0]}


def paired(numerators: list[float], denominators: list[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def litgpt_folder(folder: Path, work: Path) -> Path:
    """The same model as LitGPT keeps it."""
    from litgpt.checkpoint.convert import to_litgpt
    from litgpt.checkpoint.layout import CONFIG_FILES, hf_weight_files

    copy = work / "litgpt"
    copy.mkdir()
    for file in [*(folder / name for name in CONFIG_FILES), *hf_weight_files(folder)]:
        if file.is_file():
            (copy / file.name).symlink_to(file.resolve())
    to_litgpt(copy)
    return copy


if __name__ == "__main__":
    main()

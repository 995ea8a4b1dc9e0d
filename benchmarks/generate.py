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
import statistics
import sys
import tempfile
from pathlib import Path

from contenders import Contender, in_turn, litgpt_folder, paired, peer_python, table

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
print("null", flush=True)
for line in sys.stdin:
    start = time.process_time()
    with torch.no_grad():
        tokens = CASES[line.strip()]()
    print(json.dumps(dict(seconds=time.process_time() - start, tokens=tokens)), flush=True)
"""
OURS = """
from litgpt.engine.sampling import Sampling
from litgpt.engine.inference_model import InferenceModel
precision = {torch.float32: "32-true", torch.bfloat16: "bf16-true"}[dtype]
inference_model = InferenceModel.load(folder, precision=precision, quantize=kind.partition("+")[2] or None)
def answer(requests, room=None):
    longest = max(len(prompt) + n for prompt, n in requests)
    engine = inference_model.engine(len(requests), room or longest)
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
model.generation_config.eos_token_id = None  # nobody stops early, and nobody's end token is forbidden
def answer(requests, room=None):
    longest, n = max(len(prompt) for prompt, _ in requests), max(n for _, n in requests)
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt, _ in requests])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt, _ in requests])
    out = model.generate(ids, attention_mask=mask, max_new_tokens=n, do_sample=False, pad_token_id=0)
    return [row[longest : longest + asked] for row, (_, asked) in zip(out.tolist(), requests)]
"""


CASES = {
    "single": "64 + 64 tokens",
    "first-64": "first token, prompt of 64",
    "first-512": "first token, prompt of 512",
    "mixed": "16 requests of mixed lengths",
    "cache-256": "8 x (64 + 64), cache of 256",
    "cache-2048": "8 x (64 + 64), cache of 2048",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--peer", help="python of an environment with litgpt==0.5.13")
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"], choices=("float32", "bfloat16"))
    parser.add_argument("--quantize", nargs="*", default=["int8", "int4"], help="single-stream rows beside bfloat16's")
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print("CPU seconds, one thread, medians; ratios are medians of the rounds' (here ÷ the other, in speed)")
    with tempfile.TemporaryDirectory() as work:
        python, lit = peer_python(arguments.peer, Path(work) / "peer"), Path(work) / "litgpt"
        litgpt_folder(arguments.folder, lit)
        for dtype in arguments.dtypes:
            with (
                Contender(HERE, sys.executable, program(OURS), arguments.folder, dtype) as here,
                Contender(PEER, python, program(THEIRS), lit, dtype) as peer,
                Contender(TRANSFORMERS, sys.executable, program(HF), arguments.folder, dtype) as transformers,
            ):
                print(f"\n{compare([here, peer, transformers], arguments.only, dtype, arguments.rounds)}", flush=True)
    if arguments.quantize:
        print(f"\n{compare_quantized(arguments.folder, arguments.quantize, arguments.rounds)}")


def program(answer: str) -> str:
    """The source of a contender."""
    return FRAME.replace("{program}", answer)


def compare(contenders: list[Contender], cases: list[str], dtype: str, rounds: int) -> str:
    """A row a case, and what growing the cache costs."""
    rows: list[list[object]] = []
    for case in (case for case in cases if not case.startswith("cache")):
        tokens = [contender.ask(case)["tokens"] for contender in contenders]  # warms up as well
        if dtype == "float32":
            differing = [c.name for c, found in zip(contenders, tokens, strict=True) if found != tokens[0]]
            print(f"{case}: {' and '.join(differing) or 'none'} of the others with other tokens", file=sys.stderr)
        own, *others = cpu_seconds(in_turn(contenders, rounds, case))
        row: list[object] = [CASES[case], dtype, f"{statistics.median(own):.3f}"]
        row.append(f"{sum(map(len, tokens[0])) / statistics.median(own):.1f}")
        for other in others:
            row += [f"{statistics.median(other):.3f}", f"{paired(other, own):.2f}"]
        rows.append(row)
    found = table(["case", "weights", HERE, "tokens/s", PEER, "ratio", TRANSFORMERS, "ratio"], rows) if rows else ""
    if {"cache-256", "cache-2048"} <= set(cases):
        found += f"\n\n{compare_caches(contenders[0], dtype, rounds)}"
    return found


def compare_caches(here: Contender, dtype: str, rounds: int) -> str:
    """A sentence on what a longer cache costs."""
    small, large = "cache-256", "cache-2048"
    answers = [(here.ask(small), here.ask(large)) for _ in range(rounds + 1)][1:]  # the first round warms up
    short, long = ([answer["seconds"] for answer in column] for column in zip(*answers, strict=True))
    return (
        f"{CASES[small]} ({dtype}): {statistics.median(short):.3f} s; of 2048: {statistics.median(long):.3f} s,"
        f" {paired(long, short):.2f} × the time"
    )


def compare_quantized(folder: Path, kinds: list[str], rounds: int) -> str:
    """Single-stream rows of quantized weights beside bfloat16's."""
    names = ["bfloat16", *kinds]
    contenders = [
        Contender(name, sys.executable, program(OURS), folder, "bfloat16" if name == "bfloat16" else f"bfloat16+{name}")
        for name in names
    ]
    in_turn(contenders, 1, "single")  # warms up
    seconds = cpu_seconds(in_turn(contenders, rounds, "single"))
    for contender in contenders:
        contender.close()
    rows: list[list[object]] = [
        [name, f"{64 / statistics.median(spent):.1f}", f"{paired(seconds[0], spent):.2f}"]
        for name, spent in zip(names, seconds, strict=True)
    ]
    return table([f"weights, {CASES['single']}", "tokens/s", "of bfloat16's speed"], rows)


def cpu_seconds(answers: list[list[dict[str, float]]]) -> list[list[float]]:
    """Those of each contender's rounds."""
    return [[answer["seconds"] for answer in found] for found in answers]


if __name__ == "__main__":
    main()

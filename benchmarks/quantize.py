"""What each format of `litgpt quantize` loses: size, perplexity on a text, KL divergence from the original model, and
how often the right one of four answers is held most likely.

    python benchmarks/quantize.py MODEL --text emma.txt --data tinyshakespeare.txt --answers alpaca_en_demo.json

Every format is written anew and opened by `load_model`, as any command opens it, and computes in float32 on the same
windows of the text. What needs data is calibrated on another text than the one that is measured on.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

from litgpt.checkpoint.layout import find_checkpoint
from litgpt.checkpoint.reader import load_model
from litgpt.engine.inference_model import InferenceModel
from litgpt.eval.models import LocalModel
from litgpt.eval.tasks import Settings, choice
from litgpt.scripts.quantize import quantize_checkpoint
from litgpt.tokenizer import Tokenizer

FORMATS = "gguf-q8_0 int8 int8+data fp8 gguf-q6_k gguf-q5_k_m gguf-q4_k_m gguf-q4_k_m+data awq awq+data w4a16".split()
FORMATS += ["w4a16+data"]
"""`+data`: calibrated. gptq has the codes of w4a16."""


@torch.inference_mode()
def log_probabilities(path: Path, windows: torch.Tensor) -> torch.Tensor:
    """`(N, T)` → `(N, T - 1, V)` float16 of the next tokens."""
    model = load_model(path, dtype=torch.float32)
    rows = [model(window[None])[0, :-1].float().log_softmax(-1) for window in windows]
    return torch.stack(rows)


def measure(path: Path, windows: torch.Tensor, reference: torch.Tensor | None) -> tuple[float, float, torch.Tensor]:
    """Perplexity, KL divergence from the reference in nats a token, and the log-probabilities."""
    found = log_probabilities(path, windows)
    nll = -found.gather(-1, windows[:, 1:, None]).mean()
    kl = 0.0 if reference is None else float((reference.exp() * (reference - found)).sum(-1).mean())
    return math.exp(float(nll)), kl, found


def write_questions(answers: Path, questions: Path, count: int) -> None:
    """A file of `choice`: an instruction, and the beginnings of its answer and of three others."""
    rows = [row for row in json.loads(answers.read_text()) if not row["input"]]
    draw = random.Random(1)
    draw.shuffle(rows)
    texts = [" ".join(row["output"].split()[:12]) for row in rows]
    with questions.open("w") as file:
        for number, row in enumerate(rows[:count]):
            others = draw.sample([text for text in texts if text != texts[number]], 3)
            at = draw.randrange(4)
            choices = [*others[:at], texts[number], *others[at:]]
            said = f"Instruction: {row['instruction']}\nAnswer:"
            file.write(json.dumps({"question": said, "choices": choices, "answer": at}) + "\n")


def share_right(path: Path, questions: Path) -> float:
    """The share of questions whose right answer is the likeliest by character."""
    model = LocalModel(InferenceModel.load(path, "cpu", "32-true"), path.name)
    return choice(questions, model, Settings()).results["acc_norm,none"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--formats", default=",".join(FORMATS))
    given = parser.parse_args()
    checkpoint = find_checkpoint(given.model)
    ids = torch.tensor(Tokenizer(checkpoint.dir).encode_ids(given.text.read_text())[: given.tokens])
    windows = ids.view(-1, given.window)
    asked = Path(tempfile.mkdtemp()) / "questions.jsonl"
    write_questions(given.answers, asked, given.questions)
    perplexity, _, reference = measure(checkpoint.path, windows, None)
    print("| `--to` | `--data` | MB | perplexity | KL, nats | right answers | CPU seconds |")
    print("|---|---|---|---|---|---|---|")
    right = share_right(checkpoint.path, asked)
    print(f"| as it was | | {checkpoint.nbytes / 1e6:.0f} | {perplexity:.2f} | 0 | {right:.1%} | |", flush=True)
    for kind, _, calibrated in (entry.partition("+") for entry in given.formats.split(",")):
        data = given.data if calibrated else None
        with tempfile.TemporaryDirectory() as place:
            began, folder = time.process_time(), Path(place) / "made"
            quantize_checkpoint(given.model, kind, data, folder, samples=given.samples)
            seconds = time.process_time() - began
            nbytes = sum(file.stat().st_size for file in folder.glob("model*.*") if file.suffix != ".json")
            place_of = next(iter(folder.glob("*.gguf")), folder)
            perplexity, kl, _ = measure(place_of, windows, reference)
            right = share_right(place_of, asked)
        cells = (f"`{kind}`", "yes" if data else "", f"{nbytes / 1e6:.0f}", f"{perplexity:.2f}", f"{kl:.4f}")
        cells = (*cells, f"{right:.1%}")
        print("|", " | ".join((*cells, f"{seconds:.0f}")), "|", flush=True)


if __name__ == "__main__":
    sys.exit(main())

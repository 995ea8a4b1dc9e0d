"""What each format of `litgpt quantize` loses: size, perplexity on a text, and KL divergence from the original model.

    python benchmarks/quantize.py MODEL --text emma.txt --data tinyshakespeare.txt

Every format is written anew and opened by `load_model`, as any command opens it, and computes in float32 on the same
windows of the text. What needs data is calibrated on another text than the one that is measured on.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import torch

from litgpt.checkpoint.layout import find_checkpoint
from litgpt.checkpoint.reader import load_model
from litgpt.scripts.quantize import quantize_checkpoint
from litgpt.tokenizer import Tokenizer

FORMATS = "gguf-q8_0 int8 fp8 gguf-q6_k gguf-q5_k_m gguf-q4_k_m gguf-q4_k_m+data awq awq+data w4a16 w4a16+data".split()
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--formats", default=",".join(FORMATS))
    given = parser.parse_args()
    checkpoint = find_checkpoint(given.model)
    ids = torch.tensor(Tokenizer(checkpoint.dir).encode_ids(given.text.read_text())[: given.tokens])
    windows = ids.view(-1, given.window)
    perplexity, _, reference = measure(checkpoint.path, windows, None)
    print("| `--to` | `--data` | MB | perplexity | KL, nats | CPU seconds |\n|---|---|---|---|---|---|")
    print(f"| as it was | | {checkpoint.nbytes / 1e6:.0f} | {perplexity:.2f} | 0 | |", flush=True)
    for kind, _, calibrated in (entry.partition("+") for entry in given.formats.split(",")):
        data = given.data if calibrated else None
        with tempfile.TemporaryDirectory() as place:
            began, folder = time.process_time(), Path(place) / "made"
            quantize_checkpoint(given.model, kind, data, folder, samples=given.samples)
            seconds = time.process_time() - began
            nbytes = sum(file.stat().st_size for file in folder.glob("model*.*") if file.suffix != ".json")
            perplexity, kl, _ = measure(next(iter(folder.glob("*.gguf")), folder), windows, reference)
        cells = (f"`{kind}`", "yes" if data else "", f"{nbytes / 1e6:.0f}", f"{perplexity:.2f}", f"{kl:.4f}")
        print("|", " | ".join((*cells, f"{seconds:.0f}")), "|", flush=True)


if __name__ == "__main__":
    sys.exit(main())

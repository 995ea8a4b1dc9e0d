"""What answers cost that don't depend on what else runs (`serve --deterministic`), in one run.

    OMP_NUM_THREADS=1 python benchmarks/deterministic.py [FOLDER] [--requests 8] [--prompt 200] [--tokens 32]
        [--rounds 7] [--shape SmolLM2-135M]

FOLDER is a checkpoint; without one, a model of that shape with random weights is measured. In each round both engines
take turns at: one request alone; as many as the engine has slots, all at once; and a second request whose prompt is
known. Printed: medians of tokens a second of the answers, of seconds to the first token of a request alone and of one
whose prompt is known, and how many of two answers among others differ from those alone, in a token or in a bit of a
log-probability.
"""

from __future__ import annotations

import argparse
import statistics
from copy import deepcopy
from pathlib import Path
from time import perf_counter

import torch

from litgpt.checkpoint.finetuned import open_model
from litgpt.config import Config
from litgpt.engine.engine import Engine
from litgpt.engine.inference_model import find_source
from litgpt.engine.request import Request
from litgpt.engine.sampling import Sampling
from litgpt.model import GPT


def main() -> None:
    """Prints a table for each precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    for name, default in (("requests", 8), ("prompt", 200), ("tokens", 32), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--shape", default="SmolLM2-135M")
    args = parser.parse_args()
    for dtype in (torch.float32, torch.bfloat16):
        model = _model(args.folder, args.shape, dtype)
        length = min(args.prompt + args.tokens, model.max_seq_length)
        with torch.no_grad():
            engines = {
                False: Engine(deepcopy(model), args.requests, length),
                True: Engine(model, args.requests, length, deterministic=True),
            }
        found: dict[bool, list[tuple[float, ...]]] = {False: [], True: []}
        for number in range(args.rounds + 1):
            for kind, engine in engines.items():
                figures = _round(engine, number, args.prompt, args.tokens)
                if number:  # the first is to warm up
                    found[kind].append(figures)
        print(f"\n{dtype}, {args.requests} slots, prompts of {args.prompt} tokens, answers of {args.tokens}")
        print(f"{'':16} {'alone':>12} {'all slots':>12} {'first token':>12} {'prompt known':>13} {'differ':>8}")
        for kind, rounds in found.items():
            alone, among, first, known, differ = map(statistics.median, zip(*rounds, strict=True))
            name = "deterministic" if kind else "as it comes"
            print(f"{name:16} {alone:8.1f} t/s {among:8.1f} t/s {first:10.3f} s {known:11.3f} s {differ:8.0f}")


def _model(folder: Path | None, shape: str, dtype: torch.dtype) -> GPT:
    if folder is not None:
        return open_model(find_source(folder), torch.device("cpu"), dtype).requires_grad_(False)
    torch.manual_seed(0)
    return GPT(Config.from_name(shape)).to(dtype).eval().requires_grad_(False)


def _round(engine: Engine, number: int, n_prompt: int, n_tokens: int) -> tuple[float, ...]:
    """Tokens a second alone and among others, seconds to a first token of an unknown and of a known prompt, and how
    many answers differ."""
    generator = torch.Generator().manual_seed(number)
    prompts = torch.randint(1000, (engine.slots, n_prompt), generator=generator).tolist()

    def submitted(prompt: list[int]) -> Request:
        return engine.submit(prompt, Sampling(seed=number, logprobs=0), max_new_tokens=n_tokens)

    def timed(prompt: list[int]) -> tuple[float, float]:
        engine.forget()
        start = perf_counter()
        request = submitted(prompt)
        next(iter(request))
        first = perf_counter()
        alone.append((request.result(), request.logprobs))
        return first - start, perf_counter() - first

    alone: list[object] = []
    times = [timed(prompt) for prompt in prompts[:2]]
    engine.forget()
    requests = [submitted(prompt) for prompt in prompts]
    while any(not request.output for request in requests):
        engine.step()
    before, start = sum(len(request.output) for request in requests), perf_counter()
    outputs = [request.result() for request in requests]
    among = (sum(map(len, outputs)) - before) / (perf_counter() - start)
    again = submitted(prompts[0])
    start = perf_counter()
    next(iter(again))
    known = perf_counter() - start
    again.result()
    differ = sum((request.output, request.logprobs) != one for request, one in zip(requests, alone, strict=False))
    rest = statistics.median(seconds for _, seconds in times)
    return (n_tokens - 1) / rest, among, statistics.median(first for first, _ in times), known, differ


if __name__ == "__main__":
    main()

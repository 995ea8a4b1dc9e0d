"""What answers cost in training against the same from `litgpt generate --prompt_file`, and what rewards gain.

    python benchmarks/rollouts.py [--model FOLDER] [--answers 64] [--tokens 64] [--rounds 5]
    python benchmarks/rollouts.py --seeds 1,2,3 [--steps 25]

The first prints a table with the ratio, both sides in turn in one process (medians of the processor's time); the model
trains all weights, and with LoRA, whose updates are computed beside them. The second trains the shipped model to say as
many `e`s as it can: the ceiling is 1, and the table has the rewards of the first and of the last three steps.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL = Path(__file__).resolve().parents[1] / "litgpt" / "assets" / "austen-2m"
NAMES = "He She It They Emma Anne Elizabeth Darcy Jane Catherine Knightley Wickham".split()
REWARD = """
def letters(prompts, completions, **columns):
    return [text.lower().count("e") / max(1, len(text)) for text in completions]
"""


def sides(folder: Path, answers: int, tokens: int, prompts: Path) -> dict[str, Callable[[], int]]:
    """Functions that make the answers; each returns how many tokens it made."""
    import torch

    from litgpt.checkpoint.layout import find_checkpoint
    from litgpt.checkpoint.reader import load_model
    from litgpt.engine.inference_model import InferenceModel
    from litgpt.engine.sampling import Sampling
    from litgpt.finetune.sampling_answers import Sampler
    from litgpt.generate.options import Options
    from litgpt.generate.prompt_file import PromptTask, answer_file
    from litgpt.lora import LoRA
    from litgpt.peft import Full
    from litgpt.runtime import make_fabric

    fabric = make_fabric(1, precision="32-true", device="cpu")
    asked = InferenceModel.load(folder, "cpu", "32-true")
    options = Options(prompt_file=prompts, out_file=prompts.with_suffix(".out"))
    task = PromptTask([], Sampling(seed=1), tokens)
    ids = [asked.encode(f"{NAMES[at % len(NAMES)]} was") for at in range(answers)]

    def generate() -> int:
        with contextlib.redirect_stderr(io.StringIO()):
            answer_file(asked, options, task)
        return sum(json.loads(line)["completion_tokens"] for line in open(prompts.with_suffix(".out")))

    def rollout(method: Any) -> Callable[[], int]:
        model = load_model(find_checkpoint(folder), "cpu", torch.float32)
        method.attach(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = method.owns(name)
        sampler = Sampler(model.train(), fabric, asked.stops, tokens)

        def run() -> int:
            samplings = [Sampling(seed=1, logprobs=0) for _ in ids]
            return sum(len(answer.ids) for answer in sampler.answers(ids, samplings))

        return run

    return {"generate --prompt_file": generate, "rollout, full": rollout(Full()), "rollout, LoRA": rollout(LoRA())}


def compare(args: argparse.Namespace) -> None:
    """Prints the table of costs."""
    with tempfile.TemporaryDirectory() as place:
        prompts = Path(place) / "prompts.jsonl"
        lines = [json.dumps({"prompt": f"{NAMES[at % len(NAMES)]} was"}) for at in range(args.answers)]
        prompts.write_text("\n".join(lines))
        runs = sides(args.model, args.answers, args.tokens, prompts)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        made: dict[str, int] = {}
        for number in range(args.rounds + 1):
            for name, run in runs.items():
                start = time.process_time()
                made[name] = run()
                if number:  # the first round warms up
                    seconds[name].append(time.process_time() - start)
    found = {name: statistics.median(each) for name, each in seconds.items()}
    base = found["generate --prompt_file"]
    print(
        f"{args.answers} answers of {args.tokens} tokens at most, {args.model.name}, float32, CPU; {args.rounds} rounds"
    )
    for name, each in found.items():
        print(f"{name:26}{each:8.2f} s{made[name]:9,} tokens{each / base:8.2f}")


def gain(args: argparse.Namespace) -> None:
    """Trains with each seed and prints the rewards."""
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import Prompts
    from litgpt.finetune import grpo
    from litgpt.training.metrics.loggers import read_metrics

    rows = []
    for seed in map(int, args.seeds.split(",")):
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            (folder / "prompts.json").write_text(json.dumps([{"prompt": f"{name} was"} for name in NAMES]))
            (folder / "own.py").write_text(REWARD)
            start = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                grpo.setup(
                    args.model,
                    reward=f"{folder}/own.py:letters",
                    method="full",
                    max_new_tokens=12,
                    seed=seed,
                    precision="32-true",
                    out_dir=folder / "out",
                    data=Prompts(path=folder / "prompts.json", val_split_fraction=0, prompt_style="default"),
                    optimizer={"class_path": "AdamW", "init_args": {"lr": 1e-3}},
                    train=TrainArgs(
                        max_steps=args.steps, global_batch_size=4, micro_batch_size=32, lr_warmup_steps=0, min_lr=0.0
                    ),
                    eval=EvalArgs(max_new_tokens=None),
                )
            found = read_metrics(folder / "out" / "logs" / "csv" / "version_0" / "metrics.csv")
            rewards = [row["reward"] for row in found if "reward" in row]
            first, last = (sum(part) / 3 for part in (rewards[:3], rewards[-3:]))
            rows.append((seed, first, last, last / first, time.perf_counter() - start))
    print(f"{'seed':>6}{'first steps':>14}{'last steps':>13}{'ratio':>8}{'seconds':>10}")
    for seed, first, last, ratio, seconds in rows:
        print(f"{seed:>6}{first:>14.3f}{last:>13.3f}{ratio:>8.1f}{seconds:>10.0f}")


def main() -> None:
    """Runs one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--answers", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", help="train instead, with each of these")
    parser.add_argument("--steps", type=int, default=25)
    args = parser.parse_args()
    gain(args) if args.seeds else compare(args)


if __name__ == "__main__":
    main()

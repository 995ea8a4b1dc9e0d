"""`litgpt demo`: the whole life of a small language model, on data that comes with litgpt and without a network."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.data import JSON, TextFiles

ASSETS = Path(__file__).parent / "assets"
TEXT = ASSETS / "text"
"""Novels, in `train/` and `val/`."""
INSTRUCTIONS = ASSETS / "instructions"
"""Questions about them, with answers."""
MODEL = ASSETS / "austen-2m"
"""A small model that has read the novels, but has never answered a question."""

OPENINGS = ("It is a truth", "Elizabeth was")
QUESTIONS = (
    "Who is Mr. Collins?",
    "Tell me about Emma Woodhouse.",
    "Where does Lady Catherine live?",
    "Whom does Anne Elliot marry?",
    "Write a sentence about Elizabeth.",
)


def demo(out_dir: Path = Path("out/demo"), seed: int = 42) -> None:
    """Pretrain, finetune and talk with a small model in a few minutes, offline.

    Args:
        out_dir: Folder for the models, their logs and the pictures of the loss.
        seed: Of random weights, the order of the data and the answers.

    Example:
        litgpt demo
    """
    from litgpt.training.retention import output_folder

    began = time.perf_counter()
    with one_thread(), output_folder(out_dir) as out_dir:
        say("Pretraining: a model of a million random weights reads Jane Austen", 1)
        pretrained = pretrain(out_dir / "pretrain", seed)
        print("\nIt goes on from an opening like this:", flush=True)
        for opening, continuation in zip(OPENINGS, answers(pretrained, OPENINGS, seed), strict=True):
            print(f"    {opening} … {' '.join(continuation.split())}", flush=True)

        say("Before finetuning: a model that comes with litgpt has read more, but answers nothing", 2)
        before = answers(MODEL, QUESTIONS, seed)
        for question, answer in zip(QUESTIONS, before, strict=True):
            quote(question, answer)

        say("Finetuning it with LoRA on questions and answers", 3)
        finetuned = finetune(out_dir / "finetune", seed)

        say("After finetuning: the same questions", 4)
        for question, answer in zip(QUESTIONS, answers(finetuned, QUESTIONS, seed), strict=True):
            quote(question, answer)
    farewell(pretrained, finetuned, time.perf_counter() - began)


def pretrain(out_dir: Path, seed: int) -> Path:
    """What `litgpt pretrain` does, for some hundred steps; returns the checkpoint folder."""
    from litgpt.pretrain import setup

    setup(
        "austen-1m",
        Config(
            name="austen-1m",
            block_size=128,
            vocab_size=2048,
            padded_vocab_size=2048,
            n_layer=4,
            n_embd=128,
            n_head=4,
            n_query_groups=2,
            intermediate_size=352,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
            tie_embeddings=True,
        ),
        out_dir=out_dir,
        precision="32-true",
        data=TextFiles(TEXT / "train", TEXT / "val", seed=seed, cache_dir=out_dir),
        train=TrainArgs(
            global_batch_size=8,
            micro_batch_size=8,
            max_seq_length=128,
            max_steps=600,
            lr_warmup_steps=20,
            min_lr=3e-4,
            max_norm=1.0,
            log_interval=25,
            save_interval=None,
        ),
        eval=EvalArgs(interval=150, max_iters=10),
        optimizer={"class_path": "AdamW", "init_args": {"lr": 4e-3, "betas": [0.9, 0.95], "weight_decay": 0.1}},
        devices=1,
        tokenizer_dir=MODEL,
        logger_name="csv",
        seed=seed,
    )
    return out_dir / "final"


def finetune(out_dir: Path, seed: int) -> Path:
    """What `litgpt finetune_lora` does, for a minute; returns the checkpoint folder."""
    from litgpt.finetune.lora import setup

    setup(
        MODEL,
        out_dir=out_dir,
        precision="32-true",
        lora_r=16,
        lora_alpha=32,
        lora_dropout=0.1,
        lora_key=True,
        lora_projection=True,
        lora_mlp=True,
        lora_head=True,
        data=JSON(INSTRUCTIONS, mask_prompt=True, prompt_style="default", cache_dir=out_dir),
        train=TrainArgs(
            global_batch_size=16,
            micro_batch_size=16,
            epochs=6,
            lr_warmup_steps=10,
            max_norm=1.0,
            log_interval=12,
            save_interval=None,
        ),
        eval=EvalArgs(interval=65, max_new_tokens=40, initial_validation=True),
        optimizer={"class_path": "AdamW", "init_args": {"lr": 5e-3, "weight_decay": 0.0}},
        seed=seed,
    )
    return out_dir / "final"


def answers(checkpoint_dir: Path, prompts: Sequence[str], seed: int) -> list[str]:
    """What a model says to each of `prompts`."""
    import torch

    from litgpt import LLM

    llm = LLM.load(checkpoint_dir, distribute=None)
    llm.distribute(accelerator="cpu", precision="32-true")
    torch.manual_seed(seed)
    return [llm.generate(prompt, max_new_tokens=50, temperature=0.5, top_k=50) for prompt in prompts]


@contextmanager
def one_thread() -> Iterator[None]:
    """Lets torch compute with one thread: products this small wait longer for a second one than it saves."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def say(title: str, part: int) -> None:
    """A heading."""
    print(f"\n[{part}/4] {title}\n", flush=True)


def quote(prompt: str, answer: str) -> None:
    """A prompt and what the model says to it."""
    print(f"    {prompt}\n        {' '.join(answer.split()) or '(nothing)'}", flush=True)


def farewell(pretrained: Path, finetuned: Path, seconds: float) -> None:
    """Where everything is, and what to try next."""
    program = "litgpt" if shutil.which("litgpt") or Path(sys.argv[0]).name != "litgpt" else sys.argv[0]
    print(
        f"\nDone in {seconds:.0f} seconds. The loss curves are drawn in\n"
        f"    {finetuned.parent / 'loss.png'}\n"
        f"    {pretrained.parent / 'loss.png'}\n"
        f"Try next:\n"
        f"    {program} chat {finetuned}\n"
        f"    {program} generate {finetuned} --prompt 'Who is Mr. Darcy?'\n",
        flush=True,
    )

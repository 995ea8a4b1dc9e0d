"""Small runs for the tests of the training loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from litgpt.args import EvalArgs, TrainArgs
from litgpt.checkpoint.writer import save_state
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.model.initialization import initialize
from litgpt.peft import owned_state
from litgpt.runtime import make_fabric
from litgpt.training.metrics.loggers import read_metrics
from litgpt.training.run import Run, everything

VOCABULARY = 40


def tiny_config(**changes: Any) -> Config:
    settings: dict[str, Any] = dict(
        name="tiny",
        block_size=32,
        n_layer=2,
        n_head=2,
        n_embd=16,
        n_query_groups=1,
        vocab_size=VOCABULARY,
        padded_vocab_size=VOCABULARY,
        bias=False,
        parallel_residual=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=24,
        rotary_percentage=1.0,
    )
    return Config(**{**settings, **changes})


def tiny_model(seed: int = 0, **changes: Any) -> GPT:
    torch.manual_seed(seed)
    model = GPT(tiny_config(**changes))
    initialize(model)
    return model


class Samples(list):
    """A data set in memory."""


def make_samples(lengths: list[int], seed: int = 0, masked: bool = False) -> Samples:
    """Random ids; with `masked`, a third of each sample's labels has no loss."""
    generator = torch.Generator().manual_seed(seed)
    samples = Samples()
    for length in lengths:
        ids = torch.randint(VOCABULARY, (length,), generator=generator)
        labels = ids.clone()
        if masked:
            labels[: length // 3] = -100
        samples.append({"input_ids": ids, "labels": labels})
    return samples


LENGTHS = [5, 17, 9, 30, 3, 12, 22, 8, 14, 26, 4, 11]


def make_run(out_dir: Path, *, model: GPT | None = None, train: dict[str, Any] | None = None, **fields: Any) -> Run:
    """A run over samples of different lengths, AdamW, no warm-up, float32 on one CPU."""
    model = model or tiny_model()
    owns: Callable[[str], bool] = fields.pop("owns", everything)
    weights_file = fields.pop("weights_file", "lit_model.pth")
    settings: dict[str, Any] = dict(
        global_batch_size=4, micro_batch_size=1, lr_warmup_steps=0, max_steps=3, save_interval=None, min_lr=0.0
    )
    values: dict[str, Any] = dict(
        model=model,
        train_dataset=make_samples(LENGTHS),
        val_dataset=None,
        train=TrainArgs(**{**settings, **(train or {})}),
        eval=EvalArgs(),
        out_dir=out_dir,
        save=lambda folder: save_state(folder / weights_file, owned_state(model, owns)),
        fabric=make_fabric(1, precision="32-true", device="cpu"),
        owns=owns,
        weights_file=weights_file,
        optimizer={"class_path": "AdamW", "init_args": {"lr": 1e-2}},
    )
    return Run(**{**values, **fields})


class Killed(Exception):
    """As if the process had ended here."""


def metrics(out_dir: Path, version: int = 0) -> list[dict[str, float]]:
    """The rows of a run's metrics."""
    return read_metrics(out_dir / "logs" / "csv" / f"version_{version}" / "metrics.csv")


def column(out_dir: Path, name: str, version: int = 0) -> list[float]:
    return [row[name] for row in metrics(out_dir, version) if name in row]


def weights(run: Run) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in run.model.parameters()])

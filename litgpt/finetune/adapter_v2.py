"""`litgpt finetune_adapter_v2`: trains prompts, norms, and a scale and a bias on every linear layer of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from litgpt.args import EvalArgs, LogArgs, TrainArgs, TrainedQuantization
from litgpt.data import DataModule


def setup(
    checkpoint_dir: Path,
    out_dir: Path = Path("out/finetune/adapter-v2"),
    precision: str | None = None,
    quantize: TrainedQuantization | None = None,
    devices: int | str = 1,
    num_nodes: int = 1,
    resume: bool | Literal["auto"] | Path | None = False,
    data: DataModule | None = None,
    train: TrainArgs = TrainArgs(
        save_interval=1000,
        log_interval=1,
        global_batch_size=16,
        micro_batch_size=1,
        lr_warmup_steps=100,
        epochs=5,
    ),
    log: LogArgs = LogArgs(),
    eval: EvalArgs = EvalArgs(interval=100, max_new_tokens=100, max_iters=100),
    optimizer: str | dict[str, Any] = "AdamW",
    logger_name: Literal["csv", "tensorboard", "wandb", "mlflow", "litlogger"] = "csv",
    seed: int = 1337,
    access_token: str | None = None,
) -> None:
    """Finetune a model with LLaMA-Adapter V2: learned prompts, norms, and a scale and a bias on every linear layer.

    Args:
        checkpoint_dir: Folder of the model to start from, LitGPT's or Hugging Face's.
        out_dir: Folder for checkpoints, logs and the loss curve.
        precision: Arithmetic of the training: 32-true, bf16-true, bf16-mixed, 16-mixed.
        quantize: Keep the frozen weights in 4 or 8 bits, by bitsandbytes.
        devices: Number of devices, or auto.
        num_nodes: Number of hosts.
        resume: Go on with the newest checkpoint in out_dir (true; auto: if any), or with that folder.
        data: What to learn from.
        train: How long, how fast and in what portions to train.
        log: Names handed to the experiment logger.
        eval: When and on how much to validate.
        optimizer: A class of torch.optim by name, or class_path and init_args.
        logger_name: Where metrics go besides the CSV file.
        seed: Of the start of the prompts and the order of the samples.
        access_token: For checkpoints on the hub that ask for one.
    """
    arguments = {**locals(), "resume": resume or False}
    from litgpt.adapter_v2 import AdapterV2
    from litgpt.finetune.base import Job, finetune

    finetune(Job.of(AdapterV2(), arguments))

"""`litgpt finetune_full`: trains every weight of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from litgpt.args import EvalArgs, LogArgs, TrainArgs
from litgpt.data import DataModule


def setup(
    checkpoint_dir: Path,
    out_dir: Path = Path("out/finetune/full"),
    precision: str | None = None,
    devices: int | str = 1,
    num_nodes: int = 1,
    resume: bool | Literal["auto"] | Path = False,
    data: DataModule | None = None,
    train: TrainArgs = TrainArgs(
        save_interval=1000,
        log_interval=1,
        global_batch_size=16,
        micro_batch_size=1,
        lr_warmup_steps=100,
        epochs=5,
    ),
    eval: EvalArgs = EvalArgs(interval=600, max_new_tokens=100, max_iters=100),
    log: LogArgs = LogArgs(),
    optimizer: str | dict[str, Any] = "AdamW",
    logger_name: Literal["csv", "tensorboard", "wandb", "mlflow", "litlogger"] = "csv",
    seed: int = 1337,
    access_token: str | None = None,
    resize_vocab: bool = False,
    loss: Literal["cross_entropy", "dft"] = "cross_entropy",
    strategy: Literal["auto", "ddp", "fsdp", "hsdp"] = "auto",
) -> None:
    """Finetune all weights of a model.

    Args:
        checkpoint_dir: Folder of the model to start from, LitGPT's or Hugging Face's.
        out_dir: Folder for checkpoints, logs and the loss curve.
        precision: Arithmetic of the training: 32-true, bf16-true, bf16-mixed, 16-mixed.
        devices: Number of devices, or auto.
        num_nodes: Number of hosts.
        resume: Go on with the newest checkpoint in out_dir (true; auto: if any), or with that folder.
        data: What to learn from.
        train: How long, how fast and in what portions to train.
        eval: When and on how much to validate.
        log: Names handed to the experiment logger.
        optimizer: A class of torch.optim by name, or class_path and init_args. Its arguments are flags too:
            --optimizer.lr (AdamW's default: 0.001), --optimizer.weight_decay (0.01), --optimizer.betas and so on.
        resize_vocab: Give embedding and head rows for the tokens that the tokenizer has beyond the model's vocabulary.
        loss: Cross-entropy, or weighted by the probability that the model gives each target (dynamic finetuning): what
            it finds unlikely counts less, which keeps more of what it knows.
        logger_name: Where metrics go besides the CSV file.
        seed: Of the order of the samples and dropout.
        access_token: For checkpoints on the hub that ask for one.
        strategy: How several devices share the work: each holds the whole model (ddp), or its part of it (fsdp: FSDP2;
            hsdp: a copy on each host is shared out over its devices). Auto shares the model out where it doesn't fit.

    Example:
        litgpt finetune_full HuggingFaceTB/SmolLM2-135M-Instruct --data JSON --data.json_path my_data.jsonl
    """
    arguments = dict(locals())
    from litgpt.finetune.base import finetune
    from litgpt.peft import Full

    finetune(Full(), arguments)

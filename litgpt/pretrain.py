"""`litgpt pretrain`: its arguments; `litgpt.training.pretraining` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from litgpt.args import EvalArgs, LogArgs, TrainArgs
from litgpt.config import Config, configs
from litgpt.data import DataModule


def setup(
    model_name: str,
    model_config: Config | None = None,
    out_dir: Path = Path("out/pretrain"),
    precision: Literal["bf16-true", "bf16-mixed", "16-mixed", "32-true"] | None = None,
    initial_checkpoint_dir: Path | None = None,
    resume: bool | Literal["auto"] | Path = False,
    data: DataModule | None = None,
    train: TrainArgs = TrainArgs(
        save_interval=1000,
        log_interval=1,
        global_batch_size=512,
        micro_batch_size=4,
        max_tokens=int(3e12),
        max_norm=1.0,
        min_lr=4e-5,
        lr_warmup_steps=2000,
        tie_embeddings=False,
    ),
    eval: EvalArgs = EvalArgs(interval=1000, max_iters=100),
    log: LogArgs = LogArgs(),
    optimizer: str | dict = "AdamW",  # type: ignore[type-arg]
    devices: int | str = "auto",
    num_nodes: int = 1,
    tokenizer_dir: Path | None = None,
    logger_name: Literal["csv", "tensorboard", "wandb", "mlflow", "litlogger"] = "tensorboard",
    seed: int = 42,
    strategy: Literal["auto", "ddp", "fsdp", "hsdp"] = "auto",
) -> None:
    """Pretrain a model, from random weights or from those of a checkpoint.

    Args:
        model_name: The size to train, by name; `list` shows them all.
        model_config: The size to train, field by field or a `model_config.yaml`; then `model_name` is only a name.
        out_dir: Where checkpoints (`step-*`, `final`), logs and the picture of the loss go.
        precision: Of weights and products: 32-true, bf16-true, or bf16-mixed and 16-mixed (weights in 32 bits, products
            in 16).
            Unset: bf16-mixed.
        initial_checkpoint_dir: A checkpoint folder whose weights to start from, instead of random ones.
        resume: Go on with an unfinished run: a `step-*` folder, true for the newest one in `out_dir`, or auto to do
            so if there is one.
        data: The text to train on, for example `--data TextFiles --data.train_data_path FOLDER`.
        train: How long, how fast and in what portions to train.
        eval: When and on how much to validate.
        log: Names for the experiment logger.
        optimizer: A class of torch.optim by name, or class_path and init_args. Its arguments are flags too:
            --optimizer.lr (AdamW's default: 0.001), --optimizer.weight_decay (0.01), --optimizer.betas and so on.
        devices: How many devices to use, or auto for all.
        num_nodes: How many machines to use.
        tokenizer_dir: A folder with the tokenizer that the data needs; it is copied into the checkpoints.
        logger_name: Where metrics go besides the CSV file.
        seed: Of the random weights, the order of the data and dropout.
        strategy: How several devices share the work: each holds the whole model (ddp), or its part of it (fsdp: FSDP2;
            hsdp: a copy on each host is shared out over its devices). Auto shares the model out where it doesn't fit.

    Example:
        litgpt download EleutherAI/pythia-14m --tokenizer_only true
        litgpt pretrain pythia-14m --tokenizer_dir EleutherAI/pythia-14m --data TextFiles --data.train_data_path texts
    """
    arguments = dict(locals())
    if model_name == "list":
        print("\n".join(sorted((str(config["name"]) for config in configs), key=str.lower)))
        return
    from litgpt.eval.during_training import check_tasks, tasks_of
    from litgpt.training.pretraining import PretrainArguments, pretrain

    check_tasks(eval)
    pretrain(PretrainArguments.of(arguments), tasks_of)

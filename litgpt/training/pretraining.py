"""From the arguments of `litgpt pretrain` to a `Run`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from litgpt.args import EvalArgs, hyperparameters, portable
from litgpt.checkpoint.layout import HYPERPARAMETERS, LIT_MODEL, TOKENIZER_FILES, copy_config_files, find_checkpoint
from litgpt.checkpoint.reader import load_model
from litgpt.checkpoint.writer import save_owned
from litgpt.config import Config, named_row
from litgpt.engine.engine import Engine
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.model.initialization import initialize
from litgpt.model.sharding import everything
from litgpt.runtime import parameter_dtype, shards
from litgpt.tokenizer import Tokenizer
from litgpt.training.batching.documents import by_documents
from litgpt.training.loop import fit
from litgpt.training.metrics.bits_per_byte import TextLoss
from litgpt.training.metrics.loggers import named_loggers
from litgpt.training.metrics.validation import example_index
from litgpt.training.optim.optimizers import check_optimizer, dotted
from litgpt.training.retention import output_folder
from litgpt.training.run import Result, TrainingArguments
from litgpt.training.sharded import new_sharded, open_sharded, training_bytes
from litgpt.training.state import resume_point

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(kw_only=True)
class PretrainArguments(TrainingArguments):
    """The arguments of `litgpt.pretrain.setup`, which says what they mean."""

    model_name: str
    model_config: Config | None
    initial_checkpoint_dir: Path | None
    tokenizer_dir: Path | None


Tasks = Callable[[EvalArgs, GPT, Tokenizer | None], Callable[[int], Mapping[str, float]] | None]
"""Makes what runs `eval.tasks`."""


def pretrain(args: PretrainArguments, tasks: Tasks | None = None) -> Result:
    """Trains a model on text.

    Raises:
        LitGPTError: An argument can't be followed; see `litgpt.training.loop.fit` too.
    """
    check_optimizer(args.optimizer)
    with output_folder(args.out_dir, args.initial_checkpoint_dir) as args.out_dir:
        return _pretrain(args, tasks)


def _pretrain(args: PretrainArguments, tasks: Tasks | None) -> Result:
    config, settings = choose_config(args), hyperparameters(args.arguments)
    shape = {} if args.model_config is None else {"model_config": hyperparameters(args.model_config.to_dict())}
    written = portable({**settings, **shape, "optimizer": dotted(args.optimizer)}, args.data)
    resume = resume_point(args.resume, args.out_dir)
    if args.data is None:
        raise LitGPTError(
            "Nothing says what to train on: add --data TextFiles --data.train_data_path FOLDER, for example."
        )
    fabric = args.make_fabric(args.precision, lambda: training_bytes(config, torch.float32))
    model = starting_model(args, config, fabric)
    if args.train.max_seq_length is not None:
        model.max_seq_length = args.train.max_seq_length
    tokenizer = read_data(args, model, fabric)
    train_dataset, val_dataset = args.data.train_dataset, args.data.val_dataset
    if args.train.document_masks:
        train_dataset, val_dataset = by_documents(train_dataset, tokenizer), by_documents(val_dataset, tokenizer)

    def save(folder: Path) -> None:
        save_owned(folder / LIT_MODEL, model, everything, wrap="model")
        if args.initial_checkpoint_dir is not None:
            copy_config_files(find_checkpoint(args.initial_checkpoint_dir).dir, folder)
        if tokenizer is not None:
            copy_tokenizer(tokenizer.checkpoint_dir, folder)
        config.save(folder)
        (folder / HYPERPARAMETERS).write_text(yaml.safe_dump(written, sort_keys=False), encoding="utf-8")

    asked_for = args.logger_name != "tensorboard"  # which is the command's default
    logging = (
        named_loggers(args.logger_name, args.out_dir, args.log, required=asked_for) if fabric.is_global_zero else ()
    )
    return fit(
        args.run(
            args.data,
            model=model,
            train_dataset=train_dataset,
            val_dataset=val_dataset,
            save=save,
            fabric=fabric,
            sample=continuation(args, model, tokenizer, fabric),
            objective=None if tokenizer is None else lambda model: TextLoss(model, args.train, tokenizer),
            evaluate=None if tasks is None else tasks(args.eval, model, tokenizer),
            settings=settings,
            fixed={"train.tie_embeddings": bool(model.config.tie_embeddings)},
            loggers=logging,
            resume=resume,
            step_digits=8,
            whole_final_validation=False,
        )
    )


def choose_config(args: PretrainArguments) -> Config:
    """The model to train: that of the checkpoint to start from, else `model_config`, else the one called `model_name`.

    Raises:
        LitGPTError: The name is unknown, or the checkpoint holds another model than asked for.
    """
    asked = args.model_config
    if asked is None and (args.initial_checkpoint_dir is None or named_row(args.model_name)):
        asked = Config.from_name(args.model_name)
    if args.initial_checkpoint_dir is not None:
        config = find_checkpoint(args.initial_checkpoint_dir).config
        if asked is not None and _shape(asked) != _shape(config):
            raise LitGPTError(
                f"{args.initial_checkpoint_dir} holds another model ({config.name or 'unnamed'}) than "
                f"{args.model_name}."
            )
        return config
    assert asked is not None
    if not asked.name:
        asked = replace(asked, name=args.model_name)
    return replace(asked, tie_embeddings=True) if args.train.tie_embeddings else asked


def _shape(config: Config) -> dict[str, Any]:
    """What decides which weights fit."""
    labels = {"name", "hf_config", "vocab_size", "padding_multiple", "family_name", "tie_embeddings"}
    return {key: value for key, value in asdict(config).items() if key not in labels}


def starting_model(args: PretrainArguments, config: Config, fabric: Fabric) -> GPT:
    """The model with the weights that training starts from, on the CPU, or shared out over the devices.

    Raises:
        LitGPTError: The checkpoint to start from can't be read, or has a head of its own that should be tied.
    """
    if args.initial_checkpoint_dir is not None:
        dtype = parameter_dtype(fabric.strategy.precision.precision)
        if shards(fabric):
            model = open_sharded(find_checkpoint(args.initial_checkpoint_dir), fabric, dtype)
        else:
            model = load_model(args.initial_checkpoint_dir, dtype=dtype)
        if args.train.tie_embeddings and not model.tied:
            raise LitGPTError(
                f"train.tie_embeddings would throw away the head that {args.initial_checkpoint_dir} has of its own; "
                "leave it out."
            )
        return model
    if shards(fabric):
        return new_sharded(config, fabric)
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    model.tie()
    initialize(model)
    return model


def read_data(args: PretrainArguments, model: GPT, fabric: Fabric) -> Tokenizer | None:
    """Makes the data sets of `args.data`; returns the tokenizer of their tokens, if there is one.

    Raises:
        LitGPTError: The data can't be read, or has tokens that the model doesn't have.
    """
    data = args.data
    assert data is not None
    folder = args.tokenizer_dir
    if folder is None and args.initial_checkpoint_dir is not None:
        source = find_checkpoint(args.initial_checkpoint_dir).dir
        folder = source if any((source / name).is_file() for name in TOKENIZER_FILES) else None
    data.pretraining = True
    args.read_data(data, None if folder is None else Tokenizer(folder), model.max_seq_length, model, fabric)
    return data.tokenizer


BEGINNING = 16
"""Tokens of a validation sample that the example of a validation continues."""


def continuation(
    args: PretrainArguments, model: GPT, tokenizer: Tokenizer | None, fabric: Fabric
) -> Callable[[int], str | None] | None:
    """Shows how the model goes on from the beginning of a validation sample; None: not asked for.

    Raises:
        LitGPTError: It is asked for and can't be.
    """
    wanted = args.eval.max_new_tokens
    dataset = args.data.val_dataset if args.data is not None else None
    if not wanted or not dataset:
        return None
    if tokenizer is None:
        raise LitGPTError(
            "eval.max_new_tokens shows text, and nothing says how to read the data's tokens: add --tokenizer_dir "
            "FOLDER, or leave it out."
        )
    example_index(args.eval, len(dataset), args.seed, 0)  # raises before training where there is none

    def show(step: int) -> str:
        ids = dataset[example_index(args.eval, len(dataset), args.seed, step)]["input_ids"]
        beginning = ids[: min(BEGINNING, model.max_seq_length - 1)].tolist()
        engine = Engine(model, length=min(model.max_seq_length, len(beginning) + wanted))
        ends = () if tokenizer.eos_id is None else ([tokenizer.eos_id],)
        said = engine.submit(beginning, Sampling(temperature=0.0), ends, wanted).result()
        text = tokenizer.decode([*beginning, *said])
        fabric.print(f"Step {step}, continued: {text}")
        return text

    return show


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the tokenizer's files, and `generation_config.json`, which may say how a text ends."""
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (source / name).is_file():
            shutil.copy(source / name, target / name)

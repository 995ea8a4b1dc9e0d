"""What every finetuning command does: open a model, attach a method, make samples, call the training loop, save."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from litgpt.args import hyperparameters, portable
from litgpt.checkpoint.finetuned import Finetuned, find_finetuned
from litgpt.checkpoint.fingerprint import BASE, fingerprint
from litgpt.checkpoint.layout import HYPERPARAMETERS, LIT_MODEL, Checkpoint, copy_config_files, find_checkpoint
from litgpt.checkpoint.merge import merge
from litgpt.checkpoint.reader import load_model
from litgpt.checkpoint.writer import save_owned
from litgpt.data import Alpaca, DataModule
from litgpt.engine.engine import Engine
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError
from litgpt.eval.during_training import check_tasks, tasks_of
from litgpt.model import GPT
from litgpt.peft import Method
from litgpt.peft.lora import OVERRIDABLE, LoRA
from litgpt.prompts import PromptStyle, save_prompt_style
from litgpt.runtime import parameter_dtype, pick_device, quantized_precision, shards
from litgpt.tokenizer import Tokenizer
from litgpt.training.incompatibilities import check_finetuning
from litgpt.training.loop import fit
from litgpt.training.loss import IGNORED, NextToken
from litgpt.training.metrics.loggers import named_loggers
from litgpt.training.metrics.validation import example_index
from litgpt.training.optim.optimizers import check_optimizer, dotted
from litgpt.training.retention import output_folder, refuse_overwriting
from litgpt.training.run import Objective, Result, Rollouts, TrainingArguments
from litgpt.training.sharded import open_sharded, training_bytes
from litgpt.training.state import resume_point

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(kw_only=True)
class FinetuneArguments(TrainingArguments):
    """The arguments of a finetuning command; those that are the method's own are in `method`."""

    method: Method
    checkpoint_dir: Path
    quantize: str | None = None
    resize_vocab: bool = False
    loss: str = "cross_entropy"
    access_token: str | None = field(default=None, repr=False)

    def check_data(self, data: DataModule) -> None:
        """Raises a LitGPTError where the data is none that this command can learn from, or its options don't go
        together."""
        if getattr(data, "compares", False):
            raise LitGPTError(
                "--data Preferences is for finetune_dpo; --data Conversations learns the chosen answers of such files."
            )
        if getattr(data, "asks", False):
            raise LitGPTError(
                "--data Prompts is for finetune_grpo; --data Conversations learns answers that are there."
            )
        if self.loss == "dft" and (self.train.label_smoothing or self.train.z_loss):
            raise LitGPTError(
                "--loss dft weighs the loss of the target alone: leave out train.label_smoothing and train.z_loss."
            )

    def objective(self, start: Start) -> Callable[[GPT], Objective] | None:
        """What is minimised; None: cross-entropy, as `train` says."""
        return partial(NextToken, dft=True) if self.loss == "dft" else None

    def rollouts(self, start: Start) -> Rollouts | None:
        """What makes the samples of a step from those of the data; None: they are learned as they are."""
        return None

    def evaluate(self, start: Start) -> Callable[[int], Mapping[str, float]] | None:
        """What is found out, beside the loss, whenever there is a validation."""
        style = getattr(start.data, "prompt_style", None)
        return tasks_of(self.eval, start.model, start.tokenizer, style)

    def fixed(self) -> dict[str, Any]:
        """Options, by flag, that a resumed run must not change."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run starts with, before it is trained or anything of it is restored."""

    model: GPT
    data: DataModule
    fabric: Fabric
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    update: Finetuned | None
    """What the method goes on with."""
    precision: str


def finetune(
    method: Method, arguments: Mapping[str, Any], kind: type[FinetuneArguments] = FinetuneArguments, **more: Any
) -> Result:
    """Runs a finetuning command from its arguments, and `more` fields of their `kind`, to `out_dir/final`.

    Raises:
        LitGPTError: An argument, a file or the data is wrong.
    """
    args = kind.of(arguments, method=method, **more)
    data = checked(args)
    with output_folder(args.out_dir, args.checkpoint_dir) as args.out_dir:
        return _finetune(args, data)


def _finetune(args: FinetuneArguments, data: DataModule) -> Result:
    checkpoint, update = open_checkpoint(args)
    refuse_overwriting(args.out_dir, checkpoint.path)
    base = (fingerprint(checkpoint), checkpoint.path) if args.method.suffix else None
    method = args.method
    precision = quantized_precision(args.quantize, args.precision, training=True, device=pick_device())
    dtype = parameter_dtype(precision)
    fabric = args.make_fabric(
        precision, lambda: 0 if args.quantize else training_bytes(checkpoint.config, dtype, method)
    )
    resume = resume_point(args.resume, args.out_dir)
    tokenizer = Tokenizer(checkpoint.dir)
    if args.resize_vocab and tokenizer.largest_id >= rows_of(method, checkpoint):
        method = args.method = method.resized(tokenizer.largest_id + 1)
    if update is not None and rows_of(method, checkpoint) != rows_of(update.method, checkpoint):
        raise LitGPTError(
            "--resize_vocab true can't add tokens to updates that were trained without them; merge these first "
            "(`litgpt merge_lora`), and start from the result."
        )
    model = start_model(args, checkpoint, update, fabric, dtype)
    make_datasets(args, data, tokenizer, model, fabric)
    start = Start(
        model=model,
        data=data,
        fabric=fabric,
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        update=update,
        precision=precision,
    )
    objective, rollouts = args.objective(start), args.rollouts(start)
    of_method = {f"lora_{name}": value for name, value in method.settings().items() if name != "vocabulary"}
    settings = hyperparameters({**args.arguments, "checkpoint_dir": checkpoint.path, **of_method})
    written = portable({**settings, "optimizer": dotted(args.optimizer)}, args.data)
    run = args.run(
        data,
        model=model,
        train_dataset=data.train_dataset,
        val_dataset=data.val_dataset,
        save=lambda folder: save(folder, method, getattr(data, "prompt_style", None), model, checkpoint, written, base),
        fabric=fabric,
        objective=objective,
        rollouts=rollouts,
        base=base,
        owns=method.owns,
        rate_factor=method.rate_factor,
        weights_file=f"{LIT_MODEL}{method.suffix}",
        sample=Example(args, data, tokenizer, model, fabric),
        evaluate=args.evaluate(start),
        loggers=named_loggers(args.logger_name, args.out_dir, args.log) if fabric.is_global_zero else (),
        settings=settings,
        fixed={
            **{name: value for name, value in of_method.items() if name.removeprefix("lora_") not in OVERRIDABLE},
            **args.fixed(),
        },
        resume=resume,
    )
    if isinstance(method, LoRA):
        run.complete = lambda folder: merge_beside(folder, run.weights_file, method, checkpoint)
    return fit(run)


def start_model(
    args: FinetuneArguments, checkpoint: Checkpoint, update: Finetuned | None, fabric: Fabric, dtype: torch.dtype
) -> GPT:
    """The model with the method attached, as it is before training."""
    if shards(fabric):
        return open_sharded(checkpoint, fabric, dtype, args.method, update, args.quantize)
    place = fabric.device if args.quantize else "cpu"  # what is quantized stays where it is
    model = load_model(checkpoint, place, dtype, args.quantize)
    if update is None:
        args.method.check(model)
    args.method.attach(model)
    if update is not None:
        update.load_into(model)
    return model


def rows_of(method: Method, checkpoint: Checkpoint) -> int:
    """How many tokens the model has that `method` trains."""
    return int(getattr(method, "vocabulary", None) or checkpoint.config.padded_vocab_size or 0)


def merge_beside(folder: Path, weights_file: str, method: LoRA, checkpoint: Checkpoint) -> None:
    """Writes the merged model next to the update in `folder`.

    Raises:
        LitGPTError: It can't be; the update is there all the same.
    """
    try:
        merge(Finetuned(folder / weights_file, method.as_saved(), checkpoint), folder)
    except LitGPTError as error:
        raise LitGPTError(f"{error} What was trained is safe: `litgpt merge_lora {folder}` merges it.") from None


def checked(args: FinetuneArguments) -> DataModule:
    """The data module of the command.

    Raises:
        LitGPTError: An option is none of finetuning.
    """
    data = Alpaca() if args.data is None else args.data
    check_finetuning(args.train)
    check_tasks(args.eval)
    check_optimizer(args.optimizer)
    args.check_data(data)
    if getattr(data, "ignore_index", IGNORED) != IGNORED:
        raise LitGPTError(f"data.ignore_index is {IGNORED} in training, as the loss expects it; leave it out.")
    return data


def open_checkpoint(args: FinetuneArguments) -> tuple[Checkpoint, Finetuned | None]:
    """The model to start from, downloaded if `checkpoint_dir` is the name of one on the hub.

    Where the folder holds updates only, they are the second value, and `args.method` goes on with them.

    Raises:
        LitGPTError: The folder can't be used, or its updates were made in another way than the command asks for.
    """
    from litgpt.checkpoint.hub import auto_download

    folder = auto_download(args.checkpoint_dir, access_token=args.access_token)
    update = find_finetuned(folder) if args.method.suffix else None
    if update is None:
        return find_checkpoint(folder), None
    args.method = args.method.continue_from(update.method)
    return update.base, update


def make_datasets(args: FinetuneArguments, data: DataModule, tokenizer: Tokenizer, model: GPT, fabric: Fabric) -> None:
    """Makes the data sets, no sample longer than the model's context or `train.max_seq_length`."""
    context = model.config.block_size
    asked = args.train.max_seq_length or context
    limit = min(asked, context)
    if asked > limit:
        fabric.print(f"train.max_seq_length is {asked}; samples end at the model's context of {context} tokens.")
    args.read_data(data, tokenizer, limit, model, fabric)
    lengths = getattr(data.train_dataset, "lengths", None)
    if lengths:
        fabric.print(
            f"{len(data.train_dataset):,} training samples, the longest of {max(lengths):,} tokens "
            f"(limit {limit:,}, context {context:,}); {_size(data.val_dataset):,} validation samples."
        )


def _size(dataset: Sized | None) -> int:
    return 0 if dataset is None else len(dataset)


def save(
    folder: Path,
    method: Method,
    style: PromptStyle | None,
    model: GPT,
    checkpoint: Checkpoint,
    settings: dict[str, Any],
    base: tuple[str, Path] | None,
) -> None:
    """Writes what was trained into `folder`, with all that is needed to use it."""
    save_owned(
        folder / f"{LIT_MODEL}{method.suffix}",
        model,
        method.owns,
        wrap="model",
        beside={BASE: base[0]} if base else None,
    )
    copy_config_files(checkpoint.dir, folder)
    model.config.save(folder)
    (folder / HYPERPARAMETERS).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    if style is not None:
        save_prompt_style(style, folder)


class Example:
    """Shows what the model answers to one validation sample."""

    def __init__(
        self, args: FinetuneArguments, data: DataModule, tokenizer: Tokenizer, model: GPT, fabric: Fabric
    ) -> None:
        self.args, self.data, self.tokenizer, self.model, self.fabric = args, data, tokenizer, model, fabric
        if data.val_dataset:
            example_index(args.eval, len(data.val_dataset), args.seed, 0)  # raises before training where there is none

    def __call__(self, step: int) -> str | None:
        dataset = self.data.val_dataset
        wanted = self.args.eval.max_new_tokens
        if not wanted or not dataset or not hasattr(dataset, "question"):
            return None
        index = example_index(self.args.eval, len(dataset), self.args.seed, step)
        found = dataset.question(index, self.tokenizer.protect)
        if found is None:
            return None
        (asked, prompt), style = found, dataset.prompt_style
        tokens = self.tokenizer.encode_ids(prompt, bos=False if style.adds_bos else None, protected=True)
        length = self.model.max_seq_length
        self.fabric.print(f"Step {step}, instruction: {asked}")
        if len(tokens) >= length:
            self.fabric.print(
                f"Its prompt fills the context of {length} tokens; choose another by eval.evaluate_example."
            )
            return None
        engine = Engine(self.model, length=min(length, len(tokens) + wanted))
        stops = style.stop_tokens(self.tokenizer)
        answer = engine.submit(tokens, Sampling(temperature=0.0), stops, wanted).result()
        said = self.tokenizer.decode(answer)
        self.fabric.print(f"Answer: {said}")
        return f"{asked}\n→ {said}"

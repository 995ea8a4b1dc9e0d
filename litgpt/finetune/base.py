"""What every finetuning command does: open a model, attach a method, make samples, call the training loop, save."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from litgpt.args import EvalArgs, LogArgs, TrainArgs, hyperparameters
from litgpt.checkpoint.layout import HYPERPARAMETERS, LIT_MODEL, Checkpoint, copy_config_files, find_checkpoint
from litgpt.checkpoint.merge import merge
from litgpt.checkpoint.reader import load_model
from litgpt.checkpoint.writer import save_state
from litgpt.data.base import DataModule, SFTModule, render
from litgpt.errors import LitGPTError
from litgpt.generate.engine import Engine
from litgpt.generate.sampling import Sampling
from litgpt.loggers import named_loggers
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.peft import Method, owned_state
from litgpt.prompts import save_prompt_style
from litgpt.runtime import make_fabric, output_dir, parameter_dtype, training_precision
from litgpt.tokenizer import Tokenizer
from litgpt.training.loop import Result, Run, fit
from litgpt.training.loss import IGNORED
from litgpt.training.state import resume_point

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True)
class Job:
    """One finetuning command: its method and its arguments."""

    method: Method
    checkpoint_dir: Path
    out_dir: Path
    data: DataModule | None
    train: TrainArgs
    eval: EvalArgs
    log: LogArgs
    optimizer: str | dict[str, Any]
    logger_name: str
    seed: int
    precision: str | None = None
    quantize: str | None = None
    devices: int | str = 1
    num_nodes: int = 1
    resume: bool | str | Path = False
    access_token: str | None = field(default=None, repr=False)
    arguments: dict[str, Any] = field(default_factory=dict)
    """All arguments as they were given, for `hyperparameters.yaml`."""

    @classmethod
    def of(cls, method: Method, arguments: dict[str, Any]) -> Self:
        """The job of a command with these arguments; those that are the method's own are in `method`."""
        names = {own.name for own in dataclasses.fields(cls)}
        common = {name: value for name, value in arguments.items() if name in names}
        return cls(method=method, arguments=arguments, **common)


def finetune(job: Job) -> Result:
    """Runs a finetuning command from its arguments to `out_dir/final`.

    Raises:
        LitGPTError: An argument, a file or the data is wrong.
    """
    data = checked(job)
    job = dataclasses.replace(job, out_dir=output_dir(job.out_dir))
    checkpoint = open_checkpoint(job)
    fabric = make_fabric(job.devices, job.num_nodes, job.precision, seed=job.seed)
    resume = resume_point(job.resume, job.out_dir)
    tokenizer = Tokenizer(checkpoint.dir)
    model = load_model(checkpoint, dtype=parameter_dtype(training_precision(job.precision, fabric.device)))
    job.method.attach(model)
    prepare(data, job, tokenizer, model, fabric)
    run = Run(
        model=model,
        train_dataset=data.train_dataset,
        val_dataset=data.val_dataset,
        train=job.train,
        eval=job.eval,
        out_dir=job.out_dir,
        save=lambda folder: save(folder, job, data, model, checkpoint),
        fabric=fabric,
        owns=job.method.owns,
        weights_file=f"{LIT_MODEL}{job.method.suffix}",
        optimizer=job.optimizer,
        sample=Example(job, data, tokenizer, model, fabric),
        loggers=named_loggers(job.logger_name, job.out_dir, job.log) if fabric.is_global_zero else (),
        seed=job.seed,
        resume=resume,
    )
    result = fit(run)
    if isinstance(job.method, LoRA) and fabric.is_global_zero:
        try:
            merge(result.final, job.method, checkpoint)
        except LitGPTError as error:
            raise LitGPTError(
                f"{error} What was trained is safe: `litgpt merge_lora {result.final}` merges it."
            ) from None
    fabric.barrier()
    return result


def checked(job: Job) -> DataModule:
    """The data module of a job that can be done.

    Raises:
        LitGPTError: The job asks for what isn't there, or for nothing.
    """
    if job.data is None:
        raise LitGPTError("Nothing to learn from is given: add --data JSON --data.json_path FILE.")
    if job.quantize is not None:
        raise LitGPTError(
            f"--quantize {job.quantize} is not built yet; leave it out and use --precision bf16-true to save memory."
        )
    if job.train.tie_embeddings is not None:
        raise LitGPTError("train.tie_embeddings is for pretraining: a finished model is tied or not; leave it out.")
    if getattr(job.data, "ignore_index", IGNORED) != IGNORED:
        raise LitGPTError(f"data.ignore_index is {IGNORED} in training, as the loss expects it; leave it out.")
    return job.data


def open_checkpoint(job: Job) -> Checkpoint:
    """The checkpoint to start from, downloaded if `checkpoint_dir` is the name of one on the hub."""
    from litgpt.checkpoint.hub import auto_download

    return find_checkpoint(auto_download(job.checkpoint_dir, access_token=job.access_token))


def prepare(data: DataModule, job: Job, tokenizer: Tokenizer, model: GPT, fabric: Fabric) -> None:
    """Makes the data sets, no sample longer than the model's context or `train.max_seq_length`."""
    context = model.config.block_size
    limit = job.train.max_seq_length or context
    if limit > context:
        raise LitGPTError(f"train.max_seq_length is {limit}, but the model's context is {context} tokens.")
    data.say = fabric.print
    data.connect(tokenizer, batch_size=job.train.micro_batch_size, max_seq_length=limit)
    with fabric.rank_zero_first():
        data.prepare_data()
    data.setup()
    lengths = getattr(data.train_dataset, "lengths", None)
    if lengths:
        fabric.print(
            f"{len(lengths):,} training samples, the longest of {max(lengths):,} tokens "
            f"(limit {limit:,}, context {context:,}); {_size(data.val_dataset):,} validation samples."
        )


def _size(dataset: Sized | None) -> int:
    return 0 if dataset is None else len(dataset)


def save(folder: Path, job: Job, data: DataModule, model: GPT, checkpoint: Checkpoint) -> None:
    """Writes what was trained into `folder`, with all that is needed to use it."""
    save_state(
        folder / f"{LIT_MODEL}{job.method.suffix}",
        owned_state(model, job.method.owns),
        wrap="model" if job.method.suffix else "",
    )
    copy_config_files(checkpoint.dir, folder)
    model.config.save(folder)
    content = hyperparameters({**job.arguments, "checkpoint_dir": checkpoint.path})
    (folder / HYPERPARAMETERS).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    if isinstance(data, SFTModule):
        save_prompt_style(data.prompt_style, folder)


class Example:
    """Shows what the model answers to one validation sample."""

    def __init__(self, job: Job, data: DataModule, tokenizer: Tokenizer, model: GPT, fabric: Fabric) -> None:
        self.eval, self.data, self.tokenizer, self.model, self.fabric = job.eval, data, tokenizer, model, fabric
        self.random = random.Random(job.seed)
        if data.val_dataset and isinstance(job.eval.evaluate_example, int):
            self._index(len(data.val_dataset))  # an index that isn't there is better told before the training

    def __call__(self, step: int) -> None:
        dataset = self.data.val_dataset
        if not self.eval.max_new_tokens or not isinstance(self.data, SFTModule) or not dataset:
            return
        row = dataset.data[self._index(len(dataset))]
        style = dataset.prompt_style
        prompt, _ = render(style, row, 0)
        tokens = self.tokenizer.encode_ids(prompt, bos=False if style.adds_bos else None)
        length = self.model.max_seq_length
        self.fabric.print(f"Step {step}, instruction: {row['instruction']}")
        if len(tokens) >= length:
            self.fabric.print(
                f"Its prompt fills the context of {length} tokens; choose another by eval.evaluate_example."
            )
            return
        engine = Engine(self.model, length=min(length, len(tokens) + self.eval.max_new_tokens))
        answer = engine.submit(
            tokens, Sampling(temperature=0.0), style.stop_tokens(self.tokenizer), self.eval.max_new_tokens
        ).result()
        self.fabric.print(f"Answer: {self.tokenizer.decode(answer)}")

    def _index(self, size: int) -> int:
        choice = self.eval.evaluate_example
        if choice == "random":
            return self.random.randrange(size)
        index = 0 if choice == "first" else int(choice)
        if not 0 <= index < size:
            raise LitGPTError(
                f"eval.evaluate_example is {index}, but there are {size} validation samples, numbered from 0."
            )
        return index

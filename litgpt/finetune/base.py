"""What every finetuning command does: open a model, attach a method, make samples, call the training loop, save."""

from __future__ import annotations

import dataclasses
from collections.abc import Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import yaml

from litgpt.args import EvalArgs, LogArgs, TrainArgs, hyperparameters
from litgpt.checkpoint.finetuned import Finetuned, find_finetuned
from litgpt.checkpoint.layout import HYPERPARAMETERS, LIT_MODEL, Checkpoint, copy_config_files, find_checkpoint
from litgpt.checkpoint.merge import merge
from litgpt.checkpoint.reader import load_model
from litgpt.checkpoint.writer import save_state
from litgpt.data import Alpaca, DataModule
from litgpt.engine.engine import Engine
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.peft import Method, owned_state
from litgpt.peft.lora import OVERRIDABLE, LoRA
from litgpt.prompts import save_prompt_style
from litgpt.runtime import make_fabric, output_dir, parameter_dtype, pick_device, quantized_precision
from litgpt.tokenizer import Tokenizer
from litgpt.training.incompatibilities import check_finetuning
from litgpt.training.loop import fit
from litgpt.training.loss import IGNORED
from litgpt.training.metrics.loggers import named_loggers
from litgpt.training.metrics.validation import example_index
from litgpt.training.run import Result, Run
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
    checkpoint, job, update = open_checkpoint(job)
    precision = quantized_precision(job.quantize, job.precision, training=True, device=pick_device())
    fabric = make_fabric(job.devices, job.num_nodes, precision, seed=job.seed)
    resume = resume_point(job.resume, job.out_dir)
    tokenizer = Tokenizer(checkpoint.dir)
    place = fabric.device if job.quantize else "cpu"  # what is quantized stays where it is
    model = load_model(checkpoint, place, parameter_dtype(precision), job.quantize)
    if update is None:
        job.method.check(model)
    job.method.attach(model)
    if update is not None:
        update.load_into(model)
    prepare(data, job, tokenizer, model, fabric)
    of_method = {f"lora_{name}": value for name, value in job.method.settings().items()}
    settings = hyperparameters({**job.arguments, "checkpoint_dir": checkpoint.path, **of_method})
    run = Run(
        model=model,
        train_dataset=data.train_dataset,
        val_dataset=data.val_dataset,
        train=job.train,
        eval=job.eval,
        out_dir=job.out_dir,
        save=lambda folder: save(folder, job, data, model, checkpoint, settings),
        fabric=fabric,
        owns=job.method.owns,
        rate_factor=job.method.rate_factor,
        weights_file=f"{LIT_MODEL}{job.method.suffix}",
        optimizer=job.optimizer,
        sample=Example(job, data, tokenizer, model, fabric),
        loggers=named_loggers(job.logger_name, job.out_dir, job.log) if fabric.is_global_zero else (),
        settings=settings,
        fixed={name: value for name, value in of_method.items() if name.removeprefix("lora_") not in OVERRIDABLE},
        seed=job.seed,
        resume=resume,
    )
    result = fit(run)
    if isinstance(job.method, LoRA) and fabric.is_global_zero:
        for folder in filter(None, (result.final, result.best)):
            merge_beside(folder, run.weights_file, job.method, checkpoint)
    fabric.barrier()
    return result


def merge_beside(folder: Path, weights_file: str, method: LoRA, checkpoint: Checkpoint) -> None:
    """Writes the merged model next to the update in `folder`.

    Raises:
        LitGPTError: It can't be; the update is there all the same.
    """
    try:
        merge(Finetuned(folder / weights_file, method.as_saved(), checkpoint), folder)
    except LitGPTError as error:
        raise LitGPTError(f"{error} What was trained is safe: `litgpt merge_lora {folder}` merges it.") from None


def checked(job: Job) -> DataModule:
    """The data module of a job that can be done.

    Raises:
        LitGPTError: The job asks for what isn't there, or for nothing.
    """
    data = Alpaca() if job.data is None else job.data
    check_finetuning(job.train)
    if getattr(data, "ignore_index", IGNORED) != IGNORED:
        raise LitGPTError(f"data.ignore_index is {IGNORED} in training, as the loss expects it; leave it out.")
    return data


def open_checkpoint(job: Job) -> tuple[Checkpoint, Job, Finetuned | None]:
    """The model to start from, downloaded if `checkpoint_dir` is the name of one on the hub; and the job.

    Where the folder holds updates only, the job goes on with them: they are the third.

    Raises:
        LitGPTError: The folder can't be used, or its updates were made in another way than the job asks for.
    """
    from litgpt.checkpoint.hub import auto_download

    folder = auto_download(job.checkpoint_dir, access_token=job.access_token)
    update = find_finetuned(folder) if job.method.suffix else None
    if update is None:
        return find_checkpoint(folder), job, None
    return update.base, dataclasses.replace(job, method=job.method.continue_from(update.method)), update


def prepare(data: DataModule, job: Job, tokenizer: Tokenizer, model: GPT, fabric: Fabric) -> None:
    """Makes the data sets, no sample longer than the model's context or `train.max_seq_length`."""
    context = model.config.block_size
    limit = job.train.max_seq_length or context
    if limit > context:
        raise LitGPTError(f"train.max_seq_length is {limit}, but the model's context is {context} tokens.")
    data.log = fabric.print
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


def save(
    folder: Path, job: Job, data: DataModule, model: GPT, checkpoint: Checkpoint, settings: dict[str, Any]
) -> None:
    """Writes what was trained into `folder`, with all that is needed to use it."""
    save_state(
        folder / f"{LIT_MODEL}{job.method.suffix}",
        owned_state(model, job.method.owns),
        wrap="model" if job.method.suffix else "",
    )
    copy_config_files(checkpoint.dir, folder)
    model.config.save(folder)
    (folder / HYPERPARAMETERS).write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    style = getattr(data, "prompt_style", None)
    if style is not None:
        save_prompt_style(style, folder)


class Example:
    """Shows what the model answers to one validation sample."""

    def __init__(self, job: Job, data: DataModule, tokenizer: Tokenizer, model: GPT, fabric: Fabric) -> None:
        self.eval, self.data, self.tokenizer, self.model, self.fabric = job.eval, data, tokenizer, model, fabric
        self.seed = job.seed
        if data.val_dataset:
            example_index(job.eval, len(data.val_dataset), job.seed, 0)  # raises before training where there is none

    def __call__(self, step: int) -> str | None:
        dataset = self.data.val_dataset
        if not self.eval.max_new_tokens or not dataset or not hasattr(dataset, "question"):
            return None
        found = dataset.question(example_index(self.eval, len(dataset), self.seed, step))
        if found is None:
            return None
        (asked, prompt), style = found, dataset.prompt_style
        tokens = self.tokenizer.encode_ids(prompt, bos=False if style.adds_bos else None)
        length = self.model.max_seq_length
        self.fabric.print(f"Step {step}, instruction: {asked}")
        if len(tokens) >= length:
            self.fabric.print(
                f"Its prompt fills the context of {length} tokens; choose another by eval.evaluate_example."
            )
            return None
        engine = Engine(self.model, length=min(length, len(tokens) + self.eval.max_new_tokens))
        answer = engine.submit(
            tokens, Sampling(temperature=0.0), style.stop_tokens(self.tokenizer), self.eval.max_new_tokens
        ).result()
        said = self.tokenizer.decode(answer)
        self.fabric.print(f"Answer: {said}")
        return f"{asked}\n→ {said}"

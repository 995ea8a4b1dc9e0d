"""From a training command's arguments to what it will take, and what to change where that is too much."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from litgpt.args import TrainArgs
from litgpt.checkpoint.atomic import gigabytes
from litgpt.checkpoint.finetuned import find_finetuned
from litgpt.checkpoint.layout import Checkpoint, find_checkpoint
from litgpt.config import Config, named_row
from litgpt.errors import LitGPTError, UsageError
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.peft import Full, Method
from litgpt.peft.named import named_method
from litgpt.runtime import free_memory, parameter_dtype, pick_device, product_dtype, quantized_precision
from litgpt.tokenizer import Tokenizer
from litgpt.training.distill.stored import is_stored
from litgpt.training.incompatibilities import TrainingSetup, check_finetuning, check_incompatibilities
from litgpt.training.metrics.flops import days, measured_flops, optimal_model, optimal_tokens, peak_flops
from litgpt.training.metrics.progress import duration
from litgpt.training.planner.memory_estimate import MemoryEstimate, RunSpec, estimate_memory
from litgpt.training.policy.losses import policy_loss
from litgpt.training.preference.losses import preference_loss
from litgpt.training.preference.objective import Preferences
from litgpt.training.pretraining import PretrainArguments, choose_config
from litgpt.training.schedule import RunLimits

if TYPE_CHECKING:
    from litgpt.training.planner.args import PlanArgs

LIBRARIES = {"cpu": 430_000_000, "cuda": 600_000_000, "mps": 550_000_000}
"""Bytes that Python, torch and Lightning take before there is a model: of the host's memory, or the GPU's."""
HEADROOM = {"cpu": 1.0, "cuda": 1.25, "mps": 1.25}
"""What is planned for, over what is counted: kernels' work space, and memory that lies between what is used; on a CPU
that is counted, too (`heap.Heap`)."""


MEMORY_PARTS = ("weights", "gradients", "optimizer", "activations", "loss", "peak")
"""What the memory of one device holds, and the most of it at once."""


@dataclass(frozen=True)
class Plan:
    """What a command will take."""

    command: str
    spec: RunSpec
    estimate: MemoryEstimate
    needed: int
    """Bytes of memory on one device, libraries and headroom included."""
    available: int
    """Bytes."""
    changes: tuple[tuple[str, int], ...]
    """Flags that lower the memory, with what is then needed; the last one fits, unless nothing does."""
    tokens_per_sample: int
    assumed_length: bool
    steps: int | None
    """None: not known."""
    peak: float
    """Operations per second of one device."""
    peak_share: float
    merged: int
    """Bytes of the merged model that LoRA's `final/` holds besides."""

    @property
    def fits(self) -> bool:
        return self.needed <= self.available

    @property
    def tokens(self) -> int | None:
        """Of the whole run."""
        per_step = self.spec.train.global_batch_size * self.tokens_per_sample
        limit = self.spec.train.max_tokens
        if self.steps is None:
            return limit
        return min(limit, self.steps * per_step) if limit is not None else self.steps * per_step

    @property
    def flops(self) -> float | None:
        """Of the whole run."""
        return None if self.tokens is None else self.estimate.flops.total * self.tokens

    def days(self, flops: float) -> float:
        """Days that so many operations take on all devices."""
        return days(flops, self.peak, self.peak_share, self.spec.devices)

    @property
    def step_folder(self) -> int:
        """Bytes of a `step-*` folder, up to its small files."""
        return self.estimate.saved + self.estimate.memory.optimizer


def make_plan(command: str, arguments: Mapping[str, Any], options: PlanArgs) -> Plan:
    """Goes through the command without weights and data.

    Raises:
        LitGPTError: The command can't run like this.
    """
    train: TrainArgs = arguments["train"]
    checkpoint = _checkpoint_of(arguments)
    config, method = _model_of(arguments, checkpoint), method_of(command, arguments)
    if arguments.get("resize_vocab"):
        method = _resized(method, config, checkpoint)
    length = train.max_seq_length or options.tokens_per_sample or config.block_size
    if train.max_seq_length and command != "pretrain":
        length = min(length, config.block_size)  # where finetuning cuts its samples
    if length > config.block_size:
        raise LitGPTError(
            f"Samples of {length} tokens don't fit this model: its context is {config.block_size} tokens."
        )
    device = pick_device()
    precision = quantized_precision(arguments.get("quantize"), arguments["precision"], True, device)
    if command != "pretrain":
        check_finetuning(train)
    preference = preference_loss(arguments) if command == "finetune_dpo" else None
    check_incompatibilities(TrainingSetup(train, precision, device.type, _devices(arguments)))
    answers = arguments["group_size"] if command == "finetune_grpo" else 1  # to each sample, a prompt
    train = replace(train, global_batch_size=train.global_batch_size * answers)
    spec = RunSpec(
        config,
        method,
        train,
        arguments["optimizer"],
        precision,
        device,
        length,
        arguments.get("quantize"),
        _devices(arguments),
        uneven=command != "pretrain",
        preference=preference,
        policy=policy_loss(arguments) if command == "finetune_grpo" else None,
        beside=_beside(command, arguments, config, method, parameter_dtype(precision)),
        cache=_cache(command, arguments, config, length, parameter_dtype(precision)),
    )
    estimate = estimate_memory(spec)
    available = round(options.memory_gb * 1e9) if options.memory_gb is not None else free_memory(device) or sys.maxsize
    needed = needed_memory(estimate, device)
    changes = () if needed <= available else tuple(_changes(spec, available))
    tokens_per_sample = (options.tokens_per_sample or length) * (Preferences.sequences if preference else 1)
    return Plan(
        command=command,
        spec=spec,
        estimate=estimate,
        needed=needed,
        available=available,
        changes=changes,
        tokens_per_sample=tokens_per_sample,
        assumed_length=options.tokens_per_sample is None and train.max_seq_length is None,
        steps=_steps(train, options.samples and options.samples * answers, tokens_per_sample),
        peak=_peak(options, device, precision),
        peak_share=options.peak_share,
        merged=_merged(spec, estimate, arguments),
    )


def method_of(command: str, arguments: Mapping[str, Any]) -> Method:
    """The method of a command. LoRA's start from singular values takes the same room as its usual one, and here there
    are no values."""
    name = {"finetune": "lora", "pretrain": "full"}.get(command) or command.removeprefix("finetune_")
    name = arguments.get("method") or name
    return named_method(name, {**arguments, "lora_init": "default"})


def _checkpoint_of(arguments: Mapping[str, Any]) -> Checkpoint | None:
    """The model that a finetuning starts from; None: its folder isn't there yet, or it is pretraining."""
    if "checkpoint_dir" not in arguments:
        return None
    place = Path(arguments["checkpoint_dir"])
    if not place.exists() and not (Path("checkpoints") / place).exists() and named_row(place.name):
        return None
    update = find_finetuned(place)
    return find_checkpoint(place) if update is None else update.base


def _model_of(arguments: Mapping[str, Any], checkpoint: Checkpoint | None) -> Config:
    """The configuration of the model that a command trains; by its name where its folder isn't there yet."""
    if "checkpoint_dir" not in arguments:
        return choose_config(PretrainArguments.of(arguments))
    return Config.from_name(Path(arguments["checkpoint_dir"]).name) if checkpoint is None else checkpoint.config


def _beside(command: str, arguments: Mapping[str, Any], config: Config, method: Method, dtype: torch.dtype) -> int:
    """Bytes of a teacher that is a model's folder, of the frozen reference where nothing can be switched off, or of
    reward models, as their files have them."""
    if command == "finetune_grpo":
        frozen = _nbytes(config, dtype, None) if arguments["beta"] and not method.switchable else 0
        given = arguments["reward"] or []
        named = [spec.partition(":") for spec in ([given] if isinstance(given, str) else given)]
        folders = [Path(place) for kind, _, place in named if kind == "reward_model"]
        return frozen + sum(find_checkpoint(folder).nbytes for folder in folders if folder.exists())
    teacher = str(arguments.get("teacher") or "")
    if command != "finetune_distill" or teacher.startswith(("http://", "https://")) or is_stored(Path(teacher)):
        return 0
    if not teacher:
        raise UsageError("Give --teacher: a model's folder, or a name that litgpt knows.")
    given = {"checkpoint_dir": teacher}
    return _nbytes(_model_of(given, _checkpoint_of(given)), dtype, arguments["teacher_quantize"])


def _cache(command: str, arguments: Mapping[str, Any], config: Config, length: int, dtype: torch.dtype) -> int:
    """Bytes of the KV cache that answers are drawn with."""
    if command != "finetune_grpo":
        return 0
    return GPT.skeleton(config).cache_nbytes(arguments["slots"], length, dtype)


def _nbytes(config: Config, dtype: torch.dtype, quantize: str | None) -> int:
    """Of the weights of a model, in few bits where these are asked for."""
    bits = 8 * dtype.itemsize if quantize is None else 8 if "int8" in quantize else 5
    return sum(parameter.numel() for parameter in GPT.skeleton(config).parameters()) * bits // 8


def _resized(method: Method, config: Config, checkpoint: Checkpoint | None) -> Method:
    """The method with rows for the tokens that the tokenizer has beyond the model's vocabulary; for one more token,
    where the model's folder isn't there yet."""
    rows = config.padded_vocab_size or 0
    needed = rows + 1 if checkpoint is None else Tokenizer(checkpoint.dir).largest_id + 1
    return method.resized(needed) if needed > rows else method


def _merged(spec: RunSpec, estimate: MemoryEstimate, arguments: Mapping[str, Any]) -> int:
    """A merged model is as large as the one it was made from; where that isn't there yet, as in this precision."""
    if not isinstance(spec.method, LoRA):
        return 0
    folder = Path(arguments["checkpoint_dir"])
    files = folder.iterdir() if folder.is_dir() else ()
    found = sum(file.stat().st_size for file in files if file.suffix in (".pth", ".safetensors", ".bin"))
    return found or (estimate.parameters - estimate.trainable) * parameter_dtype(spec.precision).itemsize


def _devices(arguments: Mapping[str, Any]) -> int:
    asked = arguments["devices"]
    count = int(asked) if str(asked).isdigit() else max(1, torch.cuda.device_count())
    return max(1, count) * int(arguments["num_nodes"])


def _steps(train: TrainArgs, samples: int | None, tokens_per_sample: int) -> int | None:
    """Optimizer steps of the run; None where what limits it is not known before it runs."""
    if train.epochs is not None and samples is None:
        train = replace(train, epochs=None)
        if all(limit is None for limit in (train.max_steps, train.max_tokens, train.max_time)):
            return None
    return RunLimits.of(train, samples or 0).steps(train.global_batch_size, tokens_per_sample)


def _peak(options: PlanArgs, device: torch.device, precision: str) -> float:
    if options.peak_tflops is not None:
        return options.peak_tflops * 1e12
    dtype = product_dtype(precision)
    return peak_flops(device, dtype) or measured_flops(device, dtype)


# -------------------------------------------------------------------------------------------------------------- memory


def needed_memory(estimate: MemoryEstimate, device: torch.device) -> int:
    """Bytes on one device, libraries included."""
    return round(HEADROOM[device.type] * estimate.memory.reserved) + LIBRARIES[device.type]


def _changes(spec: RunSpec, available: int) -> Iterator[tuple[str, int]]:
    """What to change, one thing after the other and each on top of those before, until it fits."""
    flags: list[str] = []
    for flag, changed in _savings(spec):
        try:
            needed = needed_memory(estimate_memory(changed), spec.device)
        except LitGPTError:
            continue
        flags.append(flag)
        yield " ".join(flags), needed
        if needed <= available:
            return


def _savings(spec: RunSpec) -> Iterator[tuple[str, RunSpec]]:
    """Flags from the one that costs least, with what is then trained; each is added to those before."""

    def trained(**changes: Any) -> RunSpec:
        return replace(spec, train=replace(spec.train, **changes))

    if spec.train.micro_batch_size > 1:
        spec = trained(micro_batch_size=1)
        yield "--train.micro_batch_size 1", spec
    if not spec.train.checkpointed_every:
        spec = trained(activation_checkpointing="full")
        yield "--train.activation_checkpointing full", spec
    if spec.precision != "bf16-true" and spec.device.type != "mps":
        spec = replace(spec, precision="bf16-true")
        yield "--precision bf16-true", spec
    if isinstance(spec.method, LoRA) and spec.quantize is None and spec.device.type != "mps":
        spec = replace(spec, quantize="bnb.nf4")
        yield "--quantize bnb.nf4", spec
    shorter = spec.length // 2
    while shorter >= 256:
        spec = replace(spec, length=shorter, train=replace(spec.train, max_seq_length=shorter))
        yield f"--train.max_seq_length {shorter}", spec
        shorter //= 2


# -------------------------------------------------------------------------------------------------------------- output


def format_lines(plan: Plan) -> Iterator[str]:
    """The plan as printed, line by line."""
    spec, estimate, memory = plan.spec, plan.estimate, plan.estimate.memory
    name = spec.config.name or "the model"
    kind = type(spec.method).__name__
    yield f"Model        {name}: {estimate.parameters:,} parameters, {estimate.trainable:,} of them trained ({kind})"
    size, where = spec.train.micro_batch_size, f"{spec.devices} x {spec.device.type}"
    size = size if spec.preference is None else size * Preferences.sequences
    yield (
        f"Step         {spec.train.global_batch_size} samples, {spec.micro_batches} micro-batches of {size} x "
        f"{spec.length} tokens on {where}, {spec.precision}"
    )
    if plan.assumed_length:
        yield "             (as long as the context; --train.max_seq_length or --plan.tokens_per_sample say less)"
    sizes = f"{gigabytes(plan.needed)} needed on each device, {gigabytes(plan.available)} there"
    yield f"Memory       {sizes}: {_verdict(plan)}"
    yield f"  weights      {gigabytes(memory.weights)}{_of_which(memory.quantized)}"
    yield f"  gradients    {gigabytes(memory.gradients)}"
    yield f"  optimizer    {gigabytes(memory.optimizer)}"
    yield f"  activations  {gigabytes(memory.activations)}"
    yield f"  loss         {gigabytes(memory.loss)}"
    spare = plan.needed - LIBRARIES[spec.device.type] - memory.peak
    headroom = f"{gigabytes(spare)} that lies unused between and {gigabytes(LIBRARIES[spec.device.type])} for libraries"
    yield f"  at once      {gigabytes(memory.peak)} at most, and {headroom}"
    for number, (flags, needed) in enumerate(plan.changes):
        yield f"{'Change       ' if not number else '             '}{flags}: {gigabytes(needed)}"
    if plan.changes and plan.changes[-1][1] > plan.available:
        yield f"             None of this is enough: {_last_resort(spec)}."
    yield from _computing(plan)
    yield from _disk(plan)


def as_numbers(plan: Plan) -> dict[str, Any]:
    """What a plan says, for programs; memory and sizes in bytes."""
    spec, estimate = plan.spec, plan.estimate
    memory = {part: getattr(estimate.memory, part) for part in MEMORY_PARTS}
    return {
        "command": plan.command,
        "model": spec.config.name,
        "method": type(spec.method).__name__,
        "parameters": estimate.parameters,
        "trainable": estimate.trainable,
        "precision": spec.precision,
        "devices": spec.devices,
        "device": spec.device.type,
        "fits": plan.fits,
        "memory": {"needed": plan.needed, "available": plan.available, **memory},
        "changes": [{"flags": flags, "needed": needed} for flags, needed in plan.changes],
        "tokens_per_sample": plan.tokens_per_sample,
        "steps": plan.steps,
        "tokens": plan.tokens,
        "flops_per_token": estimate.flops.total,
        "seconds": None if plan.flops is None else 86400 * plan.days(plan.flops),
        "step_folder": plan.step_folder,
    }


def _verdict(plan: Plan) -> str:
    return "fits" if plan.fits else "does NOT fit"


def _of_which(quantized: int) -> str:
    return f" ({gigabytes(quantized)} of it in few bits)" if quantized else ""


def _last_resort(spec: RunSpec) -> str:
    return (
        "finetune_lora trains far fewer parameters"
        if isinstance(spec.method, Full)
        else "take a smaller model, or a device with more memory"
    )


def _computing(plan: Plan) -> Iterator[str]:
    flops = plan.estimate.flops
    yield (
        f"Computing    {flops.total:.3g} FLOPs a token ({flops.forward:.3g} forward), at {plan.peak_share:.0%} of "
        f"{plan.peak / 1e12:.3g} TFLOPS"
    )
    speed = plan.peak * plan.peak_share * plan.spec.devices / flops.total
    if plan.tokens is None or plan.flops is None:
        yield f"  the run      about {speed:,.0f} tokens/s; its length is not known: --plan.samples N tells of the data"
    else:
        steps = "" if plan.steps is None else f"{plan.steps:,} steps, "
        time = plan.days(plan.flops)
        yield (
            f"  the run      {steps}{plan.tokens:,} tokens, {plan.flops:.3g} FLOPs: {duration(time * 86400)} "
            f"({time:.3g} days) at {speed:,.0f} tokens/s"
        )
    if plan.command == "pretrain":
        best = optimal_tokens(plan.estimate.parameters)
        yield f"Chinchilla   {plan.estimate.parameters:,} parameters are best trained on {best:.3g} tokens"
        if plan.tokens:
            model, tokens = optimal_model(6.0 * plan.estimate.parameters * plan.tokens)
            yield f"             what this run computes is best spent on {model:.3g} parameters and {tokens:.3g} tokens"


def _disk(plan: Plan) -> Iterator[str]:
    step, final = plan.step_folder, plan.estimate.saved + plan.merged
    train = plan.spec.train
    folders = train.keep_last
    if train.save_interval is None:
        folders = 0
    elif plan.steps is not None:
        made = plan.steps // train.save_interval
        folders = made if folders is None else min(made, folders)
    total = "" if folders is None else f"; {folders} step-* folders and final/: {gigabytes(folders * step + final)}"
    yield f"Disk         {gigabytes(step)} a step-* folder, {gigabytes(final)} final/{total}"

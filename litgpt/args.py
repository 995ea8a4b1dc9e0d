"""The argument groups of training commands (`--train.X`, `--eval.X`, `--log.X`), and how arguments are written down."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from litgpt.errors import LitGPTError, quoted

Quantization = Literal["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8", "int8", "int4"]
"""How weights can be kept in few bits to answer with."""
TrainedQuantization = Literal["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8-training"]
"""How frozen weights can be kept in few bits to train beside."""
SplitQuantization = Literal["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq"]
"""How the weights of a model on several devices can be kept in few bits."""

SECRETS = frozenset({"access_token", "api_key", "token", "password"})
"""Argument names whose values never reach a file, a log or the screen."""


def _at_least(values: object, group: str, minimum: float, *names: str) -> None:
    """Refuses fields (`names`) of `values` below `minimum`; `None` means unlimited and passes."""
    for name in names:
        value = getattr(values, name)
        if value is not None and value < minimum:
            raise LitGPTError(f"{group}.{name} must be at least {minimum:g}, not {value}.")


@dataclass
class TrainArgs:
    """How long, how fast and in what portions to train."""

    save_interval: int | None = 1000
    """Save a checkpoint every so many optimizer steps; null saves only at the end."""
    log_interval: int = 1
    """Log every so many optimizer steps."""
    global_batch_size: int = 64
    """Samples in one optimizer step, over all devices."""
    micro_batch_size: int = 4
    """Samples one device computes at a time."""
    lr_warmup_steps: int | None = 100
    """Optimizer steps over which the learning rate rises to the optimizer's."""
    lr_warmup_fraction: float | None = None
    """Share of one epoch, 0 to 1, over which the learning rate rises; needs `lr_warmup_steps` null."""
    epochs: int | None = None
    """Stop after so many passes over the training data."""
    max_tokens: int | None = None
    """Stop after so many tokens, over all devices."""
    max_steps: int | None = None
    """Stop after so many optimizer steps."""
    max_time: float | None = None
    """Stop after so many seconds."""
    max_seq_length: int | None = None
    """Tokens of a sample that are used at most; null takes the longest sample, or the model's context."""
    tie_embeddings: bool | None = None
    """Let the output head share the weights of the token embedding."""
    max_norm: float | None = None
    """Scale gradients down to this norm at most; null or 0 leaves them as they are."""
    min_lr: float = 6e-5
    """The learning rate that the schedule ends at."""
    packing: bool = True
    """Pack samples of different lengths without padding; false pads to the longest, with equal losses."""
    keep_last: int | None = None
    """Keep the newest so many `step-*` folders of this run and delete its older ones; null keeps all."""
    keep_best: bool = False
    """Keep the weights with the lowest validation loss so far in `best/`."""
    patience: int | None = None
    """Stop after so many validations in a row without a lower loss; null never stops early."""
    lr_schedule: Literal["cosine", "linear", "wsd", "constant"] = "cosine"
    """How the learning rate goes from the optimizer's down to `min_lr`: as half a cosine, evenly, evenly in the last
    part of the run (wsd), or not at all (constant)."""
    lr_decay_fraction: float | None = None
    """Share of the run, 0 to 1, in which wsd lowers the learning rate; null is 0.2."""
    decay_norms_and_biases: bool = False
    """Let weight decay act on norms, gates and biases too, not on matrices and embeddings alone."""
    optimizer_in_backward: bool = False
    """Step each parameter as soon as its gradient is made, and free the gradient; needs one micro-batch a step."""
    guard: float | None = None
    """Skip a step whose loss or gradient norm is not finite, or more than so many times the median of the last 100
    steps (10, say); 0 looks for what is not finite alone, null for nothing."""
    z_loss: float = 0.0
    """Add so many times the square of the logits' log-sum-exp to a token's training loss (1e-4, say)."""
    label_smoothing: float = 0.0
    """Share of the target, 0 to 1, that the training loss spreads evenly over the vocabulary."""
    dropout: float = 0.0
    """Share, 0 to 1, of embeddings, attention weights, and what attention and MLP add, that training leaves out by
    chance, as in GPT-2."""
    document_masks: bool = False
    """In pretraining, keep attention inside each document of a block; documents end at the tokenizer's end token, or
    begin at its start token."""
    activation_checkpointing: bool | int | Literal["off", "full"] = "off"
    """Compute activations again in the backward pass instead of keeping them: of every block (full), or of one in so
    many (2, say)."""
    activation_offload: bool = False
    """Keep activations in the host's memory between forward and backward pass (not on a CPU)."""
    compile: bool = False
    """Compile the blocks of the model by torch.compile; needs a C++ compiler on a CPU."""
    profile: int = 0
    """Trace so many optimizer steps, from the third on, by torch's profiler: `profile.json` and a table in
    `profile.txt`."""

    def __post_init__(self) -> None:
        if self.lr_warmup_fraction is not None:
            if self.lr_warmup_fraction and self.lr_warmup_steps:
                raise LitGPTError(
                    "train.lr_warmup_fraction and train.lr_warmup_steps exclude each other: set one of them to null."
                )
            if not 0 <= self.lr_warmup_fraction <= 1:
                raise LitGPTError(f"train.lr_warmup_fraction must lie between 0 and 1, not {self.lr_warmup_fraction}.")
        self._check_options()
        counts = ("save_interval", "log_interval", "global_batch_size", "micro_batch_size", "max_seq_length")
        _at_least(self, "train", 1, *counts, "keep_last", "patience")
        _at_least(
            self, "train", 0, "lr_warmup_steps", "epochs", "max_tokens", "max_steps", "max_time", "max_norm", "min_lr"
        )

    def _check_options(self) -> None:
        _at_least(self, "train", 0, "guard", "z_loss", "profile")
        for name in ("lr_decay_fraction", "label_smoothing", "dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise LitGPTError(f"train.{name} must lie between 0 and 1, not {value}.")
        if self.lr_decay_fraction is not None and self.lr_schedule != "wsd":
            raise LitGPTError(
                f"train.lr_decay_fraction is for --train.lr_schedule wsd, and this one is {self.lr_schedule}."
            )
        every = self.activation_checkpointing
        if isinstance(every, bool):  # what YAML makes of on and off
            self.activation_checkpointing = "full" if every else "off"
        elif every not in ("off", "full") and (isinstance(every, str) or every < 1):
            raise LitGPTError(f"train.activation_checkpointing must be off, full or a number above 0, not {every}.")

    @property
    def checkpointed_every(self) -> int:
        """One in so many blocks is checkpointed; 0: none."""
        every = self.activation_checkpointing
        return {"off": 0, "full": 1}[every] if isinstance(every, str) else int(every)

    def batch_size(self, devices: int, num_nodes: int = 1) -> int:
        """Samples of one optimizer step that each device gets.

        Raises:
            LitGPTError: There are more devices than samples in a step.
        """
        size = self.global_batch_size // (devices * num_nodes)
        if size < 1:
            raise LitGPTError(
                f"train.global_batch_size {self.global_batch_size} is less than the {devices * num_nodes} devices: "
                "every device needs a sample in each step."
            )
        return size

    def gradient_accumulation_iters(self, devices: int, num_nodes: int = 1) -> int:
        """Micro-batches in one optimizer step of a device, at `micro_batch_size` samples each.

        Raises:
            LitGPTError: A micro-batch holds more samples than a device gets in a step.
        """
        size = self.batch_size(devices, num_nodes)
        if size < self.micro_batch_size:
            raise LitGPTError(
                f"train.micro_batch_size {self.micro_batch_size} is more than the {size} samples that a device gets of "
                f"train.global_batch_size {self.global_batch_size}: lower it to {size} at most."
            )
        return size // self.micro_batch_size

    def warmup_iters(self, devices: int, num_nodes: int, max_iters: int, train_dataloader: Sized) -> int:
        """Micro-batches of learning-rate warm-up: by fraction of an epoch of `train_dataloader`, or by steps."""
        if self.lr_warmup_fraction:
            return min(max_iters, math.ceil(self.lr_warmup_fraction * len(train_dataloader)))
        if self.lr_warmup_steps:
            return min(max_iters, self.lr_warmup_steps * self.gradient_accumulation_iters(devices, num_nodes))
        return 0


LITGPTS_TRAIN = [field.name for field in dataclasses.fields(TrainArgs)].index("min_lr") + 1
"""So many of its fields, the first ones, are LitGPT's too."""


@dataclass
class EvalArgs:
    """When and on how much to validate."""

    interval: int = 600
    """Validate every so many optimizer steps."""
    max_new_tokens: int | None = None
    """Tokens of the example that is generated at each validation."""
    max_iters: int = 100
    """Micro-batches of one validation during training."""
    initial_validation: bool = False
    """Validate before the first step; in finetuning on the whole validation set."""
    final_validation: bool = True
    """Validate after the last step; in finetuning on the whole validation set."""
    evaluate_example: str | int = "first"
    """Which validation sample the generated example starts from: first, random, or its index."""
    tasks: str | None = None
    """Tasks to run at each validation, between commas: perplexity:FILE, choice:FILE or match:FILE, as `litgpt evaluate`
    has them."""
    tasks_limit: int | None = 100
    """Samples of each of these tasks; null is all."""

    def __post_init__(self) -> None:
        _at_least(self, "eval", 1, "interval", "tasks_limit")
        _at_least(self, "eval", 0, "max_iters", "max_new_tokens")
        if isinstance(self.evaluate_example, str) and self.evaluate_example.isdigit():
            self.evaluate_example = int(self.evaluate_example)
        known = isinstance(self.evaluate_example, int) or self.evaluate_example in ("first", "random")
        if not known:
            raise LitGPTError(
                f"eval.evaluate_example must be first, random or the index of a sample, not "
                f"{quoted(self.evaluate_example)}."
            )


LITGPTS_EVAL = [field.name for field in dataclasses.fields(EvalArgs)].index("evaluate_example") + 1


@dataclass
class LogArgs:
    """Names and choices handed to the experiment logger."""

    project: str | None = None
    """Project (Weights & Biases)."""
    run: str | None = None
    """Name of the run (Weights & Biases)."""
    group: str | None = None
    """Group of runs (Weights & Biases)."""
    teamspace: str | None = None
    """Teamspace that the run belongs to (LitLogger)."""
    metadata: dict | None = None  # type: ignore[type-arg]
    """Further names and values stored with the run (LitLogger)."""
    log_model: bool = False
    """Upload the checkpoints (LitLogger)."""
    save_logs: bool = True
    """Upload what the run prints (LitLogger)."""
    checkpoint_name: str | None = None
    """Name under which checkpoints are uploaded (LitLogger)."""


def inherits(
    base: Callable[..., Any], last: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the parameters of `base`, with their types, defaults and meanings, besides its own.

    The command takes them by `**inherited`. Parameters that both have stand where `base` has them, in the command's
    order and with its defaults and meanings; one that only the command has follows the parameter it is declared after.

    Args:
        base: Another command, or a dataclass of options; its docstring says in `Args:` what each parameter means.
        last: Parameters that are to stand behind all others, so that each has the position that it has in LitGPT.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        theirs = inspect.signature(base).parameters
        own = {n: p for n, p in inspect.signature(command).parameters.items() if p.kind is not p.VAR_KEYWORD}
        names = sorted(_merged([*own], [*theirs]), key=lambda name: name in last)
        hints = typing.get_type_hints(base) | typing.get_type_hints(command)
        meanings = _meanings(base) | _meanings(command)
        signature = inspect.Signature(
            [(own.get(name) or theirs[name]).replace(annotation=hints[name]) for name in names],
            return_annotation=inspect.signature(command).return_annotation,
        )

        @functools.wraps(command)
        def main(*args: Any, **flags: Any) -> None:
            given = signature.bind(*args, **flags)
            given.apply_defaults()
            command(**given.arguments)

        main.__signature__ = signature  # type: ignore[attr-defined]
        main.__annotations__ = {name: hints[name] for name in names}
        description, _, rest = inspect.cleandoc(command.__doc__ or "").partition("Args:\n")
        behind = "\n" + rest.partition("\n\n")[2] if "\n\n" in rest else ""  # `Example:` and the like
        main.__doc__ = description.rstrip() + "\n\nArgs:\n" + "".join(meanings[name] for name in names) + behind
        return main

    return decorate


def arguments_of(command: Callable[..., None], given: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a command that `inherits` some, in the order of its signature, from its `locals()`."""
    given = {**given, **given["inherited"]}
    return {name: given[name] for name in inspect.signature(command).parameters}


def _merged(own: list[str], theirs: list[str]) -> list[str]:
    """Their names in their order, those in both in the order of `own`, and each name that is not theirs behind the one
    it stands behind in `own`."""
    shared = iter([name for name in own if name in theirs])
    merged = [next(shared) if name in own else name for name in theirs]
    for before, name in zip(["", *own], own, strict=False):
        if name not in merged:
            merged.insert(merged.index(before) + 1 if before else 0, name)
    return merged


def _meanings(documented: Any) -> dict[str, str]:
    """The entries of a docstring's `Args:` by name, each as it stands there."""
    section = inspect.cleandoc(documented.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^(    (\w+):.*\n?(?: {8}.*\n?)*)", section, re.MULTILINE)
    return {name: entry.rstrip("\n") + "\n" for entry, name in entries}


def hyperparameters(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A command's arguments as the plain values that `hyperparameters.yaml` holds.

    Groups become dictionaries, paths strings, and an object chosen among several classes (a data module) its
    `class_path` and `init_args`, so that the result is a valid `--config`. Nulls and secrets are left out.
    """
    return {
        name: plain(value)
        for name, value in arguments.items()
        if value is not None and name not in SECRETS and not name.startswith("_")
    }


LITGPT_LACKS = {"resume": False, "resize_vocab": False, "loss": "cross_entropy", "strategy": "auto"}
"""Arguments of training commands that LitGPT's may lack, with their defaults."""


def portable(settings: Mapping[str, Any], data: object) -> dict[str, Any]:
    """What `hyperparameters` returns, for `hyperparameters.yaml`: what LitGPT doesn't know is left out where it has its
    default, so that LitGPT's `--config` takes the rest; nulls of groups, which a command may have other defaults for,
    are there.

    Args:
        settings: What `hyperparameters` returned.
        data: The data module, if it was given.
    """
    missing = object()
    kept = {name: value for name, value in settings.items() if value != LITGPT_LACKS.get(name, missing)}
    for group, kind, ours in (("train", TrainArgs, LITGPTS_TRAIN), ("eval", EvalArgs, LITGPTS_EVAL)):
        given = kept.get(group, {})
        kept[group] = {
            field.name: given.get(field.name)
            for at, field in enumerate(dataclasses.fields(kind))
            if at < ours or given.get(field.name) != field.default
        }
    if isinstance(kept.get("data"), dict):
        defaults = {p.name: plain(p.default) for p in inspect.signature(type(data)).parameters.values()}
        init_args = kept["data"].get("init_args", {})
        same = [name for name, value in init_args.items() if value == defaults.get(name, missing)]
        kept["data"] = {**kept["data"], "init_args": {n: v for n, v in init_args.items() if n not in same}}
    return kept


def plain(value: Any) -> Any:
    """`value` in the types of YAML; see `hyperparameters`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return hyperparameters({str(name): entry for name, entry in value.items()})
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry) for entry in value]
    if not isinstance(value, type) and all(map(dataclasses.is_dataclass, type(value).__mro__[:-1])):
        return hyperparameters({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    if isinstance(value, type) or callable(value):
        return import_path(value)
    names = inspect.signature(type(value)).parameters
    init_args = hyperparameters({name: getattr(value, name) for name in names if hasattr(value, name)})
    return {"class_path": import_path(type(value)), **({"init_args": init_args} if init_args else {})}


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """What `hyperparameters` returns, by flag: `train.max_steps`, `data.json_path`; a class that was chosen is the
    value of the flag that chooses it, `data`."""
    flags: dict[str, Any] = {}
    for name, value in settings.items():
        flag = above if name in ("class_path", "init_args") else f"{above}.{name}" if above else name
        flags.update(flat(value, flag) if isinstance(value, Mapping) else {flag: value})
    return flags


PLAIN_CLASS = "_plain_class"
"""Attribute of a class that was made of another one while the program runs: the other one."""


def plain_class(cls: Any) -> Any:
    """A class as it can be imported."""
    return getattr(cls, PLAIN_CLASS, cls)


def import_path(thing: Any) -> str:
    """The shortest dotted path that a class or function can be imported from, such as `litgpt.data.JSON`."""
    thing = plain_class(thing)
    parts = thing.__module__.split(".")
    name: str = thing.__qualname__
    for end in range(1, len(parts) + 1):
        module = ".".join(parts[:end])
        if getattr(sys.modules.get(module), name, None) is thing:
            return f"{module}.{name}"
    return f"{thing.__module__}.{name}"

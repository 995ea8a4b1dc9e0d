"""LitGPT's small functions that training loops and scripts of its users import, by its names and parameters.

Nothing of LitGPT's own commands stands on this module; new code takes what it refers to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from litgpt.checkpoint.hub import auto_download
from litgpt.checkpoint.layout import copy_config_files as copy_config_files
from litgpt.checkpoint.layout import find_checkpoint
from litgpt.checkpoint.reader import load_pth
from litgpt.config import Config
from litgpt.config import find_multiple as find_multiple
from litgpt.errors import LitGPTError, MissingFileError, quoted
from litgpt.hub_client import CHECKPOINTS
from litgpt.model import GPT
from litgpt.peft.method import parameter_counts
from litgpt.runtime import default_precision, output_dir
from litgpt.scripts.validate import CheckpointValidationResult as CheckpointValidationResult
from litgpt.scripts.validate import estimate_model_memory as estimate_model_memory
from litgpt.scripts.validate import validate_checkpoint as validate_checkpoint
from litgpt.training.optim.optimizers import find_class

init_out_dir = output_dir
"""LitGPT's name for it."""


def num_parameters(module: nn.Module, requires_grad: bool | None = None) -> int:
    """How many numbers a module's parameters hold; `requires_grad`: of those that train, or that don't, only."""
    trained, frozen = parameter_counts(module, lambda name: module.get_parameter(name).requires_grad)
    return trained + frozen if requires_grad is None else trained if requires_grad else frozen


def reset_parameters(module: nn.Module) -> None:
    """Calls `reset_parameters` of every part that has one."""
    for part in module.modules():
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()


def chunked_cross_entropy(
    logits: Tensor | Sequence[Tensor], targets: Tensor, chunk_size: int = 128, ignore_index: int = -100
) -> Tensor:
    """The mean cross-entropy over the targets that count, 0 where there are none.

    Args:
        logits: `(B, T, V)`, or pieces of them along T.
        targets: `(B, T)`.
        chunk_size: Targets whose softmax is in memory at a time; 0: all, or each of the pieces.
        ignore_index: The target that doesn't count.
    """
    pieces = [logits] if isinstance(logits, Tensor) else list(logits)
    ends = targets.split([piece.size(-2) for piece in pieces], dim=-1)
    total = torch.zeros((), device=pieces[0].device)
    for piece, wanted in zip(pieces, ends, strict=True):
        rows, own = piece.reshape(-1, piece.size(-1)), wanted.reshape(-1)
        size = chunk_size if chunk_size and len(pieces) == 1 else max(1, len(own))
        for part, right in zip(rows.split(size), own.split(size), strict=True):
            total = total + F.cross_entropy(part.float(), right.long(), ignore_index=ignore_index, reduction="sum")
    return (total / (targets != ignore_index).sum().clamp(min=1)).to(pieces[0].dtype)


def estimate_flops(model: GPT, training: bool) -> int:
    """Operations on a sequence of `max_seq_length` tokens, forward and (training) backward, as LitGPT counts them: two
    a parameter and token, and attention's; a step costs three times as much where weights train, twice where not."""

    def of(requires_grad: bool) -> int:
        length, config = model.max_seq_length, model.config
        attention = 4 * config.n_layer * config.n_embd * length**2
        return 2 * num_parameters(model, requires_grad) * length + attention

    return (3 if training else 1) * of(True) + (2 if training else 1) * of(False)


class CycleIterator:
    """Goes through an iterable again and again; `epoch` counts how often it has come to its end."""

    def __init__(self, iterable: Iterable[Any]) -> None:
        self.iterable = iterable
        self.epoch = 0
        self._iterator: Iterator[Any] | None = None

    def __next__(self) -> Any:
        if self._iterator is None:
            self._iterator = iter(self.iterable)
        try:
            return next(self._iterator)
        except StopIteration:
            self.epoch += 1
            self._iterator = iter(self.iterable)
            return next(self._iterator)

    def __iter__(self) -> Self:
        return self


def get_default_supported_precision(training: bool) -> str:
    """The precision that a command takes unless told: 16 bits where the device has them."""
    return default_precision(training)


def parse_devices(devices: str | int) -> int:
    """A number of devices; `auto` and -1: all GPUs, or the CPU.

    Raises:
        LitGPTError: It is neither `auto` nor a positive number.
    """
    if devices in (-1, "auto"):
        return torch.cuda.device_count() or 1
    if isinstance(devices, int) and devices > 0:
        return devices
    raise LitGPTError(f"devices is {quoted(devices)}; it is auto or a positive number.")


def save_config(config: Config, checkpoint_dir: Path) -> None:
    """Writes `model_config.yaml`."""
    config.save(checkpoint_dir)


def extend_checkpoint_dir(checkpoint_dir: Path) -> Path:
    """A folder as it is written, or the one of that name in `checkpoints/` if only that is there."""
    folder = CHECKPOINTS / checkpoint_dir
    return folder if folder.is_dir() and not checkpoint_dir.is_dir() else checkpoint_dir


def auto_download_checkpoint(
    model_name: str | Path, access_token: str | None = None, ignore_tokenizer_files: bool = False
) -> Path:
    """The folder of a model, downloaded if it isn't there.

    Raises:
        LitGPTError: There is no such folder or repository; or, unless `ignore_tokenizer_files`, it has no tokenizer.
    """
    folder = auto_download(model_name, access_token)
    check_valid_checkpoint_dir(folder, ignore_tokenizer_files=ignore_tokenizer_files)
    return folder


def check_valid_checkpoint_dir(
    checkpoint_dir: Path,
    model_filename: str = "lit_model.pth",
    verbose: bool = True,
    raise_error: bool = False,
    ignore_tokenizer_files: bool = False,
) -> None:
    """Raises a LitGPTError, which is a FileNotFoundError too, where a checkpoint folder isn't complete.

    LitGPT prints and ends the process unless `raise_error`; here it is raised in any case, and `main` prints it.
    """
    folder = Path(checkpoint_dir)
    if model_filename == "lit_model.pth":
        find_checkpoint(folder)  # another format of weights does as well
    elif not (folder / model_filename).is_file():
        raise MissingFileError(f"{folder} has no {model_filename}.")
    tokenizers = ("tokenizer.json", "tokenizer.model", "vocab.json")
    if not ignore_tokenizer_files and not any((folder / name).is_file() for name in tokenizers):
        raise MissingFileError(f"{folder} has no tokenizer; `litgpt download ORG/NAME --tokenizer_only true` gets one.")


def lazy_load(filename: str | Path) -> dict[str, Any]:
    """The tensors of a `.pth` file, memory-mapped."""
    return {**load_pth(filename)}


def load_checkpoint(fabric: Any, model: nn.Module, checkpoint_path: Path, strict: bool = True) -> None:
    """Loads a `.pth` file into a model, set up by Fabric or not."""
    getattr(model, "module", model).load_state_dict(load_pth(checkpoint_path), strict=strict)


def instantiate_torch_optimizer(
    optimizer: str | dict[str, Any], model_parameters: Iterable[Any], **kwargs: Any
) -> Optimizer:
    """An optimizer by its name, or by `{class_path, init_args}`; `kwargs` that its class doesn't have are left out.

    Raises:
        LitGPTError: There is no such class.
    """
    import inspect

    spec: dict[str, Any] = {"class_path": optimizer} if isinstance(optimizer, str) else optimizer
    if "class_path" not in spec:
        raise LitGPTError(f"optimizer is {quoted(optimizer)}; it is a name, or a table with class_path and init_args.")
    make: Callable[..., Optimizer] = find_class(spec["class_path"])
    known = inspect.signature(make).parameters
    given = {name: value for name, value in kwargs.items() if name in known}
    return make(model_parameters, **{**(spec.get("init_args") or {}), **given})

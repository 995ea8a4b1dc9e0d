"""What a run needs to go on exactly where it stopped: weights, optimizer, counters, what validations found.

The weights stand in the folder's own weights file, everything else in `training_state.pt` beside it. The order of the
samples and all random numbers follow from seed and counters, so neither needs to be stored.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from litgpt.checkpoint.reader import load_pth
from litgpt.errors import LitGPTError
from litgpt.peft import load_owned
from litgpt.training.schedule import Counters
from litgpt.training.validation import Validations

if TYPE_CHECKING:
    from litgpt.training.keeping import Identity
    from litgpt.training.loop import Run

STATE_FILE = "training_state.pt"
UNREADABLE = (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError, UnpicklingError)
"""What `torch.load` raises for a file that is cut off or something else."""


@dataclass(frozen=True)
class Header:
    """Whose a saved state is, and since when."""

    run_name: str
    """Of the run that wrote it, resumptions included; see `keeping.Identity`."""
    log: str
    """The folder of the run's metrics below `logs/csv`, `version_0` for instance."""
    written: float
    """Seconds since 1970."""


def read_header(folder: Path) -> Header | None:
    """What the state in a `step-*` folder says of itself; None: it can't be read. Tensors are not read."""
    try:
        path = folder / STATE_FILE
        header = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("header")
        if header is None:  # written before there were any
            return Header("", "", path.stat().st_mtime)
        return Header(str(header["run_name"]), str(header["log"]), float(header["written"]))
    except UNREADABLE:
        return None


def resume_point(resume: bool | str | Path, out_dir: Path) -> Path | None:
    """The folder that `--resume` means; None: start from the beginning.

    Args:
        resume: False: none. True: the `step-*` folder of `out_dir` that was written last. `auto`: the same, if there
            is one. Else a path: a `step-*` folder, a file in it, or a folder of such folders.
        out_dir: Of the run.

    Raises:
        LitGPTError: Nothing to resume from is there.
    """
    if resume is False or str(resume).lower() == "false":
        return None
    word = str(resume).lower()
    if resume is True or word in ("true", "auto"):
        newest = _newest_step(out_dir)
        if newest is None and word != "auto":
            raise LitGPTError(
                f"There is nothing to resume from in {out_dir}: it has no step-* folder with a {STATE_FILE}; "
                "leave --resume out, or use --resume auto."
            )
        return newest
    path = Path(resume)
    folder = path.parent if path.is_file() else path
    if (folder / STATE_FILE).is_file():
        return folder
    newest = _newest_step(folder)
    if newest is None:
        why = (
            f"has no {STATE_FILE}; to start from its weights use --initial_checkpoint_dir"
            if folder.is_dir()
            else "does not exist"
        )
        raise LitGPTError(f"Cannot resume from {path}: it {why}.")
    return newest


def _newest_step(folder: Path) -> Path | None:
    """The folder written last: an earlier run may have left steps with higher numbers. One whose state can't be read
    counts as the newest: going on from an older one instead must be the user's choice."""
    steps = [
        (header.written if (header := read_header(path)) else math.inf, int(match[1]), path)
        for path in folder.glob("step-*")
        if (match := re.fullmatch(r"step-(\d+)", path.name)) and (path / STATE_FILE).is_file()
    ]
    return max(steps)[2] if steps else None


@dataclass
class Progress:
    """All of a run's own state besides weights and optimizer."""

    counters: Counters
    validations: Validations
    identity: Identity
    log: str = ""
    """See `Header`."""


def save_state(folder: Path, run: Run, optimizer: Optimizer, progress: Progress) -> None:
    """Writes `training_state.pt` into a folder that has the weights already."""
    header = {"run_name": progress.identity.name, "log": progress.log, "written": time.time()}
    state = {
        "header": header,
        "counters": asdict(progress.counters),
        "validations": asdict(progress.validations),
        "run": _fingerprint(run),
        "optimizer": optimizer.state_dict(),
        "precision": run.fabric.strategy.precision.state_dict(),
    }
    torch.save(state, folder / STATE_FILE)


def load_weights(run: Run, folder: Path) -> None:
    """Puts the saved weights of what trains into the model.

    Raises:
        LitGPTError: The file is damaged or of another model.
    """
    path = folder / run.weights_file
    load_owned(run.model, run.owns, load_pth(path), str(path))


def load_state(run: Run, folder: Path, optimizer: Optimizer, progress: Progress) -> None:
    """Restores the optimizer and `progress`.

    Raises:
        LitGPTError: The state is damaged, or of a run that differs in what decides the order of samples or in what
            trains.
    """
    path = folder / STATE_FILE
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        counters, was = Counters(**state["counters"]), state["run"]
        validations = Validations(**state.get("validations", {"step": counters.step}))
        header = state.get("header")
    except UNREADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise LitGPTError(f"{path} is damaged ({reason}); resume from an earlier step.") from None
    for setting, now in _fingerprint(run).items():
        if was.get(setting) != now:
            raise LitGPTError(
                f"Cannot resume from {folder}: its run had {setting} = {was.get(setting)}, this one has {now}; "
                "it would be another run."
            )
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:
        raise LitGPTError(f"Cannot resume from {folder}: its optimizer is another one ({error}).") from None
    for group, asked in zip(optimizer.param_groups, settings, strict=True):
        group.update(asked)  # a weight decay, say, that the user has changed since
    run.fabric.strategy.precision.load_state_dict(state["precision"])
    progress.counters, progress.validations = counters, validations
    if header is not None:
        progress.identity.name, progress.log = header["run_name"], header["log"]


def _fingerprint(run: Run) -> dict[str, Any]:
    """What must not change between a run and its resumption."""
    optimizer = run.optimizer if isinstance(run.optimizer, str) else run.optimizer.get("class_path")
    return {
        "seed": run.seed,
        "train.global_batch_size": run.train.global_batch_size,
        "training samples": len(run.train_dataset),
        "optimizer": optimizer,
    }

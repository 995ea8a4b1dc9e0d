"""What a run needs to go on exactly where it stopped: weights, optimizer, counters, what validations found.

The weights stand in the folder's own weights file, everything else in `training_state.pt` beside it. The order of the
samples and all random numbers follow from seed and counters, so neither needs to be stored.
"""

from __future__ import annotations

import math
import pickletools
import re
import time
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

import torch
from torch.optim import Optimizer

from litgpt.args import flat
from litgpt.checkpoint.atomic import atomic_file
from litgpt.checkpoint.fingerprint import check_base
from litgpt.checkpoint.layout import LIT_MODEL
from litgpt.checkpoint.reader import load_pickle, load_pth
from litgpt.data.storage.fingerprint import data_fingerprint
from litgpt.errors import LitGPTError, MissingFileError, one_line, quoted
from litgpt.hub_client import relative_name
from litgpt.peft import load_owned
from litgpt.reading import reading
from litgpt.training.metrics.validation import Validations
from litgpt.training.schedule import Counters
from litgpt.training.sharded import read_optimizer

if TYPE_CHECKING:
    from litgpt.training.run import Identity, Run

STATE_FILE, STATE = "training_state.pt", "no saved state of a run"
ELSEWHERE = frozenset({"out_dir", "resume", "devices", "num_nodes", "strategy", "log", "logger_name"})
"""Settings that the model doesn't depend on."""


@dataclass(frozen=True)
class Header:
    """Which run a saved state is of, and when it was written."""

    run_name: str
    """Of the run that wrote it, resumptions included; see `run.Identity`."""
    log: str
    """The folder of the run's metrics below `logs/csv`, `version_0` for instance."""
    written: float
    """Seconds since 1970."""


def read_header(folder: Path) -> Header | None:
    """What the state in a `step-*` folder says of itself; None: it can't be read. Tensors are not read."""
    try:
        path = folder / STATE_FILE
        with reading(path, STATE):
            return _header(load_pickle(path, mmap=True), path)
    except LitGPTError:
        return None


def _header(content: dict[str, Any], path: Path) -> Header:
    """Of a loaded state; one that was written before there were headers is of no known run."""
    header = content.get("header") or {"run_name": "", "log": "", "written": path.stat().st_mtime}
    log = header["log"] and relative_name(header["log"], str(path))
    return Header(str(header["run_name"]), str(log), float(header["written"]))


def resume_point(resume: bool | str | Path, out_dir: Path) -> Path | None:
    """The folder that `--resume` means; None: start from the beginning.

    Args:
        resume: False: none. True: the `step-*` folder of `out_dir` that was written last. `auto`: the same, if there
            is one. Else a path: a `step-*` folder, a file in it, or a folder of such folders.
        out_dir: Of the run.

    Raises:
        LitGPTError: Nothing to resume from is there, or something that no run of ours left.
    """
    if resume is False or str(resume).lower() == "false":
        return None
    word = str(resume).lower()
    if resume is True or word in ("true", "auto"):
        newest = _newest_step(out_dir)
        if newest is None and word != "auto":
            raise MissingFileError(
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
        raise MissingFileError(f"Cannot resume from {path}: {_not_resumable(folder)}.")
    return newest


def _newest_step(folder: Path) -> Path | None:
    """The folder written last: an earlier run may have left steps with higher numbers. One whose state can't be read
    counts as the newest: going on from an older one instead must be the user's choice.

    Raises:
        LitGPTError: One holds something else, which a run from the start, or from an earlier step, would overwrite.
    """
    steps = []
    for path in sorted(folder.glob("step-*")):
        match = re.fullmatch(r"step-(\d+)", path.name)
        if match is None or not path.is_dir() or not any(path.iterdir()):
            continue
        if not (path / STATE_FILE).is_file():
            raise LitGPTError(
                f"Cannot resume in {folder}: {_not_resumable(path)}; or move {path.name} away, or name the folder to "
                "go on from in --resume."
            )
        steps.append((header.written if (header := read_header(path)) else math.inf, int(match[1]), path))
    return max(steps)[2] if steps else None


def _not_resumable(folder: Path) -> str:
    """Why a run can't go on from what isn't a folder with a state of ours, and what can be done with it."""
    if not folder.is_dir():
        return f"{folder} does not exist"
    anew = "to start anew from its weights, give it as the checkpoint folder (--initial_checkpoint_dir in pretraining)"
    if _is_of_litgpt(folder / LIT_MODEL):
        return f"{folder} is LitGPT's own, whose order of samples and learning rates this run can't go on with; {anew}"
    return f"{folder} has no {STATE_FILE}, by which a run goes on; {anew}"


def _is_of_litgpt(file: Path) -> bool:
    """Whether a file has a training state in it, as LitGPT writes it; only names are read, and no code is run."""
    try:
        with zipfile.ZipFile(file) as archive:
            pickled = next(entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl"))
            names = {value for _, value, _ in pickletools.genops(archive.read(pickled)) if isinstance(value, str)}
            return {"model", "optimizer", "step_count"} <= names
    except (OSError, StopIteration, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error):
        return False


@dataclass
class TrainingState:
    """All of a run's own state besides weights and optimizer."""

    counters: Counters
    validations: Validations
    identity: Identity
    log: str = ""
    """See `Header`."""


DATA = "content of the training data"
"""In what must not change, since it is kept: a hash."""


@dataclass(frozen=True)
class SavedState:
    """What a `training_state.pt` holds, its tensors in memory."""

    folder: Path
    header: Header
    counters: Counters
    validations: Validations
    fingerprint: dict[str, Any]
    """What must not change between a run and its resumption."""
    settings: dict[str, Any] | None
    """All arguments of the command, see `args.flat`; None: written before they were kept."""
    optimizer: dict[str, Any]
    precision: dict[str, Any]

    @classmethod
    def read(cls, folder: Path, mmap: bool = False) -> SavedState:
        """Of a `step-*` folder; its tensors memory-mapped where a rank needs parts of them alone.

        Raises:
            LitGPTError: It is damaged.
        """
        path = folder / STATE_FILE
        with reading(path, STATE, "resume from an earlier step"):
            content = load_pickle(path, mmap)
            counters = numbers(Counters, content["counters"])
            return cls(
                folder,
                _header(content, path),
                counters,
                numbers(Validations, content.get("validations", {"step": counters.step})),
                dict(content["run"]),
                None if content.get("settings") is None else dict(content["settings"]),
                dict(content["optimizer"]),
                {name: float(value) for name, value in content["precision"].items()},
            )

    def changes(self, run: Run) -> str:
        """Describes the settings that differ in `run`; empty: none.

        Raises:
            LitGPTError: One of those that must not change has.
        """
        fingerprint = _fingerprint(run) if self.settings is None else {**_fingerprint(run), **run.fixed}
        fingerprint = {name: now for name, now in fingerprint.items() if name != DATA or DATA in self.fingerprint}
        for name, before, now in _differences(self.fingerprint, fingerprint):
            raise LitGPTError(
                f"Cannot resume from {self.folder}: its run had {name} = {before}, this one has {now}; "
                "it would be another run."
            )
        if self.settings is None:
            return ""
        changed = [
            f"{name} {now} (was {before})"
            for name, before, now in _differences(self.settings, flat(run.settings))
            if name.partition(".")[0] not in ELSEWHERE
        ]
        return f"Other settings than before: {', '.join(changed)}." if changed else ""


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Names with two values, both as YAML has them; what is absent is null."""
    for name in dict.fromkeys((*before, *now)):
        if before.get(name) != now.get(name):
            yield name, _written(before.get(name)), _written(now.get(name))


def _written(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def save_state(folder: Path, run: Run, optimizer: dict[str, Any], state: TrainingState) -> None:
    """Writes `training_state.pt`, with the optimizer's state or what of it isn't in files of its own, into a folder
    that has the weights already."""
    content = {
        "header": asdict(Header(state.identity.name, state.log, time.time())),
        "counters": asdict(state.counters),
        "validations": asdict(state.validations),
        "run": {**_fingerprint(run), **run.fixed},
        "settings": flat(run.settings),
        "optimizer": optimizer,
        "precision": run.fabric.strategy.precision.state_dict(),
    }
    with atomic_file(folder / STATE_FILE) as temporary, temporary.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch closes its archive all the same, and complains of that
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def load_weights(run: Run, folder: Path) -> None:
    """Puts the saved weights of what trains into the model.

    Raises:
        LitGPTError: The file is damaged or of another model, or was learned on other weights.
    """
    path = folder / run.weights_file
    if run.base is not None:
        check_base(path, *run.base)
    load_owned(run.model, run.owns, load_pth(path), str(path))


def load_state(run: Run, saved: SavedState, optimizer: Optimizer, state: TrainingState) -> None:
    """Restores the optimizer and `state`.

    Raises:
        LitGPTError: Other parameters train than did before.
    """
    settings = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    try:
        check_optimizer_state(optimizer, saved.optimizer)
        found = read_optimizer(saved.folder, saved.optimizer, optimizer)
        check_optimizer_state(optimizer, found)
        optimizer.load_state_dict(found)
    except LitGPTError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise LitGPTError(
            f"Cannot resume from {saved.folder}: its optimizer is another one ({one_line(error)})."
        ) from None
    for group, asked in zip(optimizer.param_groups, settings, strict=True):
        group.update(asked)  # a weight decay, say, that the user has changed since
    run.fabric.strategy.precision.load_state_dict(saved.precision)
    state.counters, state.validations = saved.counters, saved.validations
    if saved.header.run_name:
        state.identity.name, state.log = saved.header.run_name, saved.header.log


Numbers = TypeVar("Numbers")


def numbers(kind: type[Numbers], values: dict[str, Any]) -> Numbers:
    """A dataclass of numbers from what a file holds.

    Raises:
        ValueError: A name it doesn't have, or a value that is no such number.
    """
    hints = get_type_hints(kind)
    for name, value in values.items():
        is_list = hints[name] == list[float]
        allowed = (float,) if is_list else get_args(hints[name]) or (hints[name],)
        fits = (int, *allowed)
        if isinstance(value, list) != is_list or not all(
            isinstance(one, fits) and not isinstance(one, bool) for one in (value if is_list else [value])
        ):
            raise ValueError(f"{name} is {quoted(value)}")
    return kind(**values)


FACTORED = {"row_var": (-1, 1), "col_var": (-2, 1)}
"""Adafactor's state: the dimension over which a moment is averaged, and the size that is left of it."""
QUANTIZED = frozenset({"qmap1", "qmap2", "absmax1", "absmax2", "unorm_vec"})
"""The tables of bitsandbytes' 8-bit optimizers, which check their sizes themselves."""
NESTED = "__bnb_optimizer_quant_state__"
"""Where bitsandbytes puts the parts that must keep their dtype when it saves."""


def check_optimizer_state(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Holds every tensor of a saved optimizer to the parameter that it is of: fused steps read and write as far as the
    parameter reaches, whatever there is.

    Raises:
        ValueError: Another number of parameters, another shape or kind of numbers, or a part that is missing.
    """
    places = [(at, parameter) for at, group in enumerate(optimizer.param_groups) for parameter in group["params"]]
    states = saved["state"]
    if not set(states) <= set(range(len(places))):
        raise ValueError(f"it has a state for parameters beyond the {len(places)} that train")
    parts: dict[tuple[int, int], set[str]] = {}
    for number, saved_state in states.items():
        state = dict(saved_state)
        state.update(state.pop(NESTED, {}))
        group, parameter = places[number]
        alike = parts.setdefault((group, parameter.dim()), set(state))
        if set(state) != alike:
            raise ValueError(f"parameter {number} has {sorted(state)} and others of its kind have {sorted(alike)}")
        for part, value in state.items():
            check_optimizer_tensor(part, value, parameter.shape)


def check_optimizer_tensor(part: str, value: Any, shape: torch.Size) -> None:
    """Raises a ValueError if `value` can't be that part of the state of a parameter of that shape."""
    if not isinstance(value, torch.Tensor):
        if not (value is None or isinstance(value, int | float)):
            raise ValueError(f"{part} is {quoted(value)}")
        return
    if part in FACTORED:
        dim, size = FACTORED[part]
        shape = torch.Size(size if at == len(shape) + dim else n for at, n in enumerate(shape))
    is_free = part in QUANTIZED or value.dim() == 0 or (part == "step" and value.numel() == 1)
    if value.layout != torch.strided or value.is_complex() or not (is_free or value.shape == shape):
        raise ValueError(f"{part} is {tuple(value.shape)}, not {tuple(shape)}")


def _fingerprint(run: Run) -> dict[str, Any]:
    """What must not change: it decides what trains, on what, and in which order."""
    optimizer = run.optimizer if isinstance(run.optimizer, str) else run.optimizer.get("class_path")
    return {
        "seed": run.seed,
        "train.global_batch_size": run.train.global_batch_size,
        "training samples": len(run.train_dataset),
        DATA: data_fingerprint(run.train_dataset),
        "optimizer": optimizer,
    }

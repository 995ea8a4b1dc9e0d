"""`litgpt list`, `show` and `rm`: the models on this machine, what they are, and what they were trained on."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from litgpt.checkpoint.atomic import gigabytes
from litgpt.checkpoint.layout import (
    HYPERPARAMETERS,
    existing_folder,
)
from litgpt.errors import LitGPTError, MissingFolderError, UsageError, file_error, one_line
from litgpt.hub_client import CHECKPOINTS
from litgpt.scripts.model_description import (
    LocalModel,
    Training,
    config_of,
    describe,
    files_of,
    is_gguf_model,
    kind_of_folder,
    training_of,
)

PLACES = [CHECKPOINTS, Path("out")]
"""Where models are looked for unless a folder is given."""
DEPTH = 8
"""Folders below each other that are looked into."""


# ------------------------------------------------------------------------------------------------------- the commands


def list_models(folders: list[Path] | None = None) -> list[LocalModel]:
    """List the models on this machine, with their size, family, parameters, and what they were trained by.

    LitGPT's and Hugging Face's checkpoint folders, GGUF files, and folders of updates (LoRA, adapters, PEFT's).

    Args:
        folders: Where to look; unset: checkpoints and out.

    Raises:
        LitGPTError: A folder is not there.

    Example:
        litgpt list
        litgpt list ~/models out
    """
    found = [describe(place) for place in find_models(folders)]
    if not found:
        places = ", ".join(str(place) for place in folders or PLACES)
        print(f"No models in {places}. `litgpt download ORG/NAME` fetches one.")
        return found
    rows = [("PATH", "KIND", "SIZE", "FAMILY", "PARAMETERS", "WRITTEN", "TRAINED BY")]
    for one in found:
        count = "?" if one.parameters is None else f"{one.parameters:,}"
        by = one.problem or (_in_short(one.trained) if one.trained else "")
        written = one.changed[:16].replace("T", " ")
        rows.append((str(one.path), one.kind, gigabytes(one.size), one.family or "?", count, written, by))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    for row in rows:
        cells = [text.ljust(width) for text, width in zip(row, widths, strict=False)]
        print("  ".join((*cells, row[6])).rstrip())
    return found


def show(checkpoint_dir: Path) -> dict[str, Any]:
    """Show what a model is: its files, its sizes, and how it was trained.

    Args:
        checkpoint_dir: The checkpoint folder, folder of updates or GGUF file, also by its name under checkpoints.

    Raises:
        LitGPTError: It is none.

    Example:
        litgpt show out/finetune/lora/final
    """
    place = _model_at(checkpoint_dir)
    one = describe(place)
    files = {str(file.relative_to(place.parent if place.is_file() else place)): size for file, size in files_of(place)}
    lines: dict[str, Any] = {"path": one.path, "kind": one.kind, "model": one.model, "family": one.family}
    if one.parameters is not None:
        lines["parameters"] = f"{one.parameters:,}"
    config = None if one.problem else config_of(place, one.trained.base if one.trained else None)[0]
    if config is not None:
        lines |= {"layers": config.n_layer, "width": config.n_embd, "context": f"{config.block_size:,} tokens"}
        lines["vocabulary"] = f"{config.vocab_size:,} tokens"
    lines |= {"stored": one.stored, "size": gigabytes(one.size), "written": one.changed.replace("T", " ")}
    if one.trained is not None:
        lines |= _about_training(one.trained)
    lines["problem"] = one.problem
    for name, value in lines.items():
        if value is not None:
            print(f"{name:<12}{value}")
    print("files")
    for name, size in files.items():
        print(f"  {gigabytes(size):>10}  {name}")
    if one.trained is not None and one.trained.settings:
        print(f"settings    in {place / HYPERPARAMETERS}")
    sizes = {key: getattr(config, key) for key in ("n_layer", "n_embd", "block_size", "vocab_size")} if config else {}
    return {**vars(one), **sizes, "files": files}


def rm(folders: list[Path], yes: bool = False) -> list[str]:
    """Delete models: checkpoint folders, folders of updates, or GGUF files.

    Asks before it does. What links in a folder lead to stays. A folder that holds no model is refused.

    Args:
        folders: What to delete, by path, or by name under checkpoints.
        yes: Don't ask.

    Raises:
        LitGPTError: One of them is no model, or can't be deleted.

    Example:
        litgpt rm out/finetune/lora/step-000100
    """
    places = list(dict.fromkeys(_removable(folder) for folder in folders))
    if not yes and not sys.stdin.isatty():
        raise UsageError("There is no terminal to ask on; --yes deletes without being asked.")
    gone = []
    for place in places:
        print(_what_goes(place))
        if yes or _answer(f"Delete {place}? [y/N] "):
            _delete(place)
            gone.append(str(place))
    print(f"Deleted: {', '.join(gone)}." if gone else "Nothing is deleted.")
    return gone


# ---------------------------------------------------------------------------------------------------------- finding


def find_models(folders: list[Path] | None = None) -> Iterator[Path]:
    """Every checkpoint folder, folder of updates and GGUF file below some folders, those too that links lead to.

    Raises:
        LitGPTError: A folder that was given is not there.
    """
    seen: set[Path] = set()
    for folder in folders or PLACES:
        start = folder.expanduser()
        if folders and not start.exists():
            raise MissingFolderError(f"There is no folder {start}; `litgpt list` looks in {_names(PLACES)}.")
        if is_gguf_model(start):
            yield start
        if start.is_dir():
            yield from _below(start, seen, DEPTH)


def _below(folder: Path, seen: set[Path], depth: int) -> Iterator[Path]:
    real = folder.resolve()
    if real in seen:
        return
    seen.add(real)
    try:
        own = kind_of_folder(folder)
        entries = sorted(folder.iterdir())
        files = [entry for entry in entries if is_gguf_model(entry)]
    except LitGPTError:
        raise
    except OSError:  # one that may not be read holds nothing of ours
        return
    if own:
        yield folder
    yield from files
    for entry in entries:
        if depth and not entry.name.startswith(".") and os.path.isdir(entry):  # false where it may not be asked
            yield from _below(entry, seen, depth - 1)


def _model_at(path: Path) -> Path:
    """The model that a path names; what lies in folders below it is not looked at, as they may be a whole disk's.

    Raises:
        LitGPTError: There is no such folder, it may not be read, or it is no model.
    """
    place = existing_folder(path)
    try:
        if kind_of_folder(place) or is_gguf_model(place):
            return place
    except LitGPTError:
        raise
    except OSError as error:
        raise file_error(error, f"{place} can't be read: {one_line(error)}.") from None
    raise LitGPTError(f"{place} is no model's folder; `litgpt list {place}` shows those in it.")


def _in_short(trained: Training) -> str:
    parts = [trained.command]
    parts += [f"on {trained.base}"] if trained.base else []
    parts += [f"with {trained.data}"] if trained.data else []
    return " ".join(parts)


def _about_training(trained: Training) -> dict[str, Any]:
    losses = {"loss": trained.loss, "validation": trained.val_loss}
    return {
        "trained by": trained.command,
        "base": trained.base or "random weights",
        "data": trained.data,
        "steps": trained.steps,
        **{name: None if value is None else f"{value:.4f}" for name, value in losses.items()},
    }


# --------------------------------------------------------------------------------------------------------- deleting


def _removable(path: Path) -> Path:
    """The model that a path names, if it is a folder of its own; nothing is read of one that isn't.

    Raises:
        LitGPTError: It is none, a link, or holds the folder that the process is in, or the user's own.
    """
    place = existing_folder(path)
    real = place.resolve()
    if place.is_symlink():
        raise LitGPTError(f"{place} is a link to {real}; delete the link yourself, or give what it leads to.")
    if Path.cwd().resolve().is_relative_to(real) or Path.home().resolve().is_relative_to(real):
        raise LitGPTError(f"{place} holds the folder that you are in, or your own; delete it yourself.")
    return _model_at(place)


def _what_goes(place: Path) -> str:
    """What would be deleted, and what needs it."""
    files = list(files_of(place))
    inside = [other for other in find_models([place]) if other != place] if place.is_dir() else []
    real = place.resolve()
    users = [
        one.path
        for one in map(_trained_only, find_models())
        if one.trained and one.trained.base and one.kind != "LitGPT" and not one.path.resolve().is_relative_to(real)
        if real in (Path(one.trained.base).resolve(), (CHECKPOINTS / one.trained.base).resolve())
    ]
    text = f"{place}: {len(files)} files, {gigabytes(sum(size for _, size in files))}."
    text += f" Models in it: {_names(inside)}." if inside else ""
    return text + (f" {_names(users)} can't be used without it." if users else "")


def _trained_only(place: Path) -> LocalModel:
    """A model with its kind and training alone."""
    kind = "GGUF" if place.is_file() else kind_of_folder(place)
    with suppress(LitGPTError):
        return LocalModel(place, kind, 0, "", trained=None if place.is_file() else training_of(place, kind))
    return LocalModel(place, kind, 0, "")


def _delete(place: Path) -> None:
    """Deletes a model's folder or files; links in it go, what they lead to stays."""
    parts = [part for part, _ in files_of(place)] if place.is_file() else []
    try:
        if parts:
            for part in parts:
                part.unlink()
        else:
            hidden = place.with_name(f".deleted-{place.name}")  # so that nobody finds half of it under its name
            place.rename(hidden)
            shutil.rmtree(hidden)
        with suppress(OSError):  # not empty, or a folder that is to stay
            if place.parent.parent == CHECKPOINTS:
                place.parent.rmdir()
    except OSError as error:
        raise file_error(error, f"{place} can't be deleted: {one_line(error)}.") from None


def _answer(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


# ------------------------------------------------------------------------------------------------------------ files


def _names(paths: list[Path]) -> str:
    return ", ".join(map(str, paths))

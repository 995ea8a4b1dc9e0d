"""`litgpt list`, `show` and `rm`: the models on this machine, what they are, and what they were trained on."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from litgpt.checkpoint.atomic import gigabytes
from litgpt.checkpoint.gguf import GGUF_SUFFIX
from litgpt.checkpoint.layout import (
    HYPERPARAMETERS,
    LIT_MODEL,
    existing_folder,
    hf_weight_files,
    is_weight_file,
)
from litgpt.config import CONFIG_FILE, Config
from litgpt.errors import LitGPTError, MissingFolderError, UsageError, file_error, one_line
from litgpt.families.quantization_config import stored_quantization
from litgpt.hub_client import CHECKPOINTS, HF_CONFIG_FILE
from litgpt.reading import optional_json, read_yaml

PLACES = [CHECKPOINTS, Path("out")]
"""Where models are looked for unless a folder is given."""
DEPTH = 8
"""Folders below each other that are looked into."""
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
UPDATES = {"lora": "LoRA", "adapter": "LLaMA-Adapter", "adapter_v2": "LLaMA-Adapter V2"}
"""What follows `lit_model.pth.` in the name of a file of updates → the method."""
SPLIT = re.compile(r"-\d{5}-of-\d{5}$")
"""The end of the name of a part of a GGUF model."""
DATA_PLACES = ("json_path", "path", "train_data_path", "data_path", "repo_id", "download_dir")
"""Arguments of data modules that say which data."""


@dataclass(frozen=True)
class Training:
    """How a model came to be, as far as its folder says."""

    command: str
    base: str | None
    """The model that it started from; None: random weights."""
    data: str | None
    steps: int | None = None
    loss: float | None = None
    """Of training, the last that was logged."""
    val_loss: float | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """All arguments of the command."""


@dataclass(frozen=True)
class LocalModel:
    """A checkpoint folder, a folder of updates, or a GGUF file."""

    path: Path
    kind: str
    """`LitGPT`, `Hugging Face`, `GGUF`, `PEFT`, or the method whose updates are there."""
    size: int
    """Bytes on disk, of all files."""
    changed: str
    """When its weights were written."""
    model: str | None = None
    family: str | None = None
    parameters: int | None = None
    """Of the whole model, its base included."""
    stored: str | None = None
    """How its weights are kept in few bits; None: they are not, or the file's types say it (GGUF)."""
    trained: Training | None = None
    problem: str | None = None
    """What keeps it from being used."""


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
    files = {str(file.relative_to(place.parent if place.is_file() else place)): size for file, size in _files(place)}
    lines: dict[str, Any] = {"path": one.path, "kind": one.kind, "model": one.model, "family": one.family}
    if one.parameters is not None:
        lines["parameters"] = f"{one.parameters:,}"
    config = None if one.problem else _config_of(place, one.trained.base if one.trained else None)[0]
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


def is_gguf_model(path: Path) -> bool:
    """Whether a path is a GGUF file, the first one where a model has several."""
    if path.suffix != GGUF_SUFFIX or not path.is_file():
        return False
    part = SPLIT.search(path.stem)
    return part is None or part[0].startswith("-00001-")


def kind_of_folder(folder: Path) -> str:
    """What lies in a folder, as `LocalModel.kind` says it; empty: no model (GGUF files are models of their own)."""
    if not folder.is_dir():
        return ""
    if (folder / LIT_MODEL).is_file():
        return "LitGPT"
    for suffix, method in UPDATES.items():
        if (folder / f"{LIT_MODEL}.{suffix}").is_file():
            return method
    if (folder / ADAPTER_CONFIG).is_file() and any((folder / name).is_file() for name in ADAPTER_WEIGHTS):
        return "PEFT"
    has_weights = any(is_weight_file(file.name) for end in ("safetensors", "bin") for file in folder.glob(f"*.{end}"))
    return "Hugging Face" if has_weights and (folder / HF_CONFIG_FILE).is_file() else ""


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


# ------------------------------------------------------------------------------------------------------- describing


def describe(place: Path) -> LocalModel:
    """What is known of a model; what keeps it from being used is a part of that."""
    files = list(_files(place))
    kind = "GGUF" if place.is_file() else kind_of_folder(place)
    weights = [file for file, _ in files if file.suffix in (".pth", ".safetensors", ".bin", GGUF_SUFFIX)] or [
        file for file, _ in files if file.name.startswith(f"{LIT_MODEL}.")
    ]
    written = max((file.stat().st_mtime for file in weights), default=place.stat().st_mtime)
    changed = datetime.fromtimestamp(written).isoformat(timespec="seconds")
    size = sum(nbytes for _, nbytes in files)
    config, trained, problem, stored = None, None, None, None
    try:
        trained = None if place.is_file() else training_of(place, kind)
        config, problem = _config_of(place, trained.base if trained else None)
        if kind == "Hugging Face":
            hf_weight_files(place)  # raises where one is missing
            how = stored_quantization(optional_json(place / HF_CONFIG_FILE))
            stored = None if how is None else how.description
        count = None if config is None else count_parameters(config)
    except LitGPTError as error:
        count, problem = None, str(error)
    name, family = (None, None) if config is None else (config.name or None, config.family.name)
    return LocalModel(place, kind, size, changed, name, family, count, stored, trained, problem)


def _config_of(place: Path, base: str | None) -> tuple[Config | None, str | None]:
    """The model's configuration, of updates their base's; or why there is none.

    Raises:
        LitGPTError: It is damaged.
    """
    if place.is_file():
        from litgpt.checkpoint.gguf.reader import open_gguf

        return open_gguf(place).config, None
    if (place / CONFIG_FILE).is_file():
        return _lit_config(place, base), None
    if (place / HF_CONFIG_FILE).is_file():
        return Config.from_checkpoint(place), None
    base = optional_json(place / ADAPTER_CONFIG).get("base_model_name_or_path")
    try:
        return (Config.from_checkpoint(existing_folder(base)), None) if isinstance(base, str) else (None, None)
    except LitGPTError:
        return None, f"its base {base} is not here"


def _lit_config(place: Path, base: str | None) -> Config:
    """The configuration of a LitGPT folder; of a tied head only the weights tell, there or in its base."""
    config = Config.from_checkpoint(place)
    if not (place / LIT_MODEL).is_file() and base is not None:
        place = Path(base)
    if (place / LIT_MODEL).is_file():
        from litgpt.checkpoint.reader import load_pth, tied_in

        config.tie_embeddings = tied_in(load_pth(place / LIT_MODEL), bool(config.tie_embeddings))
    elif (place / HF_CONFIG_FILE).is_file():
        config.tie_embeddings = Config.from_checkpoint(place).tie_embeddings
    return config


_counts: dict[str, int] = {}
"""Parameters by configuration: the folders of a run have the same one."""


def count_parameters(config: Config) -> int:
    """Of a model, by making it without values."""
    key = repr(config)
    if key not in _counts:
        from litgpt.model import GPT

        _counts[key] = GPT.skeleton(config).n_parameters()
    return _counts[key]


def training_of(folder: Path, kind: str) -> Training | None:
    """How the model in a folder was trained; None: it doesn't say.

    Raises:
        LitGPTError: A file that says it is damaged.
    """
    if not (folder / HYPERPARAMETERS).is_file():
        base = optional_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path") if kind == "PEFT" else None
        return Training("PEFT", str(base), None) if base else None
    settings = read_yaml(folder / HYPERPARAMETERS, "no file of the settings of a run", "train again, or delete it")
    if not isinstance(settings, dict):
        return None
    base = settings.get("checkpoint_dir") or settings.get("initial_checkpoint_dir")
    steps, loss, val_loss = _progress_of(folder)
    return Training(
        _command(folder, settings),
        str(base) if base else None,
        _data(settings.get("data")),
        steps,
        loss,
        val_loss,
        settings,
    )


def _command(folder: Path, settings: Mapping[str, Any]) -> str:
    """The command that wrote a folder: each has arguments that no other one has, or a file of its own."""
    if "model_name" in settings:
        return "pretrain"
    if "reference" in settings:
        return "finetune_dpo"
    suffix = next((suffix for suffix in UPDATES if (folder / f"{LIT_MODEL}.{suffix}").is_file()), None)
    return f"finetune_{suffix or ('lora' if 'lora_r' in settings else 'full')}"


def _data(spec: Any) -> str | None:
    """The data module, and which data it read."""
    if not isinstance(spec, dict):
        return str(spec).rpartition(".")[2] if spec else None
    name, given = str(spec.get("class_path")).rpartition(".")[2], spec.get("init_args") or {}
    place = next((given[key] for key in DATA_PLACES if isinstance(given, dict) and given.get(key)), None)
    return f"{name} ({place})" if place else name


def _progress_of(folder: Path) -> tuple[int | None, float | None, float | None]:
    """Steps, training loss and validation loss of the run that wrote a folder, by what it logged beside it."""
    from litgpt.training.metrics.loggers import read_metrics

    number = folder.name.removeprefix("step-")
    last = int(number) if number.isdecimal() else None
    logs = folder.parent / "logs" / "csv"
    versions = [int(path.name[8:]) for path in logs.glob("version_*") if path.name[8:].isdecimal()]
    if not versions:
        return last, None, None
    try:
        logged = read_metrics(logs / f"version_{max(versions)}" / "metrics.csv")
    except LitGPTError:
        raise
    except (OSError, ValueError):  # half a file
        return last, None, None
    rows = [row for row in logged if "step" in row and (last is None or row["step"] <= last)]
    of = {
        name: next((row[name] for row in reversed(rows) if name in row), None) for name in ("step", "loss", "val_loss")
    }
    return last or (None if of["step"] is None else int(of["step"])), of["loss"], of["val_loss"]


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
    files = list(_files(place))
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
    parts = [part for part, _ in _files(place)] if place.is_file() else []
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


def _files(place: Path) -> Iterator[tuple[Path, int]]:
    """The files of a model with their sizes; of a GGUF file, all its parts."""
    if place.is_file():
        stem = SPLIT.sub("", place.stem)
        paths = [path for path in sorted(place.parent.glob(f"*{GGUF_SUFFIX}")) if SPLIT.sub("", path.stem) == stem]
    else:
        paths = [Path(at) / name for at, _, names in os.walk(place) for name in sorted(names)]
    for path in paths:
        try:
            nbytes = path.stat().st_size
        except OSError:  # a link to nothing
            continue
        yield path, nbytes


def _names(paths: list[Path]) -> str:
    return ", ".join(map(str, paths))

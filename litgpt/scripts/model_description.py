"""What is known of a model on this machine, from the files of its folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from litgpt.checkpoint.gguf import GGUF_SUFFIX
from litgpt.checkpoint.layout import (
    HYPERPARAMETERS,
    LIT_MODEL,
    existing_folder,
    hf_weight_files,
    is_weight_file,
)
from litgpt.config import CONFIG_FILE, Config
from litgpt.errors import LitGPTError
from litgpt.families.quantization_config import stored_quantization
from litgpt.hub_client import HF_CONFIG_FILE
from litgpt.reading import optional_json, read_yaml

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


def describe(place: Path) -> LocalModel:
    """What is known of a model; what keeps it from being used is a part of that."""
    files = list(files_of(place))
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
        config, problem = config_of(place, trained.base if trained else None)
        if kind == "Hugging Face":
            hf_weight_files(place)  # raises where one is missing
            how = stored_quantization(optional_json(place / HF_CONFIG_FILE))
            stored = None if how is None else how.description
        count = None if config is None else count_parameters(config)
    except LitGPTError as error:
        count, problem = None, str(error)
    name, family = (None, None) if config is None else (config.name or None, config.family.name)
    return LocalModel(place, kind, size, changed, name, family, count, stored, trained, problem)


def config_of(place: Path, base: str | None) -> tuple[Config | None, str | None]:
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


def files_of(place: Path) -> Iterator[tuple[Path, int]]:
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

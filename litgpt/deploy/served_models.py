"""The names that a server answers to: the base model, and LoRA adapters beside it on the same engine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from litgpt.checkpoint.finetuned import Finetuned, find_finetuned, find_update
from litgpt.checkpoint.layout import existing_folder
from litgpt.engine.engine import Engine
from litgpt.engine.inference_model import InferenceModel
from litgpt.errors import LitGPTError
from litgpt.lora import LoRA
from litgpt.peft.adapter_bank import AdapterBank


@dataclass
class ServedModel:
    """A name that can be asked for: an engine, and how to talk to what it computes under this name."""

    name: str
    inference_model: InferenceModel
    here: Engine | None
    """The engine; None: it is in another process."""
    adapter: str | None = None
    """The adapter's name in the engine's bank; None: the base model alone."""
    created: int = field(default_factory=lambda: int(time.time()))
    """When it was loaded, in seconds since 1970."""

    @property
    def engine(self) -> Engine:
        """The engine, which has to be in this process."""
        assert self.here is not None
        return self.here


def parse_adapters(given: Sequence[str]) -> dict[str, Path]:
    """`NAME=FOLDER` → folder by name.

    Raises:
        LitGPTError: Not of that form, or a name twice.
    """
    found: dict[str, Path] = {}
    for entry in given:
        name, equals, folder = entry.partition("=")
        if not (name and equals and folder):
            raise LitGPTError(f"--adapters {entry} is not NAME=FOLDER, as in `--adapters legal=out/legal/final`.")
        if name in found:
            raise LitGPTError(f"--adapters has the name {name} twice; give each adapter a name of its own.")
        found[name] = Path(folder)
    return found


def base_of(checkpoint_dir: str | Path) -> Path:
    """The folder of the weights that adapters stand beside: the one that is served, or what that one stands beside.

    Raises:
        LitGPTError: No such folder.
    """
    finetuned = find_finetuned(checkpoint_dir)
    return existing_folder(checkpoint_dir) if finetuned is None else finetuned.base.dir


def load_bank(
    inference_model: InferenceModel, folders: Mapping[str, Path], base: Path | None = None
) -> tuple[AdapterBank | None, dict[str, InferenceModel]]:
    """Puts the adapters beside the model's layers; how to talk to each, by its name.

    Args:
        inference_model: The model, changed in place.
        folders: Of LoRA runs or of PEFT, by name.
        base: The model's folder; None: where each adapter's folder says that it is.

    Raises:
        LitGPTError: A folder holds no LoRA adapter, or one of another model.
    """
    if not folders:
        return None, {}
    bank = AdapterBank(inference_model.model)
    inference_models = {}
    for name, folder in folders.items():
        found = find_adapter(name, folder, base)
        assert isinstance(found.method, LoRA)
        bank.add(name, found.method, found.learned(), str(found.file))
        inference_models[name] = replace(inference_model, style=found.prompt_style())
    return bank, inference_models


def find_adapter(name: str, folder: Path, base: Path | None = None) -> Finetuned:
    """The LoRA adapter of a folder, with a whole model beside it or without.

    Raises:
        LitGPTError: It holds none, or one that doesn't fit the base.
    """
    found = find_update(existing_folder(folder), base)
    if found is None or not isinstance(found.method, LoRA):
        raise LitGPTError(
            f"--adapters {name}={folder} is no folder of a LoRA run; it lacks lit_model.pth.lora, or what PEFT writes "
            "(adapter_config.json)."
        )
    return found


def make_served_models(
    inference_model: InferenceModel,
    name: str,
    slots: int,
    adapters: Mapping[str, Path],
    length: int | None = None,
    base: Path | None = None,
) -> dict[str, ServedModel]:
    """The base model, called `name`, first, then the adapters, all on one engine; `base` as `load_bank` has it.

    Raises:
        LitGPTError: An adapter has the base's name, or can't be used with it.
    """
    if name in adapters:
        raise LitGPTError(f"--adapters names {name}, which is what the model itself is called; choose another name.")
    bank, inference_models = load_bank(inference_model, adapters, base)
    engine = inference_model.engine(slots, length)
    engine.bank = bank
    served_models = {name: ServedModel(name, inference_model, engine)}
    return served_models | {other: ServedModel(other, own, engine, other) for other, own in inference_models.items()}

"""The names that a server answers to: the base model, and LoRA adapters beside it on the same engine."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from litgpt.checkpoint.finetuned import Finetuned, find_finetuned, find_update
from litgpt.checkpoint.layout import existing_folder
from litgpt.deploy.settings import Loading
from litgpt.engine.engine import Engine
from litgpt.engine.inference_model import InferenceModel
from litgpt.errors import LitGPTError
from litgpt.lora import LoRA
from litgpt.peft.adapter_bank import AdapterBank


@dataclass
class ServedModel:
    """A model that requests can name: an engine, and how to talk to what it computes under this name."""

    name: str
    inference_model: InferenceModel
    local_engine: Engine | None
    """The engine; None: it is in another process."""
    adapter: str | None = None
    """The adapter's name in the engine's bank; None: the base model alone."""
    created: int = field(default_factory=lambda: int(time.time()))
    """When it was loaded, in seconds since 1970."""

    @property
    def engine(self) -> Engine:
        """The engine, which has to be in this process."""
        assert self.local_engine is not None
        return self.local_engine


def base_of(checkpoint_dir: str | Path) -> Path:
    """The folder of the weights that adapters stand beside: the one that is served, or what that one stands beside.

    Raises:
        LitGPTError: No such folder.
    """
    finetuned = find_finetuned(checkpoint_dir)
    return existing_folder(checkpoint_dir) if finetuned is None else finetuned.base.dir


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


def load_served_models(
    folder: str | Path, name: str, adapters: Mapping[str, Path], loading: Loading, device: str
) -> dict[str, ServedModel]:
    """Loads the model of a folder, called `name`, and the adapters beside it; see `make_served_models`."""
    inference_model = InferenceModel.load(folder, device, loading.precision, loading.quantize)
    asked = loading.deterministic
    inference_model.deterministic = loading.precision == "32-true" if asked is None else asked
    inference_model.tokenizer.parse_special_tokens = loading.parse_special_tokens
    base = base_of(folder) if adapters else None
    return make_served_models(inference_model, name, loading.slots, adapters, loading.length, base)


def make_served_models(
    inference_model: InferenceModel,
    name: str,
    slots: int,
    adapters: Mapping[str, Path],
    length: int | None = None,
    base: Path | None = None,
) -> dict[str, ServedModel]:
    """Returns the base model first, then the adapters, all on one engine.

    Args:
        inference_model: The base model; the adapters are put beside its layers in place.
        name: What requests call it.
        slots: Requests that run at the same time.
        adapters: Folders of LoRA runs or of PEFT, by name.
        length: Tokens that a prompt and its answer may have together; None: the context, or what fits into memory.
        base: The base model's folder; None: where each adapter's folder says that it is.

    Raises:
        LitGPTError: An adapter has the base's name, or a folder holds no LoRA adapter, or one of another model.
    """
    if name in adapters:
        raise LitGPTError(f"--adapters names {name}, which is what the model itself is called; choose another name.")
    bank = AdapterBank(inference_model.model) if adapters else None
    styled = {}
    for other, folder in adapters.items():
        found = find_adapter(other, folder, base)
        assert bank is not None and isinstance(found.method, LoRA)
        bank.add(other, found.method, found.learned(), str(found.file))
        styled[other] = replace(inference_model, style=found.prompt_style())
    engine = inference_model.engine(slots, length)
    engine.bank = bank
    served_models = {name: ServedModel(name, inference_model, engine)}
    return served_models | {other: ServedModel(other, own, engine, other) for other, own in styled.items()}

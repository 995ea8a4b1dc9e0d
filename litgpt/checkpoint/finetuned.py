"""What a finetuning run learned, in a file of its own, and the model it is used with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from litgpt.adapter import Adapter
from litgpt.adapter_v2 import AdapterV2
from litgpt.checkpoint.fingerprint import check_base, fingerprint, saved_base
from litgpt.checkpoint.layout import (
    HYPERPARAMETERS,
    LIT_MODEL,
    Checkpoint,
    existing_folder,
    find_checkpoint,
    gguf_files,
    hf_weight_files,
)
from litgpt.checkpoint.peft_folder.reader import base_of_peft, is_peft, peft_weights, read_peft
from litgpt.checkpoint.reader import load_model, load_pth
from litgpt.config import CONFIG_FILE, Config
from litgpt.errors import MissingFileError
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.peft import Full, Method, load_owned, unwrap_modules
from litgpt.prompts import PromptStyle, has_prompt_style, prompt_style_for
from litgpt.prompts.chat_template import read_templates
from litgpt.reading import read_yaml, reading

METHODS: dict[str, type[Method]] = {method.suffix: method for method in (LoRA, AdapterV2, Adapter)}
"""What follows `lit_model.pth` in the name of a file → the method that learned what is in it."""


@dataclass(frozen=True)
class Finetuned:
    """A file of weights that a method learned, and the checkpoint that has all the rest."""

    file: Path
    method: Method
    base: Checkpoint

    def load_model(
        self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, quantize: str | None = None
    ) -> GPT:
        """The finetuned model, in evaluation mode; low-rank updates are merged into the weights, but stay beside
        quantized ones, as they were trained.

        Raises:
            LitGPTError: The base can't be read, or the file is not one of this method and this model.
        """
        if isinstance(self.method, Full):
            # Its own configuration, where there is one: the vocabulary may have grown.
            folder = self.file.parent if (self.file.parent / CONFIG_FILE).is_file() else self.base.dir
            return load_model(Checkpoint(folder, "litgpt", (self.file,)), device, dtype, quantize)
        model = load_model(self.base, device, dtype, quantize)
        self.method.attach(model)
        self.load_into(model)
        if quantize:
            cast_owned(model, self.method.owns, dtype)
        elif isinstance(self.method, LoRA):
            unwrap_modules(model)
            # A head with an update is a head of its own; the base's configuration stays as it is.
            model.config = replace(model.config, tie_embeddings=model.tied)
        return model.eval()

    def skeleton(self, learned: dict[str, Tensor]) -> GPT:
        """The base on `meta`, with what was learned beside it.

        Raises:
            LitGPTError: The file is not one of this method and this model.
        """
        model = GPT.skeleton(self.base.config)
        self.method.attach(model)
        load_owned(model, self.method.owns, learned, str(self.file))
        return model

    def load_into(self, model: GPT) -> None:
        """Puts what was learned into a model that the method is attached to.

        Raises:
            LitGPTError: The file is not one of this method and this model, or learned on other weights.
        """
        load_owned(model, self.method.owns, self.learned(), str(self.file))

    def learned(self) -> dict[str, Tensor]:
        """What was learned, by our names.

        Raises:
            LitGPTError: The file is damaged, or was learned on other weights than the base has.
        """
        if saved_base(self.file):
            check_base(self.file, fingerprint(self.base), self.base.path)
        if is_peft(self.file.parent) and self.file.suffix != ".lora":
            return read_peft(self.file.parent, self.base)[1]
        return load_pth(self.file)

    def prompt_style(self) -> PromptStyle:
        """The style it was finetuned with, where its folder tells, else the base's."""
        folder = self.file.parent
        tells = has_prompt_style(folder) or bool(read_templates(folder))
        return prompt_style_for(folder if tells else self.base.dir, self.base.config)


def open_model(
    source: Checkpoint | Finetuned,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
    keep_bits: bool = False,
) -> GPT:
    """The model of a checkpoint, or what a method made of one; as `load_model` and `Finetuned.load_model`, which has
    no `keep_bits`."""
    if isinstance(source, Finetuned):
        return source.load_model(device, dtype, quantize)
    return load_model(source, device, dtype, quantize, keep_bits)


def cast_owned(model: GPT, owns: Callable[[str], bool], dtype: torch.dtype | None) -> None:
    """Gives what was learned the dtype that the rest is computed in: beside a quantized weight it has its own."""
    for name, parameter in model.named_parameters():
        if owns(name) and dtype is not None:
            parameter.data = parameter.data.to(dtype)


def find_finetuned(path: str | Path) -> Finetuned | None:
    """What a folder (or one under `checkpoints/`) holds if that is no whole model; None: it isn't that kind of folder.

    Raises:
        LitGPTError: No such folder, or it doesn't say how it was trained and on what.
    """
    folder = existing_folder(path)
    if folder.is_file() or (folder / LIT_MODEL).is_file() or hf_weight_files(folder) or gguf_files(folder):
        return None
    return find_update(folder)


def find_update(folder: Path, base: Path | None = None) -> Finetuned | None:
    """What was learned that lies in a folder, beside its whole model or alone; None: nothing does.

    Args:
        folder: An existing one.
        base: The model that it was learned on; None: as the folder says.

    Raises:
        LitGPTError: The folder doesn't say how it was learned and on what.
    """
    for suffix in METHODS:
        file = folder / f"{LIT_MODEL}{suffix}"
        if file.is_file():
            method, trained_on = read_hyperparameters(folder, suffix)
            checkpoint = find_checkpoint(base or trained_on)
            return Finetuned(file, _with_vocabulary(method, folder, checkpoint), checkpoint)
    if is_peft(folder):
        checkpoint = find_checkpoint(base or base_of_peft(folder))
        return Finetuned(peft_weights(folder), read_peft(folder, checkpoint)[0], checkpoint)
    return None


def _with_vocabulary(method: Method, folder: Path, base: Checkpoint) -> Method:
    """The method with the vocabulary that the folder's configuration says, where embedding and head are its own."""
    if not (isinstance(method, LoRA) and method.saves("lm_head.weight") and (folder / CONFIG_FILE).is_file()):
        return method
    rows = Config.from_file(folder / CONFIG_FILE).padded_vocab_size
    return method if rows == base.config.padded_vocab_size else replace(method, vocabulary=rows)


def has_lora(folder: Path) -> bool:
    """Whether what LoRA learned lies in a folder, LitGPT's way or PEFT's."""
    return (folder / f"{LIT_MODEL}{LoRA.suffix}").is_file() or is_peft(folder)


def read_hyperparameters(folder: Path, suffix: str) -> tuple[Method, Path]:
    """The method of what a finetuning run saved, and the folder of the model it started from.

    Raises:
        LitGPTError: The file is missing or doesn't tell.
    """
    path, command = folder / HYPERPARAMETERS, f"finetune_{suffix.removeprefix('.')}"
    if not path.exists():
        raise MissingFileError(
            f"{folder} has no {HYPERPARAMETERS}, which says how it was trained; give the folder of a {command} run."
        )
    is_lora = suffix == LoRA.suffix
    fault = f"no file of the settings of a {command} run ({'lora_*, ' if is_lora else ''}checkpoint_dir)"
    advice = "give the folder of such a run"
    content = read_yaml(path, fault, advice)
    with reading(path, fault, advice):
        settings = {name.removeprefix("lora_"): value for name, value in content.items() if name.startswith("lora_")}
        method = LoRA(**settings).as_saved() if is_lora else METHODS[suffix]()
        return method, Path(content["checkpoint_dir"])

"""From a Hugging Face folder to a LitGPT one and back, one tensor in memory at a time."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from litgpt.checkpoint.atomic import atomic_folder, gigabytes, require_space
from litgpt.checkpoint.dtypes import cast
from litgpt.checkpoint.layout import (
    LIT_MODEL,
    Checkpoint,
    copy_config_files,
    existing_folder,
    find_checkpoint,
    gguf_files,
    hf_weight_files,
    other_folder,
)
from litgpt.checkpoint.reader import EMBEDDING, HEAD, check_names, check_shape, load_pth, open_weights
from litgpt.checkpoint.writer import save_state, write_hf, write_lit
from litgpt.config import Config
from litgpt.errors import LitGPTError, MissingFileError, UnsupportedError, progress
from litgpt.hub_client import HF_CONFIG_FILE
from litgpt.model import GPT
from litgpt.reading import read_json


def to_litgpt(
    path: str | Path, model_name: str | None = None, dtype: torch.dtype | None = None, every_tensor: bool = False
) -> Path:
    """Writes `lit_model.pth` and `model_config.yaml` beside the Hugging Face weights of a folder, and returns it.

    Args:
        path: The folder.
        model_name: The named size it is; None: what `config.json` says.
        dtype: What floating-point weights are cast to; None: as stored.
        every_tensor: Print each tensor instead of a progress line.

    Raises:
        LitGPTError: The folder can't be read or written, or its tensors are not those of its model.
    """
    checkpoint = _hf_checkpoint(existing_folder(path), model_name)
    config, weights = checkpoint.config, open_weights(checkpoint)
    expected = GPT.skeleton(config).state_dict()
    check_names(expected, weights.names, tied=bool(config.tie_embeddings))
    tied = {HEAD: EMBEDDING} if HEAD not in weights.names else {}
    progress = ConversionProgress(len(weights.names), every_tensor)

    def converted() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            check_shape(name, tensor, expected[name].shape)
            tensor = cast(name, tensor, dtype)
            progress.add(name, tensor)
            yield name, tensor
            del tensor  # before the next one is made

    width = dtype or weights.fetch(EMBEDDING).dtype
    nbytes = sum(expected[name].numel() for name in weights.names) * width.itemsize
    require_space(checkpoint.dir, nbytes, f"Converting {checkpoint.dir}")
    with atomic_folder(checkpoint.dir) as folder:
        write_lit(folder / LIT_MODEL, converted(), tied)
        config.save(folder)
    progress.finish(checkpoint.dir)
    return checkpoint.dir


def _hf_checkpoint(folder: Path, model_name: str | None) -> Checkpoint:
    """The Hugging Face weights of a folder, whatever LitGPT files lie beside them."""
    files = () if folder.is_file() else hf_weight_files(folder)
    if folder.is_file() or (not files and gguf_files(folder)):
        raise LitGPTError(
            f"{folder} can be used as it is; `litgpt convert_from_litgpt {folder} OUTPUT_DIR` makes a Hugging Face "
            "folder of it."
        )
    if not files and (folder / LIT_MODEL).is_file():
        raise LitGPTError(f"{folder} is a LitGPT folder ({LIT_MODEL}) already and has no other weights to convert.")
    if not files:
        raise MissingFileError(
            f"{folder} has no *.safetensors or *.bin weights to convert; download the checkpoint again."
        )
    checkpoint = Checkpoint(folder, "hf", files)
    name = folder.resolve().name
    if model_name is not None:
        config = Config.from_name(model_name)
    elif (folder / HF_CONFIG_FILE).is_file():
        config = Config.from_hf(read_json(folder / HF_CONFIG_FILE), name=name)
    else:
        try:
            config = Config.from_name(name)
        except LitGPTError:
            raise MissingFileError(
                f"{folder} has no {HF_CONFIG_FILE}, so it is not known which model its weights are; add that file, or "
                "give --model_name."
            ) from None
    vars(checkpoint)["config"] = config  # instead of a model_config.yaml that an earlier conversion left
    return checkpoint


def to_hf(path: str | Path, output: str | Path) -> Path:
    """Writes the LitGPT folder or GGUF file at `path` as a Hugging Face folder, complete, and returns that.

    Raises:
        LitGPTError: The checkpoint can't be read, is not whole, or the folder can't be written.
    """
    checkpoint = find_checkpoint(path)
    if checkpoint.kind == "hf":
        raise MissingFileError(
            f"{checkpoint.dir} is a Hugging Face folder already; there is no {LIT_MODEL} to convert."
        )
    target = other_folder(output, checkpoint.dir)
    weights = open_weights(checkpoint)
    _refuse_adapters(checkpoint.dir, weights.names)
    expected = GPT.skeleton(checkpoint.config).state_dict()
    check_names(expected, weights.names, tied=bool(checkpoint.config.tie_embeddings))
    nbytes = 0
    for name, tensor in weights:
        check_shape(name, tensor, expected[name].shape)
        nbytes += tensor.nbytes
    require_space(target, nbytes, f"Converting {path}")
    progress = ConversionProgress(len(weights.names))
    stale = set(target.glob("model*.safetensors")) | set(target.glob("model.safetensors.index.json"))
    with atomic_folder(target) as folder:
        write_hf(folder, checkpoint.config, weights, checkpoint.dir, on_tensor=progress.add)
        written = {target / file.name for file in folder.iterdir()}
    for file in stale - written:  # of an export that this one replaces
        file.unlink()
    progress.finish(target)
    return target


def to_weights_only(path: str | Path, output: str | Path) -> Path:
    """Writes the LitGPT checkpoint at `path` without optimizer and other training state, and returns the new folder.

    Raises:
        LitGPTError: The checkpoint can't be read, or the folder can't be written.
    """
    checkpoint = find_checkpoint(path)
    if checkpoint.kind != "litgpt":
        raise LitGPTError(f"{path} is not LitGPT's, so it holds no training state to leave out.")
    target = other_folder(output, checkpoint.dir)
    tensors = load_pth(checkpoint.files[0])
    require_space(target, sum(tensor.nbytes for tensor in tensors.values()), f"Converting {checkpoint.dir}")
    with atomic_folder(target) as folder:
        copy_config_files(checkpoint.dir, folder)
        save_state(folder / LIT_MODEL, tensors)
    return target


def _refuse_adapters(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if ".lora_" in name:
            raise LitGPTError(f"{folder} holds LoRA weights ({name}); run `litgpt merge_lora {folder}` first.")
        if ".adapter_" in name or "gating_factor" in name:
            raise UnsupportedError(
                f"{folder} holds adapter weights ({name}), which no Hugging Face model has a place for."
            )


class ConversionProgress:
    """Tells on stderr how far a conversion is: on a terminal in one line that changes, else when it is done."""

    def __init__(self, total: int, every_tensor: bool = False) -> None:
        self.total = total
        self.every_tensor = every_tensor
        self.number = self.nbytes = 0

    def add(self, name: str, tensor: Tensor) -> None:
        """One more tensor is under way."""
        self.number, self.nbytes = self.number + 1, self.nbytes + tensor.nbytes
        if self.every_tensor:
            progress(f"{name} {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}")
        elif sys.stderr.isatty():
            progress(f"\rConverting: {self.number}/{self.total} tensors, {gigabytes(self.nbytes)} ", end="")

    def finish(self, folder: Path) -> None:
        """All are written."""
        begin = "\r" if sys.stderr.isatty() and not self.every_tensor else ""
        print(f"{begin}Converted {self.number} tensors, {gigabytes(self.nbytes)}, into {folder}.", file=sys.stderr)

"""The one writer of weights: a LitGPT `.pth` or a Hugging Face folder, one tensor in memory at a time."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from litgpt.checkpoint.atomic import atomic_file
from litgpt.checkpoint.layout import TOKENIZER_FILES
from litgpt.checkpoint.reader import EMBEDDING, HEAD
from litgpt.checkpoint.weights import Tensors, WeightTable
from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.families.composites import is_composite, text_settings
from litgpt.hub_client import HF_CONFIG_FILE
from litgpt.model import GPT
from litgpt.model.sharding import is_sharded, saved_tensors
from litgpt.reading import read_json

ALIGNMENT = 64
"""Bytes; where a tensor may begin in a `.pth` file, so that it can be used memory-mapped."""
ZIP64_BYTES = 2**30
"""Bytes; tensors from this size on get the zip header with 64-bit sizes."""
TensorCallback = Callable[[str, Tensor], None]
SHARD_BYTES = 5_000_000_000
"""Size of one safetensors file, at most, unless a single tensor is larger."""
GENERATION_CONFIG = "generation_config.json"

# --------------------------------------------------------------------------------------------------------- LitGPT .pth


def save_state(
    path: str | Path, state: Mapping[str, Tensor], wrap: str = "", beside: Mapping[str, str] | None = None
) -> None:
    """Writes a state dict that is in memory; tensors that are one in memory are one in the file. See `write_lit`."""
    first: dict[tuple[Any, ...], str] = {}
    shared = {}
    for name, tensor in state.items():
        if tensor.numel():
            place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
            if first.setdefault(place, name) != name:
                shared[name] = first[place]
    write_lit(path, ((name, tensor) for name, tensor in state.items() if name not in shared), shared, wrap, beside)


def save_owned(
    path: str | Path,
    model: GPT,
    owns: Callable[[str], bool],
    wrap: str = "",
    beside: Mapping[str, str] | None = None,
) -> None:
    """Writes what trains of a model, under the names of its state dict; of one that is shared out over ranks each
    tensor is gathered when its turn comes, so that the other ranks have to call `gather_owned`. See `write_lit`."""
    if not is_sharded(model):
        return save_state(path, {name: one for name, one in model.state_dict().items() if owns(name)}, wrap, beside)
    shared = {HEAD: EMBEDDING} if model.tied and owns(HEAD) else {}
    write_lit(path, _gathered(model, owns), shared, wrap, beside)


def gather_owned(model: GPT, owns: Callable[[str], bool]) -> None:
    """What the other ranks do while the first one is in `save_owned`."""
    for _ in _gathered(model, owns) if is_sharded(model) else ():
        pass


def _gathered(model: GPT, owns: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    tied = model.tied
    return saved_tensors(model, wanted=lambda name: owns(name) and not (tied and name == HEAD))


def write_lit(
    path: str | Path,
    tensors: Iterable[tuple[str, Tensor]],
    shared: Mapping[str, str] | None = None,
    wrap: str = "",
    beside: Mapping[str, str] | None = None,
) -> None:
    """Writes what `torch.load(path, mmap=True, weights_only=True)` reads as a dict of tensors.

    The file is the zip archive that `torch.save` makes: https://pytorch.org/docs/stable/notes/serialization.html.

    Args:
        path: The file; it appears when it is whole.
        tensors: Names and tensors, on any device, each taken when its turn comes.
        shared: Further names for tensors written here: new name → name in `tensors` (a tied head costs no room).
        wrap: The key of an outer dict to put the tensors in, `model` for instance; empty: none.
        beside: Texts in records of their own, by name: torch and other tools pass them over.

    Raises:
        LitGPTError: The disk is full, or `path` can't be written.
    """
    with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        entries: dict[str, _Entry] = {}
        for name, tensor in tensors:
            tensor = tensor.detach().cpu().contiguous()
            entries[name] = _Entry(_Storage(str(len(entries)), tensor.dtype, tensor.numel()), tensor.shape)
            _add_record(archive, f"data/{entries[name].storage.key}", _bytes_of(tensor))
            del tensor  # before the next one is made
        entries.update({name: entries[other] for name, other in (shared or {}).items()})
        pickled = io.BytesIO()
        _Pickler(pickled, protocol=2).dump({wrap: entries} if wrap else entries)
        _add_record(archive, "data.pkl", memoryview(pickled.getvalue()))
        for name, content in {"byteorder": sys.byteorder, "version": "3\n", **(beside or {})}.items():
            _add_record(archive, name, memoryview(content.encode()))


def _add_record(archive: zipfile.ZipFile, name: str, content: memoryview) -> None:
    info = zipfile.ZipInfo(f"archive/{name}")
    info.file_size = content.nbytes
    wide = content.nbytes >= ZIP64_BYTES
    assert archive.fp is not None
    header = 30 + len(info.filename) + (20 if wide else 0) + 4  # bytes; the last 4 are the padding's own header
    padding = -(archive.fp.tell() + header) % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"\0" * padding
    with archive.open(info, "w", force_zip64=wide) as record:
        record.write(content)


def _bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True)
class _Storage:
    """Stands in the pickle for a record of the archive."""

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class _Entry:
    """Stands in the pickle for a contiguous tensor that fills its storage."""

    storage: _Storage
    shape: torch.Size


class _Pickler(pickle.Pickler):
    """Pickles entries as `torch.save` pickles the tensors they stand for."""

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, _Storage):
            return None
        kind = _storage_kind(value.dtype)
        size = value.numel * (value.dtype.itemsize if kind is torch.UntypedStorage else 1)
        return ("storage", kind, value.key, "cpu", size)

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, _Entry):
            return NotImplemented
        storage, shape = value.storage, tuple(value.shape)
        stride = tuple(accumulate(reversed(shape[1:]), mul, initial=1))[::-1] if shape else ()
        common: tuple[Any, ...] = (storage, 0, shape, stride, False, OrderedDict())
        if _storage_kind(storage.dtype) is torch.UntypedStorage:
            return torch._utils._rebuild_tensor_v3, (*common, storage.dtype)
        return torch._utils._rebuild_tensor_v2, common


_STORAGE_KINDS = {
    torch.float64: torch.DoubleStorage, torch.float32: torch.FloatStorage, torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage, torch.int64: torch.LongStorage, torch.int32: torch.IntStorage,
    torch.int16: torch.ShortStorage, torch.int8: torch.CharStorage, torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}  # fmt: skip


def _storage_kind(dtype: torch.dtype) -> type:
    """The class that names `dtype` in a pickle; newer types have none of their own."""
    return _STORAGE_KINDS.get(dtype, torch.UntypedStorage)


# ------------------------------------------------------------------------------------------------ Hugging Face folder

_SAFETENSORS_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2", torch.int64: "I64", torch.int32: "I32",
    torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write_hf(
    folder: Path,
    config: Config,
    tensors: Tensors,
    source: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_tensor: TensorCallback | None = None,
) -> None:
    """Fills `folder` with all that `transformers`' `from_pretrained` needs.

    Args:
        folder: An existing folder; wrap the call in `atomic_folder` to have all of it or nothing.
        config: The model's configuration.
        tensors: Its weights under our names.
        source: The folder whose tokenizer and `config.json` belong to the model, if there is one.
        shard_bytes: Size of one weight file, at most.
        on_tensor: Called with each tensor that is written, under its new name.

    Raises:
        LitGPTError: The model has no counterpart in `transformers`.
    """
    table = WeightTable(config)
    write_hf_settings(folder, config, tensors.fetch(EMBEDDING).dtype, source)
    theirs = table.export_from(tensors)
    if on_tensor is not None:
        theirs = _with_callback(theirs, on_tensor)
    write_safetensors(folder, theirs, tensor_specs(table.export_from(_placeholders(tensors))), shard_bytes)


def write_hf_settings(
    folder: Path, config: Config, dtype: torch.dtype, source: Path | None = None, **further: Any
) -> None:
    """Writes all of a Hugging Face folder but the weights: `config.json`, tokenizer, generation settings.

    Args:
        folder: An existing folder.
        config: The model's configuration.
        dtype: Of the weights.
        source: The folder whose tokenizer and `config.json` belong to the model, if there is one.
        further: Other keys of `config.json`.

    Raises:
        LitGPTError: The model has no counterpart in `transformers`.
    """
    hf_config = hf_config_of(config, source)
    hf_config["torch_dtype"] = str(dtype).removeprefix("torch.")
    hf_config.pop("dtype", None)
    for name in (GENERATION_CONFIG, *TOKENIZER_FILES):
        if source is not None and (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if source is not None:
        _complete_tokenizer(folder, source, config, hf_config)
    _write_json(folder / HF_CONFIG_FILE, hf_config | further)


def _placeholders(tensors: Tensors) -> Tensors:
    """Tensors of the same shapes and types that take no memory (as on `meta`, without the time to import that)."""
    scalars = {dtype: torch.empty((), dtype=dtype) for dtype in {tensor.dtype for _, tensor in tensors}}

    def fetch(name: str) -> Tensor:
        tensor = tensors.fetch(name)
        return scalars[tensor.dtype].expand(tensor.shape)

    return Tensors(tensors.names, fetch)


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor will be."""

    shape: torch.Size
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.shape.numel() * self.dtype.itemsize


def tensor_specs(tensors: Tensors) -> dict[str, TensorSpec]:
    """The kinds of tensors, in their order."""
    return {name: TensorSpec(tensor.shape, tensor.dtype) for name, tensor in tensors}


def _with_callback(tensors: Tensors, on_tensor: TensorCallback) -> Tensors:
    def fetch(name: str) -> Tensor:
        tensor = tensors.fetch(name)
        on_tensor(name, tensor)
        return tensor

    return Tensors(tensors.names, fetch)


def hf_config_of(config: Config, source: Path | None = None) -> dict[str, Any]:
    """The `config.json` of a model: the one in `source` where that describes it, else the family's.

    Raises:
        LitGPTError: Neither would be read as this model.
    """
    written = config.family.write_hf(config)
    found = read_json(source / HF_CONFIG_FILE) if source is not None and (source / HF_CONFIG_FILE).is_file() else {}
    if is_composite(found):  # the language model alone is written
        text = text_settings(found)
        found = {key: text[key] for key in ("bos_token_id", "eos_token_id") if key in text}
    found.pop("quantization_config", None)
    if "tie_word_embeddings" in written:
        found["tie_word_embeddings"] = written["tie_word_embeddings"]
    if len(found) > 1 and not _unmatched_settings(config, found):
        return found
    lost = _unmatched_settings(config, written)
    if lost:
        raise LitGPTError(
            f"A {config.family.architectures[0]} can't have the model's {', '.join(lost)}: put the config.json of the "
            "model it comes from beside it, which tells its true architecture."
        )
    return {**written, **{key: found[key] for key in ("bos_token_id", "eos_token_id") if key in found}}


def _unmatched_settings(config: Config, hf_config: dict[str, Any]) -> list[str]:
    """The settings of a model that who reads this `config.json` would get wrong."""
    if config.rope_condense_ratio != 1 and config.rope_adjustments is None:  # two ways to say the same
        adjustments = {"factor": float(config.rope_condense_ratio)}
        config = replace(config, rope_condense_ratio=1, rope_adjustments=adjustments)
    try:
        read = Config.from_hf(hf_config, name=config.name).computation()
    except LitGPTError:  # it is of a model that is not known here: not of this one
        return ["architecture"]
    return [setting for setting, value in config.computation().items() if read[setting] != value]


def _complete_tokenizer(folder: Path, source: Path, config: Config, hf_config: dict[str, Any]) -> None:
    """Adds what `transformers` needs to open the tokenizer and to end its answers, where the source leaves it out."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return
    from litgpt.tokenizer import Tokenizer

    tokenizer = Tokenizer(source)
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    for key, value in ids.items():
        hf_config.setdefault(key, value)
    if not (folder / GENERATION_CONFIG).is_file():
        _write_json(folder / GENERATION_CONFIG, {key: value for key, value in ids.items() if value is not None})
    if not (folder / "tokenizer_config.json").is_file() and (folder / "tokenizer.json").is_file():
        content = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config.block_size}
        _write_json(folder / "tokenizer_config.json", content)


def write_safetensors(
    folder: Path, tensors: Tensors, specs: Mapping[str, TensorSpec], shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes `model.safetensors`, or shards of it with their index, one tensor at a time.

    Args:
        folder: An existing folder.
        tensors: The tensors, on any device.
        specs: What each of them is, for the header that comes first.
        shard_bytes: Size of one file, at most, unless a single tensor is larger.
    """
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name in tensors.names:
        room -= specs[name].nbytes
        if room < 0 and shards[-1]:
            shards.append([])
            room = shard_bytes - specs[name].nbytes
        shards[-1].append(name)
    if len(shards) == 1:
        return _write_shard(folder / "model.safetensors", shards[0], tensors.fetch, specs)
    where = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / file, names, tensors.fetch, specs)
        where.update(dict.fromkeys(names, file))
    total = sum(spec.nbytes for spec in specs.values())
    _write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def _write_shard(
    path: Path, names: Iterable[str], fetch: Callable[[str], Tensor], specs: Mapping[str, TensorSpec]
) -> None:
    """One safetensors file; the format: https://huggingface.co/docs/safetensors."""
    names = sorted(names, key=lambda name: -specs[name].dtype.itemsize)  # widest first keeps all of them aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + specs[name].nbytes
        dtype, shape = _SAFETENSORS_NAMES[specs[name].dtype], list(specs[name].shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in names:
            file.write(_bytes_of(fetch(name).detach().cpu().contiguous()))


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

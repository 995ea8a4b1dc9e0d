"""GGUF, llama.cpp's file format: opened like any other checkpoint, quantised tensors turned into numbers on reading.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. H: head size.
"""

from __future__ import annotations

import atexit
import itertools
import math
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from litgpt import families
from litgpt.checkpoint.gguf import GGUF_SUFFIX
from litgpt.checkpoint.gguf.tokenizer import write_tokenizer
from litgpt.checkpoint.weights import Tensors, WeightTable
from litgpt.config import Config, name_to_config
from litgpt.errors import LitGPTError, MissingFileError, MissingPackageError, closest, quoted
from litgpt.families.base import Family
from litgpt.families.gguf import ROPE_FREQUENCIES, Metadata
from litgpt.families.hf_config import MAX_LAYERS
from litgpt.model import GPT
from litgpt.model.rope import inverse_frequencies
from litgpt.reading import reading

if TYPE_CHECKING:
    import gguf
    import numpy as np

SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
"""What llama.cpp calls the parts of a large model."""
READABLE_TYPES = frozenset(
    """
    F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K MXFP4 TQ1_0 TQ2_0
    IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ3_XXS IQ3_S IQ4_NL IQ4_XS
    """.split()
)
"""Tensor types that are read; the quantised ones become float32, which holds their values exactly."""
UNQUANTIZED_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
EXPERTS = "_exps."
"""In the name of a tensor that holds all experts of a layer."""
LLAMA_3_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
"""Of Llama 3's scaling; Llama 4 has nothing between what is kept and what is stretched."""
LLAMA_4_SCALING = {**LLAMA_3_SCALING, "high_freq_factor": 1.0}


def gguf_package() -> Any:
    """The `gguf` package.

    Raises:
        LitGPTError: It isn't installed.
    """
    try:
        import gguf
    except ImportError:
        raise MissingPackageError("GGUF files need the package `gguf`: pip install 'litgpt[gguf]'.") from None
    return gguf


# ---------------------------------------------------------------------------------------------------------- one file


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in a file."""

    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    """Rows first; the file says it the other way round."""
    path: Path
    offset: int
    """Bytes before it."""
    dtype: np.dtype
    """Of its numbers, or of the bytes of its blocks."""
    stored_shape: tuple[int, ...]
    """`shape`, its last entry counted in bytes where there are blocks."""

    @property
    def data(self) -> np.ndarray:
        """Mapped anew each time, copy on write: whoever changes it changes neither the file nor what others see."""
        import numpy as np

        return np.memmap(self.path, self.dtype, "c", self.offset, self.stored_shape)

    def expert(self, number: int) -> StoredTensor:
        """The part of one expert."""
        nbytes = self.dtype.itemsize * math.prod(self.stored_shape[1:])
        offset = self.offset + number * nbytes
        return replace(self, shape=self.shape[1:], stored_shape=self.stored_shape[1:], offset=offset)


@dataclass(frozen=True)
class GGUFFile:
    """A model in GGUF form, opened: metadata read, tensors memory-mapped. A large one may lie in several files."""

    paths: tuple[Path, ...]
    metadata: Metadata
    tensors: dict[str, StoredTensor]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """By tensor name."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @cached_property
    def family(self) -> Family:
        """The family whose tables the file is read by.

        Raises:
            LitGPTError: None here has this architecture.
        """
        arch = self.metadata.get("general.architecture", "")
        fitting = {name: as_gguf for name, as_gguf in families.AS_GGUF.items() if as_gguf.arch == arch}
        special = [name for name, as_gguf in fitting.items() if self.metadata.get(f"{arch}.{as_gguf.only_with}")]
        plain = [name for name, as_gguf in fitting.items() if as_gguf.only_with is None]
        if not special and not plain:
            archs = sorted({as_gguf.arch for as_gguf in families.AS_GGUF.values()})
            raise LitGPTError(
                f"{self.paths[0]} holds a model of the architecture {quoted(arch)}, which is not read here; known: "
                f"{', '.join(archs)}.{closest(arch, archs)}"
            )
        return families.BY_NAME[(special or plain)[0]]

    @cached_property
    def config(self) -> Config:
        """The model's configuration.

        Raises:
            LitGPTError: The architecture is not known, or a setting that changes the computation.
        """
        with reading(self.paths[0], "no GGUF file of a model"):
            return self._config()

    def _config(self) -> Config:
        kind = self.metadata.get("general.type", "model")
        if kind != "model":
            raise LitGPTError(f"{self.paths[0]} holds no model but what GGUF calls {quoted(kind)}.")
        name = str(
            self.metadata.get("general.name") or SPLIT_NAME.sub(r"\1", self.paths[0].name).removesuffix(GGUF_SUFFIX)
        )
        factors = self.tensor(ROPE_FREQUENCIES) if ROPE_FREQUENCIES in self.tensors else None
        config = config_of(self.family, self.metadata, self.shapes, factors, name)
        config.tie_embeddings = self._tied()
        known = next((known for known in (name, name.replace(" ", "-")) if known in name_to_config), None)
        if known is None:
            return config
        row = Config.from_name(known)
        return row if row.computation() == config.computation() else replace(config, name=known)

    def _tied(self) -> bool:
        """Whether the head is the embedding: it is left out, or repeats it byte for byte."""
        head, embedding = self.tensors.get("output.weight"), self.tensors["token_embd.weight"]
        if head is None:
            return families.AS_GGUF[self.family.name].head_may_be_left_out
        if (head.kind, head.shape) != (embedding.kind, embedding.shape):
            return False
        ours, theirs = head.data, embedding.data
        return bool((ours[:1] == theirs[:1]).all()) and bool((ours == theirs).all())  # most differ in the first row

    @cached_property
    def dtype(self) -> torch.dtype:
        """The narrowest type that holds every tensor exactly: the matrices' own, if the norms' float32 fits it."""
        kinds = {tensor.kind.name for tensor in self.tensors.values()} - {"F32"}
        narrow = UNQUANTIZED_TYPES.get(next(iter(kinds)), torch.float32) if len(kinds) == 1 else torch.float32
        wide = [name for name, tensor in self.tensors.items() if tensor.kind.name == "F32"]
        fits = narrow != torch.float32 and all(self._fits_dtype(name, narrow) for name in wide)
        return narrow if fits else torch.float32

    def _fits_dtype(self, name: str, dtype: torch.dtype) -> bool:
        offset = norm_offset(self.config, name)
        stored = self.tensor(name)
        return torch.equal((stored - offset).to(dtype).float() + offset, stored)

    def tensor(self, name: str) -> Tensor:
        """A tensor as it is stored if torch has the type, else as float32.

        Raises:
            LitGPTError: It is of a type that is not read here.
        """
        stored = self.tensors[name]
        kind = stored.kind.name
        if kind not in READABLE_TYPES:
            raise LitGPTError(
                f"{quoted(name)} in {self.paths[0]} is of the type {kind}, which is not read here; known: "
                f"{', '.join(sorted(READABLE_TYPES))}."
            )
        if kind == "BF16":
            return torch.from_numpy(stored.data).view(torch.bfloat16)
        if kind in UNQUANTIZED_TYPES:
            return torch.from_numpy(stored.data)
        from gguf.quants import dequantize

        return torch.from_numpy(dequantize(stored.data, stored.kind))


def config_of(
    family: Family, metadata: Metadata, shapes: dict[str, tuple[int, ...]], factors: Tensor | None, name: str
) -> Config:
    """The configuration that a file's metadata and tensors describe; whether its head is tied is not settled here.

    Raises:
        LitGPTError: A setting that changes the computation is not known here, or a needed one is missing.
    """
    if "token_embd.weight" not in shapes:
        raise LitGPTError("The GGUF file has no tensor 'token_embd.weight'; it holds a tokenizer only.")
    arch = families.AS_GGUF[family.name].arch
    if metadata.get(f"{arch}.block_count", 0) > MAX_LAYERS:
        raise LitGPTError(f"The GGUF file has `{arch}.block_count` above {MAX_LAYERS}, more than any model has.")
    config = Config(
        **families.AS_GGUF[family.name].read(metadata, shapes, family.base), name=name, family_name=family.name
    )
    return config if factors is None else with_rope_factors(config, factors)


# ------------------------------------------------------------------------------------------------------------ opening


def open_gguf(path: Path) -> GGUFFile:
    """Opens a GGUF file, and with the first part of a split model all others.

    Raises:
        LitGPTError: It is damaged or no GGUF file, or a part is missing.
    """
    with reading(path, "damaged or no GGUF file"):
        path = path.resolve()
        about = path.stat()
    return _open_gguf(path, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=2)
def _open_gguf(path: Path, mtime_ns: int, size: int) -> GGUFFile:
    first = _read(path)
    count = first.metadata.get("split.count", 1)
    if count < 2:
        return first
    name = SPLIT_NAME.fullmatch(path.name)
    if name is None or int(name[3]) != count:
        raise LitGPTError(
            f"{path} is one of {count} parts; each must keep its name, ending in `-00001-of-{count:05}.gguf`."
        )
    paths = tuple(path.with_name(f"{name[1]}-{part:05}-of-{count:05}.gguf") for part in range(1, count + 1))
    missing = next((part for part in paths if not part.is_file()), None)
    if missing is not None:
        raise MissingFileError(f"{missing} is not there, one of the {count} parts of its model; download it again.")
    parts = [_read(part) for part in paths]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    return GGUFFile(paths, parts[0].metadata, tensors)


def _read(path: Path) -> GGUFFile:
    package = gguf_package()
    with reading(path, "damaged or no GGUF file"):
        reader = _reader_class()(path)
        if reader.byte_order != "I":
            raise LitGPTError(f"{path} is for machines of the other byte order, which is not read here.")
        metadata = {key: _field_value(field, package) for key, field in reader.fields.items()}
        tensors = {name: part for tensor in reader.tensors for name, part in _split_experts(tensor, path).items()}
        return GGUFFile((path,), metadata, tensors)


def _split_experts(tensor: gguf.ReaderTensor, path: Path) -> dict[str, StoredTensor]:
    """A tensor by its name; one that holds all experts of a layer as one an expert, `…_exps.0.weight` and so on."""
    shape, data = tuple(reversed(tensor.shape.tolist())), tensor.data
    stored = StoredTensor(tensor.tensor_type, shape, path, tensor.data_offset, data.dtype, data.shape)
    if shape and shape[0] > MAX_LAYERS and EXPERTS in tensor.name:
        raise ValueError(f"it has {shape[0]} experts")
    if EXPERTS not in tensor.name or len(shape) < (2 if tensor.name.endswith(".bias") else 3):
        return {tensor.name: stored}
    return {tensor.name.replace(EXPERTS, f"{EXPERTS}{number}."): stored.expert(number) for number in range(shape[0])}


def _field_value(field: gguf.ReaderField, package: Any) -> Any:
    value = field.contents()
    if field.types[:1] == [package.GGUFValueType.FLOAT32]:
        return float(str(field.parts[-1][0]))  # 1e-5, not 9.999999747378752e-06
    return value


@lru_cache
def _reader_class() -> type[gguf.GGUFReader]:
    package = gguf_package()
    kinds = package.GGUFValueType

    class Reader(package.GGUFReader):  # type: ignore[name-defined]
        """Takes a list out in one go, where the package makes arrays of each entry: a vocabulary has 10^5."""

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
            start = orig_offs + 12
            header = bytes(self.data[orig_offs:start])
            if raw_type != kinds.ARRAY or len(header) < 12 or self.byte_order != "I":
                return super()._get_field_parts(orig_offs, raw_type)
            code, count = struct.unpack("<IQ", header)
            kind = kinds(code)
            if kind == kinds.STRING:
                strings = _strings(memoryview(self.data), start, count)
                size = sum(8 + len(string) for string in strings)
                return 12 + size, strings, list(range(count)), [kinds.ARRAY, kind]
            values = self._get(start, self.gguf_scalar_to_np[kind], count)
            if len(values) < count:
                raise ValueError("it ends too early")
            return 12 + values.nbytes, [values], [0], [kinds.ARRAY, kind]

    return Reader


def _strings(data: memoryview, at: int, count: int) -> list[memoryview]:
    """`count` strings, each after its length in eight bytes."""
    strings = []
    for _ in range(count):
        end = at + 8 + int.from_bytes(data[at : at + 8], "little")
        if end > len(data):
            raise ValueError("it ends too early")
        strings.append(data[at + 8 : end])
        at = end
    return strings


# ------------------------------------------------------------------------------------------------------------ weights


def gguf_weights(file: GGUFFile) -> Tensors:
    """The tensors of a GGUF file under our names and in one type, `file.dtype`, each read when it is asked for.

    Raises:
        LitGPTError: The tensors are not those that the architecture needs.
    """
    wanted = GPT.skeleton(file.config).state_dict()
    heads = paired_heads(file.config)

    def fetch(name: str) -> Tensor:
        offset = norm_offset(file.config, name)
        with reading(file.paths[0], "no GGUF file of its architecture"):
            tensor = file.tensor(name)
            tensor = (tensor - offset if offset else tensor).to(file.dtype)
            return unpair(tensor, heads[name]) if name in heads else tensor

    return gguf_table(file.config).import_from(Tensors(tuple(file.tensors), fetch), wanted)


def gguf_table(config: Config) -> WeightTable:
    """The table that leads from GGUF's tensor names to ours and back."""
    family = config.family
    rules = families.AS_GGUF[family.name].rules(config)
    return WeightTable(config, replace(family, weights=rules, prefix="", renames=(), not_text=(), alternatives=()))


def paired_heads(config: Config) -> dict[str, int]:
    """Tensors whose rows are paired as llama.cpp's RoPE wants them, and how many heads each has."""
    return {
        f"{module.replace('{i}', str(layer))}.{parameter}": getattr(config, heads)
        for module, heads in families.AS_GGUF[config.family.name].paired
        for layer in range(config.n_layer)
        for parameter in ("weight", "bias")
    }


def norm_offset(config: Config, name: str) -> int:
    """What a file adds to a weight: norms that scale by one plus their weight are stored with the one."""
    return int(bool(config.norm_unit_offset) and name.endswith("norm.weight"))


def unpair(tensor: Tensor, heads: int) -> Tensor:
    """Rows of each head `0, H/2, 1, H/2 + 1, …` → `0, 1, 2, …`."""
    return tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(tensor.shape)


def pair(tensor: Tensor, heads: int) -> Tensor:
    """The inverse of `unpair`."""
    return tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(tensor.shape)


# -------------------------------------------------------------------------------------------------- stretched RoPE


def rope_factors(config: Config) -> Tensor | None:
    """What each of the plain frequencies is divided by, `(R/2,)`; None where the metadata says it all."""
    adjust = config.rope_adjustments or {}
    if set(adjust) <= {"factor"} or "beta_fast" in adjust:
        return None
    if set(adjust) != {"factor", *LLAMA_3_SCALING, "original_max_seq_len"}:
        raise LitGPTError(f"GGUF files here have no place for `rope_adjustments` with {', '.join(sorted(adjust))}.")
    return inverse_frequencies(replace(config, rope_adjustments=None)) / inverse_frequencies(config)


def with_rope_factors(config: Config, factors: Tensor) -> Config:
    """The config whose Llama 3 scaling gives these factors; the file holds nothing but them.

    Only the ratios of the scaling's three lengths count, so the usual ones are taken.

    Raises:
        LitGPTError: They are of another kind.
    """
    if torch.equal(factors, torch.ones_like(factors)):
        return config
    theta, factor, lengths = inverse_frequencies(config), round(float(factors.max()), 4), [8192]
    if factors.shape == theta.shape and factor > 1:
        smooth = (1 / factors - 1 / factor) / (1 - 1 / factor)  # 1: as it was, 0: divided by the whole factor
        blended = (smooth > 1e-4) & (smooth < 1 - 1e-4)
        low, high = LLAMA_3_SCALING.values()
        lengths += (2 * torch.pi / theta * (low + smooth * (high - low)))[blended].round().int().tolist()
    for length, kind in itertools.product(lengths, (LLAMA_3_SCALING, LLAMA_4_SCALING)):
        adjust = {"factor": factor, **kind, "original_max_seq_len": length}
        candidate = replace(config, rope_adjustments=adjust)
        made = rope_factors(candidate)
        if made is not None and made.shape == factors.shape and torch.allclose(made, factors, rtol=1e-4):
            return candidate
    raise LitGPTError(
        f"The GGUF file's {ROPE_FREQUENCIES} scales RoPE in a way that is not known here (not Llama 3's)."
    )


# ---------------------------------------------------------------------------------------------- seen as a folder


def as_folder(file: GGUFFile, beside: Sequence[Path] = ()) -> Path:
    """A temporary folder with what a checkpoint folder holds besides weights: configuration, tokenizer, chat template.

    Args:
        file: The opened file.
        beside: Files that lay beside it in its own folder; they come before what the file says.
    """
    return _as_folder(file.paths, tuple(beside), os.getpid())


@lru_cache
def _as_folder(paths: tuple[Path, ...], beside: tuple[Path, ...], owner: int) -> Path:
    file = open_gguf(paths[0])
    root = Path(tempfile.mkdtemp(prefix="litgpt-gguf-"))
    atexit.register(_remove, root, owner)
    folder = root / SPLIT_NAME.sub(r"\1", paths[0].name).removesuffix(GGUF_SUFFIX)
    folder.mkdir()
    file.config.save(folder)
    has_words = {"tokenizer.json", "tokenizer.model"} & {source.name for source in beside}
    with reading(paths[0], "no GGUF file with a tokenizer"):
        write_tokenizer(file.metadata, folder, families.AS_GGUF[file.family.name].pre_tokenizer, words=not has_words)
    for source in beside:
        shutil.copyfile(source, folder / source.name)
    return folder


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not in a process forked later
        shutil.rmtree(folder, ignore_errors=True)

"""The one reader of weights: every kind of checkpoint folder, lazily, memory-mapped, under our names."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from litgpt.checkpoint.dtypes import cast
from litgpt.checkpoint.gguf.reader import gguf_weights, open_gguf
from litgpt.checkpoint.layout import Checkpoint, find_checkpoint
from litgpt.checkpoint.page_cache import ReadOnce
from litgpt.checkpoint.quantized.keeping import keep_bits as keep_stored_bits
from litgpt.checkpoint.quantized.reader import dequantized
from litgpt.checkpoint.weights import Codes, Tensors, WeightTable, deinterleave_qkv, lazy
from litgpt.config import Config
from litgpt.errors import LitGPTError, MissingFileError, progress, quoted
from litgpt.families.quantization_config import StoredQuantization
from litgpt.model import GPT
from litgpt.model.moe import Experts
from litgpt.model.sharding import saved_tensors, shape_only
from litgpt.quantize import QuantizedLinear, replace_linears
from litgpt.reading import check_pickles, reading

HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"


def load_model(
    path: str | Path | Checkpoint,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
    keep_bits: bool = False,
) -> GPT:
    """The model in a checkpoint folder, in evaluation mode.

    It is built on `meta` and its tensors are assigned, so nothing is initialised in vain, and weights that need no
    change stay memory-mapped: they cost no memory of the process until they are written to.

    Args:
        path: A folder, or what `find_checkpoint` returned.
        device: Where the weights go.
        dtype: What floating-point weights are cast to; None: as stored.
        quantize: One of `litgpt.quantize.MODES`: linear layers are kept in few bits, and quantized one by one as they
            are read.
        keep_bits: Keep weights in the few bits that they are stored in, where there is a product for them.

    Raises:
        LitGPTError: The folder can't be read, or its tensors are not those of its model; the tensor is named.
    """
    checkpoint = path if isinstance(path, Checkpoint) else find_checkpoint(path)
    pages = ReadOnce(checkpoint.files) if quantize else None
    how = checkpoint.stored_quantization if checkpoint.kind == "hf" and not quantize else None
    weights = open_weights(checkpoint, tell=how is None or not keep_bits)
    model = GPT.skeleton(checkpoint.config)
    if pages is None and keep_bits and how is not None:
        dtype = dtype or torch.get_default_dtype()
        kept = keep_stored_bits(model, weights, torch.device(device), dtype)
        fill(model, weights, device, dtype, kept=kept)
        _tell_kept(checkpoint.dir, how, len(kept))
    elif pages is None:
        fill(model, weights, device, dtype)
    else:
        fill(model, _releasing_pages(weights, pages), device, dtype, quantize)
        pages.release()
    return model.eval()


def _releasing_pages(weights: Tensors, pages: ReadOnce) -> Tensors:
    """The same tensors; when the next one is asked for, the last has been dealt with."""
    last = 0

    def fetch(name: str) -> Tensor:
        nonlocal last
        pages.read(last)
        tensor = weights.fetch(name)
        last = tensor.nbytes
        return tensor

    return Tensors(weights.names, fetch)


def fill(
    model: GPT,
    weights: Tensors,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
    kept: Collection[str] = (),
) -> None:
    """Gives a model on `meta` its weights; `kept` are those that its layers have already.

    Raises:
        LitGPTError: A tensor is missing, surplus, or of another shape.
    """
    expected = (GPT.skeleton(model.config) if kept else model).state_dict()
    names = [name for name in weights.names if name not in kept]
    check_names([name for name in expected if name not in kept], names, tied=bool(model.config.tie_embeddings))
    room = {}
    if quantize:
        dtype = dtype or torch.get_default_dtype()
        room = replace_linears(model, quantize, dtype)
    state, experts = {}, expert_slots(model)
    for name in names:
        tensor = weights.fetch(name)
        check_shape(name, tensor, expected[name].shape)
        if name in room:
            room.pop(name).load_weight(tensor.to(device))
            continue
        if name in experts:  # at once: all of a model's would be in memory twice before they are stacked
            module, part, number = experts[name]
            module.load_expert(part, number, cast(name, tensor.to(device), dtype))
            continue
        state[name] = cast(name, tensor.to(device), dtype)
        if quantize and state[name] is tensor:
            state[name] = tensor.clone()  # else this one would keep the map of a whole file, which was read, in memory
    if HEAD in room:
        room.pop(HEAD).load_weight(state[EMBEDDING])
    elif model.config.tie_embeddings and not isinstance(model.lm_head, QuantizedLinear):
        state[HEAD] = state[EMBEDDING]
    model.load_state_dict(state, assign=True, strict=not quantize and not experts and not kept)
    if HEAD in state:
        model.tie()


def part_source(
    model: GPT,
    weights: Tensors,
    dtype: torch.dtype | None = None,
    saved_name: Callable[[str], str] = str,
    fresh: Callable[[str], bool] = str.isspace,
) -> Tensors:
    """What `litgpt.model.sharding.load_tensors` fills a model from that has no values yet.

    Args:
        model: With a method attached, or none.
        weights: Of the model before that.
        dtype: What floating-point weights are cast to.
        saved_name: The name in `weights` of a tensor of the model.
        fresh: Which tensors, by name in the model, `weights` needn't have; they start as their modules say.

    Raises:
        LitGPTError: A tensor is missing, surplus, or (when it is fetched) of another shape.
    """
    shapes = {name: one.shape for name, one in saved_tensors(model, shape_only)}
    origins = {name: saved_name(name) for name in shapes}
    if HEAD not in weights.names:
        origins = {name: EMBEDDING if origin == HEAD else origin for name, origin in origins.items()}
    wanted = [origin for name, origin in origins.items() if origin in weights.names or not fresh(name)]
    check_names(wanted, weights.names, tied=bool(model.config.tie_embeddings))
    origins = {name: origin for name, origin in origins.items() if origin in weights.names}

    def fetch(name: str) -> Tensor:
        tensor = weights.fetch(origins[name])
        check_shape(origins[name], tensor, shapes[name])
        return cast(name, tensor, dtype)

    def rows(name: str, start: int, count: int) -> Tensor:
        return cast(name, weights.rows(origins[name], start, count), dtype)

    return Tensors(tuple(origins), fetch, rows)


def expert_slots(model: GPT) -> dict[str, tuple[Experts, str, int]]:
    """By name in a state dict: the experts that a tensor belongs to, which part it is there, and whose."""
    return {
        f"{prefix}.{number}.{name}": (module, name, number)
        for prefix, module in model.named_modules()
        if isinstance(module, Experts)
        for name, part in module.parts.items()
        for number in range(len(getattr(module, part)))
    }


def check_names(expected: Iterable[str], found: Iterable[str], tied: bool = False) -> None:
    """Raises a LitGPTError that names the first missing or surplus tensor; a tied head may be absent."""
    expected, found = list(expected), set(found)
    for name in expected:
        if name not in found and not (tied and name == HEAD):
            raise LitGPTError(f"The checkpoint has no tensor {quoted(name)}.")
    surplus = sorted(found - set(expected))
    if surplus:
        raise LitGPTError(f"The checkpoint has a tensor {quoted(surplus[0])} that its model has no place for.")


def check_shape(name: str, tensor: Tensor, expected: Sequence[int]) -> None:
    """Raises a LitGPTError if a checkpoint's tensor has not the shape that the model needs."""
    if tensor.shape != tuple(expected):
        raise LitGPTError(f"The checkpoint's {name} has the shape {tuple(tensor.shape)}, not {tuple(expected)}.")


def open_weights(checkpoint: Checkpoint, tell: bool = True) -> Tensors:
    """The tensors of a checkpoint under our names, each read when it is asked for; `tell`: of widened ones.

    Whether head and embedding are tied is settled here, by what the files hold, and noted in `checkpoint.config`.

    Raises:
        LitGPTError: A file is damaged or of the wrong kind, or the tensors are not those the architecture needs.
    """
    config = checkpoint.config
    if checkpoint.kind == "litgpt":
        tensors = load_pth(checkpoint.files[0])
        config.tie_embeddings = tied_in(tensors, bool(config.tie_embeddings))
        return lazy(_rename_legacy(tensors, config))
    if checkpoint.kind == "gguf":
        return gguf_weights(open_gguf(checkpoint.files[0]))
    how = checkpoint.stored_quantization
    if how is not None and tell:
        _tell_widened(checkpoint.dir, how)
    theirs = read_files(checkpoint.files, how)
    wanted = GPT.skeleton(config).state_dict()
    table = WeightTable(config)
    left_out = sum(name.startswith(table.family.not_text) for name in theirs.names)
    if left_out:
        _tell_left_out(checkpoint.dir, left_out)
    if config.tie_embeddings and table.head_name() in theirs.names:
        embedding = table.import_from(theirs, [name for name in wanted if name != HEAD]).fetch(EMBEDDING)
        config.tie_embeddings = torch.equal(theirs.fetch(table.head_name()), embedding)
    return WeightTable(config).import_from(theirs, wanted)


@cache
def _tell_left_out(folder: Path, n_tensors: int) -> None:
    """Once a process."""
    progress(f"{folder}: {n_tensors} tensors for other inputs are left out; its language model is read.")


@cache
def _tell_widened(folder: Path, how: StoredQuantization) -> None:
    """Once a process."""
    progress(f"{folder}: its weights are stored by {how.description}, and read as {how.dtype}.")


@cache
def _tell_kept(folder: Path, how: StoredQuantization, count: int) -> None:
    """Once a process."""
    stay = f"{count} stay in their bits, the others are" if count else "they are"
    progress(f"{folder}: its weights are stored by {how.description}; {stay} read as plain numbers.")


def read_files(files: Iterable[Path], how: StoredQuantization | None = None) -> Tensors:
    """The tensors of Hugging Face weight files, `.safetensors` or `.bin`, under the names they have there; those in few
    bits as plain numbers.

    Args:
        files: The files.
        how: What the `config.json` beside them says of weights in few bits.
    """
    files = tuple(files)
    where: dict[str, Path] = {}
    opened: dict[Path, Tensors] = {}
    for file in files:
        opened[file] = _open_safetensors(file) if file.suffix == ".safetensors" else lazy(load_pth(file))
        where.update(dict.fromkeys(opened[file].names, file))
    stored = dequantized(Tensors(tuple(where), lambda name: opened[where[name]].fetch(name)), how)

    def fetch(name: str) -> Tensor:
        with reading(where.get(name, files[0]), "no file of weights"):
            return stored.fetch(name)

    def codes(name: str) -> Codes | None:
        with reading(where.get(name, files[0]), "no file of weights"):
            return stored.codes(name) if stored.codes else None

    return Tensors(stored.names, fetch, codes=codes if stored.codes else None)


def _open_safetensors(file: Path) -> Tensors:
    with reading(file, "damaged or no safetensors file"), ExitStack() as stack:
        handle = stack.enter_context(safe_open(file, framework="pt"))
        stack.pop_all()  # the tensors live in the open file's memory map
        return Tensors(tuple(handle.keys()), handle.get_tensor)


def load_pth(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a `.pth` or `.bin` file, memory-mapped; no code in it is ever run.

    `{"model": …}` is unwrapped and `_orig_mod.` dropped, as LitGPT writes both.

    Raises:
        LitGPTError: The file is damaged, holds something other than tensors, or there is none.
    """
    path = Path(path)
    content = load_pickle(path, mmap=True)
    tensors = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise LitGPTError(f"{path} holds no state dict of tensors.")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not _is_plain(tensor):
            raise LitGPTError(f"{path} holds {quoted(name)}, which is no plain tensor; make or download it again.")
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}


def load_pickle(path: Path, mmap: bool = False) -> Any:
    """What `torch.save` wrote, of tensors and plain values; no code in it is ever run.

    Raises:
        LitGPTError: There is no such file, it is damaged, or holds more than that.
    """
    with reading(path, "damaged: torch cannot read it", "make or download it again"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles of other makers, which are refused or read all the same
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=check_pickles(path) and mmap)
        except pickle.UnpicklingError:
            raise LitGPTError(
                f"{path} holds more than tensors (or is damaged), and is not opened because that could run code."
            ) from None


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is numbers in memory, each of its own."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_nested:
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()


def trainer_weights(path: Path, names: list[str]) -> dict[str, Tensor]:
    """The weights called `names` in a checkpoint of Lightning's Trainer, whatever attribute held the model.

    Raises:
        LitGPTError: The file can't be read, or lacks one of them.
    """
    if not path.exists():
        raise MissingFileError(f"There is no Trainer checkpoint {path}.")
    with reading(path, "no Trainer checkpoint", "give one that the Trainer wrote"):
        state = load_pickle(path)["state_dict"]
        if not all(isinstance(name, str) and isinstance(state[name], Tensor) for name in state):
            raise LitGPTError(f"{path} holds other things than tensors as its state_dict.")
    found = {}
    for name in names:
        matches = [key for key in state if key == name or key.endswith(f".{name}")]
        if not matches:
            raise LitGPTError(f"{path} has no tensor {quoted(name)}.")
        found[name] = state[min(matches, key=len)]
    return found


def tied_in(tensors: Mapping[str, Tensor], said: bool) -> bool:
    """Whether the head is the embedding: one storage says so; two equal ones are how LitGPT writes it, where the
    configuration says (`said`) that the model's are one."""
    head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
    if head is None or embedding is None:
        return said
    if head.data_ptr() == embedding.data_ptr():
        return True
    return said and torch.equal(head, embedding)


def _rename_legacy(tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Older LitGPT files have `attn.attn`, with rows head by head, where `attn.qkv` is now."""
    return {
        name.replace(".attn.attn.", ".attn.qkv."): deinterleave_qkv(tensor, config) if ".attn.attn." in name else tensor
        for name, tensor in tensors.items()
    }

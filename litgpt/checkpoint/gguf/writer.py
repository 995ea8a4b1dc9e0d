"""Writes a checkpoint as one GGUF file: metadata, tokenizer, chat template and tensors, for llama.cpp and its kin."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from litgpt import families
from litgpt.checkpoint.atomic import atomic_file, require_space
from litgpt.checkpoint.gguf.k_quants import ENCODERS, SMALL_BLOCK, quantize_rows
from litgpt.checkpoint.gguf.reader import (
    EXPERTS,
    config_of,
    gguf_package,
    gguf_table,
    norm_offset,
    pair,
    paired_heads,
    rope_factors,
)
from litgpt.checkpoint.gguf.tokenizer import tokenizer_metadata
from litgpt.checkpoint.layout import Checkpoint, find_checkpoint
from litgpt.checkpoint.reader import EMBEDDING, HEAD, check_names, check_shape, open_weights
from litgpt.checkpoint.weights import Tensors
from litgpt.config import Config
from litgpt.errors import LitGPTError, closest, quoted
from litgpt.families.gguf import ROPE_FREQUENCIES, Metadata
from litgpt.model import GPT
from litgpt.model.rope import attention_factor, attention_scale, inverse_frequencies

if TYPE_CHECKING:
    import gguf

FILE_TYPES = {
    "f32": "ALL_F32",
    "f16": "MOSTLY_F16",
    "bf16": "MOSTLY_BF16",
    "q8_0": "MOSTLY_Q8_0",
    "q6_k": "MOSTLY_Q6_K",
    "q5_k_m": "MOSTLY_Q5_K_M",
    "q4_k_m": "MOSTLY_Q4_K_M",
}
"""What the matrices can be written as ↔ what GGUF calls such a file."""
KEPT_IN_FP32 = ("position_embd.weight", "ffn_gate_inp.weight")
"""Ends of the names of matrices that stay float32, as in llama.cpp's own files; so does everything of one dimension."""
TOKENS, OUTPUT = "token_embd.weight", "output.weight"
VALUES = ("attn_v", "attn_qkv", "attn_kv_b")
"""Parts of a layer that hold the values' projection."""
MIXTURES = {"q4_k_m": ("q4_k", "q6_k"), "q5_k_m": ("q5_k", "q6_k"), "q6_k": ("q6_k", "q6_k")}
"""Kinds of file that mix types of blocks: what most tensors get, and what those get that need more bits."""
NARROWER_BLOCKS = {"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}
"""Types of blocks of 256 ↔ the ones of 32 that take their place in rows which 256 doesn't divide."""
EXPERT = re.compile(r"_exps\.\d+\.")
"""In the name of an expert's part of a tensor."""


def write_gguf(
    checkpoint: Checkpoint | str | Path,
    path: str | Path,
    dtype: str = "f16",
    importance: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes a model with its tokenizer as one GGUF file, one tensor in memory at a time.

    Args:
        checkpoint: A checkpoint, or the path of one.
        path: The file; it appears when it is whole.
        dtype: Type of the matrices: `f16`, `bf16`, `f32`, or `q8_0` (8 bits a weight and a scale for every 32; where 32
            doesn't divide a row's length, `f16`), or a mixture of block types: `q4_k_m`, `q5_k_m`, `q6_k`.
        importance: By our name of a weight, `(I,)`: the mean square of each of its inputs, so that blocks are rounded
            where it matters least (llama.cpp's importance matrix).

    Raises:
        LitGPTError: GGUF has no place for the model or its tokenizer, a weight is too large for the type, or the file
            can't be written.
    """
    package = gguf_package()
    if dtype not in FILE_TYPES:
        raise LitGPTError(
            f"A GGUF file is not written as {quoted(dtype)}; known: {', '.join(FILE_TYPES)}."
            f"{closest(dtype, FILE_TYPES)}"
        )
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else find_checkpoint(checkpoint)
    weights = open_weights(checkpoint)
    config = checkpoint.config
    if config.family.name not in families.AS_GGUF:
        names = ", ".join(families.AS_GGUF)
        raise LitGPTError(
            f"Models of the family {quoted(config.family.name)} are not written as GGUF here; known: {names}."
        )
    tensors, shapes = export_tensors(config, weights)
    metadata = model_metadata(config, shapes) | tokenizer_metadata(checkpoint.dir, int(config.padded_vocab_size or 0))
    metadata["general.file_type"] = int(package.LlamaFileType[FILE_TYPES[dtype]])
    require_space(path, checkpoint.nbytes, f"Writing {path}")
    with atomic_file(path) as temporary:
        writer = package.GGUFWriter(temporary, families.AS_GGUF[config.family.name].arch)
        try:
            for key, value in metadata.items():
                writer.add_key_value(key, value, *_value_type(value, package))
            kinds = {name: tensor_type(name, shapes, dtype, config) for name in tensors.names}
            _write_tensors(writer, tensors, shapes, kinds, _by_gguf_name(config, importance or {}))
        finally:
            writer.close()


def export_tensors(config: Config, weights: Tensors) -> tuple[Tensors, dict[str, tuple[int, ...]]]:
    """A model's tensors under GGUF's names, and their shapes.

    Raises:
        LitGPTError: A tensor is missing, surplus, or of another shape than the model's.
    """
    skeleton = GPT.skeleton(config).state_dict()
    check_names(skeleton, weights.names, tied=bool(config.tie_embeddings))
    if config.tie_embeddings and not families.AS_GGUF[config.family.name].head_may_be_left_out:
        config, tied = replace(config, tie_embeddings=False), weights.fetch
        names = tuple(dict.fromkeys((*weights.names, HEAD)))
        weights = Tensors(names, lambda name: tied(EMBEDDING if name == HEAD else name))
    table, heads = gguf_table(config), paired_heads(config)
    found = table.export_from(weights)
    expected = table.export_from(Tensors(weights.names, skeleton.__getitem__))
    shapes = {name: tuple(tensor.shape) for name, tensor in expected}
    experts: dict[str, list[str]] = {}
    for name in [name for name in shapes if EXPERTS in name]:
        experts.setdefault(EXPERT.sub(EXPERTS, name), []).append(name)
    factors = rope_factors(config)
    if factors is not None:
        shapes[ROPE_FREQUENCIES] = tuple(factors.shape)

    def fetch(name: str) -> Tensor:
        if name == ROPE_FREQUENCIES and factors is not None:
            return factors
        if name in experts:
            return torch.stack([fetch(part) for part in experts[name]])
        tensor = found.fetch(name)
        check_shape(name, tensor, shapes[name])
        offset = norm_offset(config, name)
        tensor = tensor.float() + offset if offset else tensor
        return pair(tensor, heads[name]) if name in heads else tensor

    whole = {name: (len(parts), *shapes[parts[0]]) for name, parts in experts.items()}
    return Tensors((*(name for name in shapes if EXPERTS not in name), *whole), fetch), shapes | whole


def model_metadata(config: Config, shapes: Mapping[str, tuple[int, ...]]) -> Metadata:
    """What a file says of the model, checked by reading it back.

    Raises:
        LitGPTError: GGUF cannot say something that the config does.
    """
    family = config.family
    metadata = families.AS_GGUF[family.name].write(config)
    metadata |= {"general.type": "model", "general.name": config.name or "unnamed", "general.quantization_version": 2}
    try:
        again = config_of(family, metadata, dict(shapes), rope_factors(config), config.name)
    except LitGPTError as error:
        arch = families.AS_GGUF[family.name].arch
        raise LitGPTError(f"This model can't be written as GGUF's architecture {quoted(arch)}: {error}") from None
    ours, theirs = _computation(config), _computation(again)
    lost = [key for key in ours if not _same(ours[key], theirs[key])]
    if lost:
        raise LitGPTError(
            f"GGUF's architecture {quoted(families.AS_GGUF[family.name].arch)} has no place for `{lost[0]}`: "
            f"{quoted(ours[lost[0]])}, so this model cannot be written as such a file."
        )
    return metadata


def _computation(config: Config) -> dict[str, Any]:
    """What is computed, with the same things said in the same way."""
    values = config.computation()
    del values["tie_embeddings"], values["rope_condense_ratio"]
    frequencies = inverse_frequencies(config) / config.rope_condense_ratio
    values["rope_adjustments"] = [*frequencies.tolist(), attention_factor(config), attention_scale(config)]
    values["rotary_percentage"] = config.rope_n_elem
    values["attention_scores_scalar"] = config.attention_scores_scalar or config.head_size
    return values


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return math.isclose(a, b, rel_tol=1e-6) if isinstance(a, float) and isinstance(b, float) else bool(a == b)


def _value_type(value: Any, package: Any) -> tuple[Any, ...]:
    """How a value is stored: whole numbers without sign, lists with the type of what is in them."""
    kinds = package.GGUFValueType
    if isinstance(value, list):
        return kinds.ARRAY, kinds.get_type(value[0])
    return (kinds.UINT32 if type(value) is int else kinds.get_type(value),)


# ------------------------------------------------------------------------------------------------------------ tensors


def _write_tensors(
    writer: gguf.GGUFWriter,
    tensors: Tensors,
    shapes: Mapping[str, tuple[int, ...]],
    kinds: Mapping[str, str],
    importance: Mapping[str, Tensor],
) -> None:
    """First all names, then one tensor after another."""
    package = gguf_package()
    for name, kind in kinds.items():
        stored = package.GGMLQuantizationType[kind.upper()]
        block, nbytes = package.GGML_QUANT_SIZES[stored]  # numbers in a block, and what it takes
        size = math.prod(shapes[name]) // block * nbytes
        writer.add_tensor_info(name, shapes[name], np.dtype(np.float32), size, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, kind in kinds.items():
        writer.write_tensor_data(encode_tensor(name, tensors.fetch(name), kind, importance.get(name)))


def _by_gguf_name(config: Config, importance: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Importances under the names of the tensors that a weight becomes."""
    table = gguf_table(config)
    return {theirs: one for ours, one in importance.items() for theirs in table.sources(ours)}


def tensor_type(name: str, shapes: Mapping[str, tuple[int, ...]], dtype: str, config: Config) -> str:
    """The type that a tensor gets in a file whose matrices are `dtype`."""
    shape = shapes[name]
    if len(shape) == 1 or name.endswith((*KEPT_IN_FP32, ".bias")):
        return "f32"
    if dtype not in MIXTURES:
        return "f16" if dtype == "q8_0" and shape[-1] % SMALL_BLOCK else dtype
    kind = _type_in_mixture(name, shapes, dtype, config)
    if shape[-1] % ENCODERS[kind].block:
        kind = NARROWER_BLOCKS[kind]
    return "f16" if shape[-1] % SMALL_BLOCK else kind


def _type_in_mixture(name: str, shapes: Mapping[str, tuple[int, ...]], dtype: str, config: Config) -> str:
    """llama.cpp's choice: more bits for the head, and for values and the MLP's output in the first and last eighth of
    the layers and in every third between; with eight experts also for the rest of attention, which is small there."""
    usual, finer = MIXTURES[dtype]
    if name == OUTPUT or (name == TOKENS and OUTPUT not in shapes):
        return "q8_0" if shapes[name][-1] % ENCODERS[usual].block else "q6_k"
    if dtype not in ("q4_k_m", "q5_k_m"):
        return usual
    part = name.split(".")[-2].removesuffix("_exps")
    if part in VALUES:
        kin = sorted(_layer(other) for other in shapes if other.split(".")[-2:] == [part, "weight"])
        kind = finer if _needs_more_bits(kin.index(_layer(name)), len(kin)) else usual
        if config.n_layer == 80 and (config.n_query_groups or 0) < config.n_head and kind == "q4_k":
            kind = "q5_k"
        return "q8_0" if config.n_expert == 8 else kind
    if part == "ffn_down":
        return finer if _needs_more_bits(_layer(name), config.n_layer) else usual
    if config.n_expert == 8 and part == "attn_k":
        return "q8_0"
    return "q5_k" if config.n_expert == 8 and part == "attn_output" and dtype == "q4_k_m" else usual


def _layer(name: str) -> int:
    return int(name.split(".")[1])


def _needs_more_bits(layer: int, count: int) -> bool:
    return layer < count // 8 or layer >= 7 * count // 8 or (layer - count // 8) % 3 == 2


def encode_tensor(name: str, tensor: Tensor, kind: str, importance: Tensor | None = None) -> np.ndarray:
    """A tensor's bytes in the file.

    Raises:
        LitGPTError: A weight is larger than the type can hold.
    """
    tensor = tensor.detach().cpu()
    if kind == "bf16":
        return tensor.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    if kind == "f16":
        narrow = tensor.half()
        if not torch.isfinite(narrow).all() and torch.isfinite(tensor).all():
            raise LitGPTError(f"A weight of {quoted(name)} is too large for float16; write the file as bf16 or q8_0.")
        return narrow.contiguous().numpy()
    if kind in ENCODERS:
        return quantize_rows(tensor.flatten(0, -2), kind, importance).unflatten(0, tensor.shape[:-1]).numpy()
    return tensor.float().contiguous().numpy()

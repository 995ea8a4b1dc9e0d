"""What a `config.json` says of weights in few bits: by which method, and what their tensors leave out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from litgpt.errors import LitGPTError, closest, quoted

Settings = Mapping[str, Any]
"""The content of `quantization_config`."""
TEXT_CONFIGS = ("text_config", "llm_config")
"""Where a model with other inputs may say it, of its language model."""
DTYPES = ("bfloat16", "float16", "float32")


@dataclass(frozen=True)
class StoredQuantization:
    """How the weights of a Hugging Face folder are stored."""

    method: str
    """The `quant_method`."""
    description: str
    """In words, for the user."""
    dtype: str = "bfloat16"
    """What the model computes in."""
    bits: tuple[int, ...] = ()
    """Of a weight; empty: the tensors say it."""
    group_size: int | None = None
    """Columns that share a scale; None: the tensors say it."""
    block: tuple[int, int] = (128, 128)
    """Rows and columns of a block that shares a scale."""
    zeros_less_one: bool = False
    """Whether zero points are stored less one (GPTQ's first version)."""


def stored_quantization(hf_config: Settings) -> StoredQuantization | None:
    """How a `config.json` says that weights are stored; None: as plain numbers.

    Raises:
        LitGPTError: In a way that is not read here; the sentence names it.
    """
    texts = [hf_config[key] for key in TEXT_CONFIGS if isinstance(hf_config.get(key), Mapping)]
    how = next((part["quantization_config"] for part in (hf_config, *texts) if part.get("quantization_config")), None)
    if how is None:
        return None
    if not isinstance(how, Mapping):
        raise LitGPTError(f"config.json has `quantization_config`: {quoted(how)}, which is no list of settings.")
    if how.get("quant_method", "none") == "none":
        return None
    kinds = (part.get(key) for part in (*texts, hf_config) for key in ("dtype", "torch_dtype"))
    dtype = next((str(kind).removeprefix("torch.") for kind in kinds if kind is not None), "bfloat16")
    found = _settings_of(how)
    return StoredQuantization(**{**vars(found), "dtype": dtype if dtype in DTYPES else "bfloat16"})


def _settings_of(how: Settings) -> StoredQuantization:
    """The settings of one `quantization_config`, but for the dtype.

    Raises:
        LitGPTError: They are not known here.
    """
    method = str(how.get("quant_method", "")).lower()
    if method not in METHODS:
        raise LitGPTError(
            f"The weights are quantized by {quoted(how.get('quant_method'))}, which is not read here; read are "
            f"{', '.join(METHODS)}, and GGUF files.{closest(method, METHODS)}"
        )
    try:
        return METHODS[method](how)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, LitGPTError):
            raise
        raise LitGPTError(f"config.json has a `quantization_config` that {method} can't have ({error}).") from None


def _refuse(what: str, known: str) -> LitGPTError:
    return LitGPTError(f"The weights are quantized with {what}, which is not read here; read are {known}.")


def _groups(size: int | None) -> str:
    return f" in groups of {size}" if size else " with a scale a row"


def _gptq(how: Settings) -> StoredQuantization:
    bits, size = int(how["bits"]), int(how.get("group_size") or -1)
    layout = str(how.get("checkpoint_format") or how.get("format") or "gptq")
    if how.get("is_marlin_format"):
        layout = "marlin"
    if bits not in (2, 3, 4, 8):
        raise _refuse(f"GPTQ in {bits} bits", "2, 3, 4 and 8")
    if layout not in ("gptq", "gptq_v2") or how.get("pack_dtype", "int32") != "int32":
        raise _refuse(f"GPTQ's layout {quoted(layout)}", "'gptq' and 'gptq_v2' of 32-bit words")
    group_size = size if size > 0 else None
    order = ", columns ordered by activation" if how.get("desc_act") else ""
    words = f"GPTQ, {bits} bits{_groups(group_size)}{order}"
    return StoredQuantization("gptq", words, bits=(bits,), group_size=group_size, zeros_less_one=layout == "gptq")


def _awq(how: Settings) -> StoredQuantization:
    bits, size = (
        int(how.get("bits") or how.get("w_bit") or 4),
        int(how.get("group_size") or how.get("q_group_size", 128)),
    )
    layout = str(how.get("version") or how.get("format") or "gemm").lower()
    if bits != 4 or layout != "gemm":
        raise _refuse(f"AWQ in {bits} bits as {quoted(layout)}", "4 bits as 'gemm'")
    group_size = size if size > 0 else None
    return StoredQuantization("awq", f"AWQ, 4 bits{_groups(group_size)}", bits=(4,), group_size=group_size)


def _auto_round(how: Settings) -> StoredQuantization:
    layout = str(how.get("packing_format", "auto_round:auto_gptq"))
    if layout == "auto_round:auto_awq":
        return _awq({**how, "version": "gemm"})
    if layout != "auto_round:auto_gptq":
        raise _refuse(f"AutoRound's layout {quoted(layout)}", "'auto_round:auto_gptq' and 'auto_round:auto_awq'")
    return _gptq({**how, "checkpoint_format": "gptq"})


COMPRESSED = (
    *("dense", "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp8-quantized"),
)
"""The formats of compressed-tensors that are read."""


def _compressed_tensors(how: Settings) -> StoredQuantization:
    groups = [group for group in (how.get("config_groups") or {}).values() if group.get("weights")]
    formats = {str(part["format"]) for part in (how, *groups) if part.get("format")}
    sparse = (how.get("sparsity_config") or {}).get("format")
    if sparse not in (None, "dense"):
        formats.add(str(sparse))
    if (how.get("transform_config") or {}).get("config_groups"):
        formats.add("rotated weights")
    for kind in sorted(formats - set(COMPRESSED)):
        raise _refuse(f"compressed-tensors' {quoted(kind)}", ", ".join(COMPRESSED))
    weights = [group["weights"] for group in groups]
    blocks = {tuple(map(int, one["block_structure"])) for one in weights if one.get("block_structure")}
    if len(blocks) > 1:
        raise _refuse("compressed-tensors in blocks of several sizes", "those of one size")
    bits = tuple(sorted({int(one["num_bits"]) for one in weights}))
    rows, columns = blocks.pop() if blocks else (128, 128)
    kinds = " and ".join(
        dict.fromkeys(
            f"{one['num_bits']}-bit {one.get('type', 'int')} by {one.get('strategy', 'tensor')}" for one in weights
        )
    )
    words = f"compressed-tensors {how.get('format', '')}, {kinds}"
    return StoredQuantization("compressed-tensors", words, bits=bits, block=(rows, columns))


def _bitsandbytes(how: Settings) -> StoredQuantization:
    four = how.get("load_in_4bit") or how.get("_load_in_4bit")
    kind = str(how.get("bnb_4bit_quant_type", "fp4")).upper() if four else "INT8"
    return StoredQuantization("bitsandbytes", f"bitsandbytes {kind}")


def _fp8(how: Settings) -> StoredQuantization:
    block = how.get("weight_block_size")
    if block is None:
        return StoredQuantization("fp8", "FP8 with a scale a tensor")
    rows, columns = map(int, block)
    if rows < 1 or columns < 1:
        raise _refuse(f"FP8 in blocks of {quoted(block)}", "those of one row and column or more")
    return StoredQuantization("fp8", f"FP8 in blocks of {rows} by {columns}", block=(rows, columns))


def _modelopt(how: Settings) -> StoredQuantization:
    kind = str(how.get("quant_algo"))
    if kind not in ("FP8", "NVFP4", "MIXED_PRECISION"):
        raise _refuse(f"modelopt's {quoted(kind)}", "FP8 and NVFP4")
    return StoredQuantization("modelopt", f"modelopt {kind}")


def _named(method: str, words: str) -> Callable[[Settings], StoredQuantization]:
    return lambda how: StoredQuantization(method, words)


METHODS: dict[str, Callable[[Settings], StoredQuantization]] = {
    "gptq": _gptq,
    "awq": _awq,
    "auto-round": _auto_round,
    "compressed-tensors": _compressed_tensors,
    "bitsandbytes": _bitsandbytes,
    "fp8": _fp8,
    "fbgemm_fp8": _named("fbgemm_fp8", "FP8 with a scale a row"),
    "mxfp4": _named("mxfp4", "MXFP4"),
    "modelopt": _modelopt,
    "torchao": _named("torchao", "torchao's tensors"),
}
"""`quant_method` ↔ what reads its other settings; `checkpoint.quantized.reader` has the formats."""

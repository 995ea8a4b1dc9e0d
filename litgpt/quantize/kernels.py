"""torch's own products with weights of 8 and 4 bits. Their names are private to torch, so they stand here and nowhere
else.

M: rows of the input, O, I: `out_features`, `in_features`, G: groups of `GROUP` columns that share a scale and a zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from litgpt.errors import LitGPTError, UnsupportedError
from litgpt.kernels.linear import float32_scratch, has_bfloat16, matmul_dtype

GROUP = 32
"""Columns of a row that share a scale and a zero; of the sizes that torch's kernels know, the one that loses least."""
CHUNK = 2**20
"""Weights that are cast or dequantized at a time: what fits into a cache, and no large memory to fault in."""
FEW_INT8, FEW_INT4 = 12, 96
"""Up to so many rows the CPU's kernels, made for one, are faster than to cast the weight and multiply. With short
vectors (AVX2) those in float32 are not, but for a single row of 4 bits."""

CPU_KERNELS = ("_weight_int8pack_mm", "_weight_int4pack_mm_for_cpu", "_convert_weight_to_int4pack_for_cpu")
CUDA_KERNELS = ("_weight_int4pack_mm", "_convert_weight_to_int4pack")


def check_kernels(mode: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises a LitGPTError where this torch or this device has no product with `int8` or `int4` weights in `dtype`."""
    wanted = {"cpu": CPU_KERNELS, "cuda": CUDA_KERNELS}.get(device.type, ()) if mode == "int4" else ()
    wanted = CPU_KERNELS[:1] if mode == "int8" and device.type == "cpu" else wanted
    absent = [name for name in wanted if not hasattr(torch.ops.aten, name)]
    if absent:
        raise LitGPTError(f"--quantize {mode} needs torch 2.11 or newer: {torch.__version__} has no {absent[0]}.")
    if mode == "int4" and device.type not in ("cpu", "cuda"):
        raise UnsupportedError(f"--quantize int4 has no kernel for {device.type}; use --quantize int8, or the CPU.")
    if mode == "int4" and device.type == "cuda":
        fits = dtype == torch.bfloat16 and torch.cuda.get_device_capability(device) >= (8, 0)
        if not fits:
            raise LitGPTError("On CUDA, --quantize int4 needs compute capability 8.0 and --precision bf16-true.")


def saves_time(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products with few bits take less time, not memory alone, than plain ones; a CPU's in float32 take two to
    five times as long."""
    return device.type != "cpu" or dtype != torch.float32


# --------------------------------------------------------------------------------------------------------- int8


def slow_kernels(rows: Tensor) -> bool:
    """Whether the CPU's kernels are slow for rows of this dtype."""
    return rows.dtype == torch.float32 and not has_bfloat16()


def int8_product(rows: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """`(M, I)` times the weight `(O, I)` int8, whose rows have a scale `(O,)` each → `(M, O)`."""
    # The kernel loads 16 columns at a time, beyond the end of rows that are no multiple of that.
    few = 0 if slow_kernels(rows) else FEW_INT8
    if rows.device.type == "cpu" and rows.size(0) <= few and rows.size(1) % 16 == 0:
        return torch.ops.aten._weight_int8pack_mm(rows, weight, scale)
    if rows.device.type != "cpu":  # whose memory is as fast for all as for a part, and each launch takes its time
        return F.linear(rows, weight.to(rows.dtype)).mul_(scale)
    step, x = max(1, CHUNK // weight.size(1)), rows.to(matmul_dtype(rows))
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    parts = [F.linear(x, float32_scratch(part) if on_cpu else part.to(x.dtype)) for part in weight.split(step)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).mul_(scale).to(rows.dtype)


# --------------------------------------------------------------------------------------------------------- int4


def int4_fits(in_features: int, out_features: int) -> bool:
    """Whether the kernels take a weight of this shape."""
    return in_features % GROUP == 0 and out_features % 16 == 0


def pack_int4(codes: Tensor) -> Tensor:
    """Codes 0 … 15 `(O, I)` int32, O a multiple of 16, as the kernel of their device wants them."""
    if codes.device.type == "cpu":
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
    tiles = next(tiles for tiles in (8, 4, 2) if codes.size(1) % (tiles * 16) == 0)
    return torch.ops.aten._convert_weight_to_int4pack(pairs, tiles)


def int4_product(rows: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    """`(M, I)` times a packed weight with scales and zeros `(G, O, 2)` → `(M, O)`."""
    if rows.device.type != "cpu":
        return torch.ops.aten._weight_int4pack_mm(rows, packed, GROUP, scales)
    few = 1 if slow_kernels(rows) else FEW_INT4
    if rows.size(0) > few and scales.size(1) % block_rows() == 0:
        return _upcast_product(rows, packed, scales)
    return torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, GROUP, scales)


def int4_dequantized(packed: Tensor, scales: Tensor) -> Tensor:
    """The weight `(O, I)` in the dtype of the scales."""
    columns = scales.size(0) * GROUP
    if packed.device.type == "cpu" and scales.size(1) % block_rows() == 0:
        halves = [torch.stack(pair, dim=2).flatten(1) for pair in _halves(packed, scales)]  # (I, rows) each
        return torch.cat(halves, dim=1).t().contiguous()
    # No other way to read what a kernel keeps to itself: what it makes of the unit vectors.
    few = FEW_INT4 if packed.device.type == "cpu" else columns
    parts = torch.eye(columns, dtype=scales.dtype, device=scales.device).split(few)
    return torch.cat([int4_product(part, packed, scales) for part in parts]).t().contiguous()


@cache
def block_rows() -> int:
    """Rows of a block in the CPU's packed layout, which depends on its vector width: low nibbles have the first half
    of a block's rows, high nibbles the second, column by column. Where the layout is another one: a number that divides
    nothing."""
    codes = (torch.arange(64)[:, None] * 7 + torch.arange(32) * 5).remainder(16).to(torch.int32)  # (64, 32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1).flatten()
    for rows in (64, 32):
        bytes_ = packed.view(64 // rows, 32, rows // 2)
        unpacked = torch.cat((bytes_ & 15, bytes_ >> 4), dim=2).transpose(1, 2).reshape(64, 32)
        if torch.equal(unpacked.int(), codes):
            return rows
    return 2**62


def _upcast_product(rows: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    parts, x = [], rows.to(matmul_dtype(rows))
    for pair in _halves(packed, scales):
        halves = (half.flatten(1).to(x.dtype) for half in pair)
        products = [(x @ half).view(len(rows), -1, block_rows() // 2) for half in halves]  # (M, B, R/2)
        parts.append(torch.stack(products, dim=2).flatten(1))
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)).to(rows.dtype)


def _halves(packed: Tensor, scales: Tensor) -> Iterator[list[Tensor]]:
    """Some blocks of the weight at a time, dequantized: the upper and the lower half of each, `(I, B, R/2)` both, for B
    blocks of R rows."""
    G, rows = scales.size(0), block_rows()
    bytes_ = packed.view(-1, G, GROUP, rows // 2)  # (O/R, G, GROUP, R/2)
    factors = scales.view(G, -1, 2, rows // 2, 2)  # (G, O/R, half, R/2, scale and zero)
    step = max(1, CHUNK // (rows * G * GROUP))
    for part, own in zip(bytes_.split(step), factors.split(step, dim=1), strict=True):
        pair = []
        for half, nibbles in enumerate((part & 15, part >> 4)):
            centred = nibbles.view(torch.int8).sub_(8).to(scales.dtype).permute(1, 2, 0, 3)  # (G, GROUP, B, R/2)
            dequantized = torch.empty(centred.shape, dtype=scales.dtype)
            torch.addcmul(own[:, None, :, half, :, 1], centred, own[:, None, :, half, :, 0], out=dequantized)
            pair.append(dequantized.flatten(0, 1))
        yield pair

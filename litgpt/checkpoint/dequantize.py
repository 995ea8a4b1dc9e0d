"""Weights that are stored in 8 or 4 bits, read as bfloat16: FP8 in blocks (DeepSeek-V3) or with one scale a tensor
(Ministral 3), and MXFP4 (gpt-oss).

R, C: rows and columns; E: experts.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from litgpt.checkpoint.weights import Tensors
from litgpt.errors import LitGPTError

FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
"""The values of E2M1's sixteen codes (OCP Microscaling Formats 1.0, 5.3.3)."""
FP8_BLOCK = 128
"""Rows and columns of a block that shares a scale."""


def dequantized(stored: Tensors) -> Tensors:
    """The same tensors; those that come with scales under their plain names, and as bfloat16."""
    names = set(stored.names)
    fp8 = {name for name in names if f"{name}_scale_inv" in names}
    mxfp4 = {name.removesuffix("_blocks") for name in names if name.endswith("_blocks")}
    hidden = {f"{name}_scale_inv" for name in fp8}
    hidden |= {f"{name.removesuffix('weight')}activation_scale" for name in fp8}  # of inputs, which stay as they are
    hidden |= {f"{name}_{part}" for name in mxfp4 for part in ("blocks", "scales")}
    if not hidden:
        return stored
    for name in mxfp4:
        if f"{name}_scales" not in names:
            raise LitGPTError(f"The checkpoint has a tensor '{name}_blocks' without '{name}_scales'.")

    @lru_cache(maxsize=1)  # all experts are in one tensor, and are asked for one after the other
    def fetch(name: str) -> Tensor:
        if name in fp8:
            return from_fp8_blocks(stored.fetch(name), stored.fetch(f"{name}_scale_inv"))
        if name in mxfp4:
            return from_mxfp4(stored.fetch(f"{name}_blocks"), stored.fetch(f"{name}_scales")).mT
        return stored.fetch(name)

    kept = [name for name in stored.names if name not in hidden]
    return Tensors((*kept, *sorted(mxfp4)), fetch)


def from_fp8_blocks(weight: Tensor, scales: Tensor) -> Tensor:
    """`(R, C)` float8, and the scale of each block, `(R / 128, C / 128)` rounded up, or of all → `(R, C)` bfloat16."""
    rows, columns = weight.shape
    if scales.numel() == 1:
        return (weight.float() * scales.float().view(())).to(torch.bfloat16)
    wide = scales.float().repeat_interleave(FP8_BLOCK, 0)[:rows].repeat_interleave(FP8_BLOCK, 1)[:, :columns]
    return (weight.float() * wide).to(torch.bfloat16)


def from_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """Pairs of codes, the low half first, `(E, R, C / 32, 16)` uint8, and an exponent a block, `(E, R, C / 32)` uint8
    with bias 127 → `(E, R, C)` bfloat16."""
    values = FP4.to(torch.bfloat16)
    tensor = torch.empty(*blocks.shape[:-1], 32, dtype=torch.bfloat16)
    for expert, (codes, exponents) in enumerate(
        zip(blocks, scales, strict=True)
    ):  # an expert at a time, to save memory
        tensor[expert, ..., 0::2] = values[(codes & 15).int()]
        tensor[expert, ..., 1::2] = values[(codes >> 4).int()]
        tensor[expert].ldexp_((exponents.int() - 127)[..., None])
    return tensor.flatten(-2)

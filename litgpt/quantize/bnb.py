"""Weights of 4 and 8 bits by bitsandbytes (the extra `quant`), which is imported when a layer is made.

NF4, FP4 and double quantization are QLoRA's (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314); products of 8-bit
weights with outliers kept apart are LLM.int8()'s (Dettmers et al. 2022, https://arxiv.org/abs/2208.07339).
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from litgpt.errors import MissingPackageError
from litgpt.quantize.linear import Int8Linear, QuantizedLinear

BLOCK = 64
"""Weights that share a scale in 4 bits."""
OUTLIER = 6.0
"""Inputs above it are multiplied in 16 bits, on CUDA."""


@cache
def bitsandbytes() -> Any:
    """The package.

    Raises:
        LitGPTError: It is not installed, or doesn't work here.
    """
    logger = logging.getLogger("bitsandbytes")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)  # it tells of kernels that it could do without, and of every cast
    try:
        return importlib.import_module("bitsandbytes")
    except ImportError as error:
        why = "which is not installed" if error.name == "bitsandbytes" else f"which can't be imported ({error})"
        raise MissingPackageError(
            f"--quantize bnb.* needs bitsandbytes, {why}; run `pip install 'litgpt[quant]'`."
        ) from None


class FourBitLinear(QuantizedLinear):
    """NF4 or FP4, in blocks of `BLOCK` weights; double quantization keeps the blocks' scales in 8 bits."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype, kind: str, nested: bool
    ) -> None:
        super().__init__(in_features, out_features, bias, dtype)
        self.kind, self.nested = kind, nested
        self.state: Any = None

    @property
    def aligned(self) -> bool:
        """Whether blocks end where rows do."""
        return self.in_features % BLOCK == 0

    def load_weight(self, weight: Tensor) -> None:
        weight = weight.detach().to(self.dtype).contiguous()
        if not self.aligned:  # on the CPU, bitsandbytes reads back only whole blocks a row; a single row has them
            weight = weight.view(1, -1)
        packed, self.state = bitsandbytes().functional.quantize_4bit(
            weight, blocksize=BLOCK, quant_type=self.kind, compress_statistics=self.nested
        )
        self.set_weight(packed)
        self.weight.quant_state = self.state  # type: ignore[attr-defined]  # tells how many weights there really are

    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        weight = bitsandbytes().functional.dequantize_4bit(self.weight, self.state)
        return weight.view(self.out_features, self.in_features).to(dtype or self.dtype)

    def product(self, rows: Tensor) -> Tensor:
        if rows.device.type == "cuda" and rows.dtype == self.dtype and self.aligned:  # has a kernel for a single row
            return bitsandbytes().matmul_4bit(rows, self.weight.t(), self.state)
        return super().product(rows)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        super()._apply(fn, recurse)
        if self.state is not None:
            self.state.to(self.weight.device)
            self.weight.quant_state = self.state  # type: ignore[attr-defined]
        return self


class EightBitLinear(Int8Linear):
    """LLM.int8() on CUDA, where inputs are 8 bits as well; elsewhere the product with the same weights alone."""

    def product(self, rows: Tensor) -> Tensor:
        if rows.device.type != "cuda":
            return super().product(rows)
        package = bitsandbytes()
        state = package.MatmulLtState()
        state.CB, state.SCB = self.weight.data, self.scale.float() * 127
        state.has_fp16_weights, state.is_training, state.threshold = False, False, OUTLIER
        return package.matmul(rows, self.weight, state=state, threshold=OUTLIER).to(rows.dtype)

"""The types that weights are stored in, by the names users give them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litgpt.errors import LitGPTError, closest, quoted

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHT_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one weight."""


NEVER_CAST = "e_score_correction_bias"
"""End of the names of tensors that are rounded by no cast: small differences of large numbers choose experts."""


def cast(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A tensor of a model as `dtype`, if it is one of weights; None: as it is."""
    weights = tensor.is_floating_point() and not name.endswith(NEVER_CAST)
    return tensor.to(dtype) if weights and dtype is not None else tensor


def check_dtype(name: str) -> str:
    """`name`, without the `torch.` it may begin with.

    Raises:
        LitGPTError: There is no such type for weights.
    """
    plain = name.removeprefix("torch.")
    if plain not in WEIGHT_BYTES:
        known = ", ".join(WEIGHT_BYTES)
        raise LitGPTError(
            f"{quoted(name)} is no type for weights; choose one of {known}.{closest(plain, WEIGHT_BYTES)}"
        )
    return plain


def dtype_of(name: str | None) -> torch.dtype | None:
    """The torch type called `name`; None stays None.

    Raises:
        LitGPTError: There is no such type for weights.
    """
    import torch

    found: torch.dtype | None = getattr(torch, check_dtype(name)) if name is not None else None
    return found

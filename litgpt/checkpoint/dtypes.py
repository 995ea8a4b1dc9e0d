"""The types that weights are stored in, by the names users give them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from litgpt.errors import LitGPTError, closest

if TYPE_CHECKING:
    import torch

WEIGHT_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one weight."""


def check_dtype(name: str) -> str:
    """`name`, without the `torch.` it may begin with.

    Raises:
        LitGPTError: There is no such type for weights.
    """
    plain = name.removeprefix("torch.")
    if plain not in WEIGHT_BYTES:
        known = ", ".join(WEIGHT_BYTES)
        raise LitGPTError(f"{name!r} is no type for weights; choose one of {known}.{closest(plain, WEIGHT_BYTES)}")
    return plain


def dtype_of(name: str | None) -> torch.dtype | None:
    """The torch type called `name`; None stays None.

    Raises:
        LitGPTError: There is no such type for weights.
    """
    import torch

    found: torch.dtype | None = getattr(torch, check_dtype(name)) if name is not None else None
    return found

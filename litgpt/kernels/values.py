"""Whether a tensor has values at all."""

from __future__ import annotations

from torch import Tensor


def has_values(tensor: Tensor) -> bool:
    """False for torch's fake tensors, which the planner trains on to see what memory they would take: neither draw
    random numbers for them, nor do the same once more with another chunk of the same shape."""
    return not hasattr(tensor, "fake_mode")

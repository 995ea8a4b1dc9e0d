"""Memory for what is computed again and again in the same place."""

from __future__ import annotations

import torch
from torch import Tensor


class Buffers:
    """Memory that is used again and again: a fresh large tensor costs ten times a reused one (page faults)."""

    def __init__(self) -> None:
        self._flat: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def get(self, purpose: str, shape: tuple[int, int], like: Tensor, dtype: torch.dtype) -> Tensor:
        """Uninitialised memory of that shape and dtype on the device of `like`; the same for the same purpose each
        time."""
        key = (purpose, dtype, like.device)
        numel = shape[0] * shape[1]
        if key not in self._flat or self._flat[key].numel() < numel:
            self._flat[key] = torch.empty(numel, dtype=dtype, device=like.device)
        return self._flat[key][:numel].view(shape)

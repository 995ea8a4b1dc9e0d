"""Mamba 2's chunks give what its recurrence gives, token by token, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from litgpt.model.mamba import decaying_sum


def step_by_step(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    outputs = []
    for t in range(q.size(2)):
        state = log_decay[:, :, t].exp()[..., None, None] * state + k[:, :, t, :, None] * v[:, :, t, None]
        outputs.append((q[:, :, t, None] @ state)[:, :, 0])
    return torch.stack(outputs, dim=2), state


@pytest.mark.parametrize("length", [1, 63, 64, 65, 150])
def test_chunks_are_the_recurrence(length):
    generator = torch.Generator().manual_seed(length)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    parts = draw(2, 3, length, 5), draw(2, 3, length, 5), draw(2, 3, length, 7)
    log_decay, state = -draw(2, 3, length).exp(), draw(2, 3, 5, 7)
    for found, expected in zip(
        decaying_sum(*parts, log_decay, state), step_by_step(*parts, log_decay, state), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)

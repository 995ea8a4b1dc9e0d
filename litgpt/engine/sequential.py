"""Layers over devices, in sequence: for a model that no single device holds."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.model.attention import AttentionContext


def spread_layers(model: GPT, devices: Sequence[torch.device]) -> None:
    """Moves the blocks of a model to several devices, each getting a run of them of about the same size.

    Embedding, last norm and head go to the first device, so that a tied head stays one tensor, tokens go in where
    scores come out, and the cache follows the layers (`GPT.new_cache`).

    Raises:
        LitGPTError: There are more devices than layers, or no device.
    """
    blocks = list(model.transformer.h)
    if not 0 < len(devices) <= len(blocks):
        raise LitGPTError(
            f"{len(blocks)} layers can't be spread over {len(devices)} devices; use at most {len(blocks)}."
        )
    first = devices[0]
    for name, part in model.transformer.named_children():
        if name != "h":
            part.to(first)
    model.lm_head.to(first)
    model.tie()
    for device, run in zip(devices, runs([nbytes(block) for block in blocks], len(devices)), strict=True):
        stage = _Stage(device)
        for block in blocks[run.start : run.stop]:
            block.to(device)
            block.register_forward_pre_hook(stage)
    model.transformer.ln_f.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(first),))


def runs(sizes: Sequence[int], n: int) -> list[range]:
    """`n` runs of consecutive numbers, none empty, whose sizes sum to about the same."""
    upto = [0, *accumulate(sizes)]
    cuts = [0]
    for part in range(1, n):
        wanted = upto[-1] * part / n
        possible = range(cuts[-1] + 1, len(sizes) - (n - part) + 1)
        cuts.append(min(possible, key=lambda cut: abs(upto[cut] - wanted)))
    return [range(start, stop) for start, stop in zip(cuts, [*cuts[1:], len(sizes)], strict=True)]


def nbytes(module: nn.Module) -> int:
    """Bytes that the parameters and buffers of a module take."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


class _Stage:
    """Before each block of one device: brings there what the block works on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reaches: tuple[AttentionContext, AttentionContext] | None = None
        """Of this forward pass: as it was made, and on this device."""

    def __call__(self, block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, AttentionContext]:
        x, context = inputs
        if self.reaches is None or self.reaches[0] is not context:
            self.reaches = (context, context.to(self.device))
        return x.to(self.device), self.reaches[1]

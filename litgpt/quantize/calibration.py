"""What goes into a model's linear layers on texts, block after block, so that each can be quantized by it.

N: samples; T: tokens of one; O, I: rows and columns of a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from litgpt.model import GPT
from litgpt.model.moe import LLaMAMoE

KEPT_ROWS = 512
"""Rows of a layer's input that are kept, to try scales with."""


class InputStatistics:
    """Sums over the inputs of a layer."""

    def __init__(self, layer: nn.Linear, outer: bool) -> None:
        """`outer`: Whether products of columns are summed up as well, which take `(I, I)`."""
        columns = layer.in_features
        self.n_rows = 0
        self.squares, self.magnitudes = torch.zeros(columns), torch.zeros(columns)
        self.products = torch.zeros(columns, columns) if outer else None
        self.rows = torch.empty(0, columns)

    def add(self, x: Tensor) -> None:
        """One more input, `(…, I)`."""
        rows = x.detach().reshape(-1, x.size(-1)).float().cpu()
        self.n_rows += len(rows)
        self.squares += rows.square().sum(0)
        self.magnitudes += rows.abs().sum(0)
        if self.products is not None:
            self.products.addmm_(rows.t(), rows)
        if len(self.rows) < KEPT_ROWS:
            step = max(1, len(rows) // 64)
            self.rows = torch.cat((self.rows, rows[::step][: KEPT_ROWS - len(self.rows)]))

    def importance(self) -> Tensor:
        """The mean square of each column, `(I,)`."""
        return self.squares / max(1, self.n_rows)

    def mean_magnitude(self) -> Tensor:
        """The mean magnitude of each column, `(I,)`."""
        return self.magnitudes / max(1, self.n_rows)


def quantizable(block: nn.Module, prefix: str = "") -> dict[str, nn.Linear]:
    """The linear layers of a model or block that are kept in few bits, by name: not the routers of mixtures."""
    routers = {id(module.gate) for module in block.modules() if isinstance(module, LLaMAMoE)}
    return {
        f"{prefix}{name}": module
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in routers
    }


@dataclass
class CalibratedBlock:
    """A block of a model, and what its layers were given."""

    number: int
    block: nn.Module
    layers: dict[str, nn.Linear]
    """Those of its linear layers that saw anything, by name in the model."""
    statistics: dict[str, InputStatistics]
    """By the same names."""
    states: list[tuple[Tensor, Any]]

    def run(self, most: int | None = None) -> list[Tensor]:
        """Its outputs on all samples, or so many of them."""
        return [self.block(x, context) for x, context in self.states[:most]]


@torch.inference_mode()
def each_block(
    model: GPT, samples: Sequence[Tensor], outer: Callable[[int], bool] = lambda columns: False
) -> Iterator[CalibratedBlock]:
    """Block after block, with the statistics of its layers' inputs.

    The caller may change the block's weights before it asks for the next one, whose inputs are what the changed block
    puts out.

    Args:
        model: In evaluation mode, with its weights.
        samples: Token ids, `(N, T)` each.
        outer: Whether products of columns are to be summed up as well for a layer of so many.
    """
    device = model.lm_head.weight.device
    states = [model.enter(sample.to(device)) for sample in samples]
    for number, block in enumerate(model.transformer.h):
        layers = quantizable(block, f"transformer.h.{number}.")
        statistics = {name: InputStatistics(layer, outer(layer.in_features)) for name, layer in layers.items()}
        found = CalibratedBlock(number, block, layers, statistics, states)
        with _watching(layers, statistics):
            found.run()
        for name in [name for name, one in statistics.items() if not one.n_rows]:  # its weight is used another way
            del layers[name], statistics[name]
        yield found
        states = [(x, context) for x, (_, context) in zip(found.run(), states, strict=True)]


@contextmanager
def _watching(layers: dict[str, nn.Linear], statistics: dict[str, InputStatistics]) -> Iterator[None]:
    def watch(one: InputStatistics) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: one.add(inputs[0])

    hooks = [layer.register_forward_pre_hook(watch(statistics[name])) for name, layer in layers.items()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()

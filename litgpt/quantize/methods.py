"""A model's linear layers rounded to few bits by what they are given on texts, block after block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from litgpt.model import GPT
from litgpt.quantize.awq import awq
from litgpt.quantize.calibration import CalibratedBlock, each_block
from litgpt.quantize.rounding import Grid, Rounded, gptq

OnBlock = Callable[[int, int], None]
"""Called with the number of a block, and how many there are, when it is done."""


@dataclass
class RoundedModel:
    """What becomes of a model."""

    rounded: dict[str, Rounded] = field(default_factory=dict)
    """By our name of a weight."""
    changed: dict[str, Tensor] = field(default_factory=dict)
    """Weights that stay in 16 bits and are others now, as norms that layers were scaled against."""


def round_by_gptq(block: CalibratedBlock, grids: Mapping[str, Grid], result: RoundedModel) -> None:
    """GPTQ, from the products of the columns of each layer's input."""
    for name, layer in block.layers.items():
        products = block.statistics[name].products
        if f"{name}.weight" in grids and products is not None:
            rounded = gptq(layer.weight.cpu(), products, grids[f"{name}.weight"])
            layer.weight.copy_(rounded.dequantized())
            result.rounded[f"{name}.weight"] = rounded


def round_by_awq(block: CalibratedBlock, grids: Mapping[str, Grid], result: RoundedModel) -> None:
    """AWQ, from the mean magnitude of each column of a layer's input."""
    layers = {name: layer for name, layer in block.layers.items() if f"{name}.weight" in grids}
    before = {name: tensor.clone() for name, tensor in block.block.state_dict().items()}
    of_layers = {name: grids[f"{name}.weight"] for name in layers}
    made = awq(block.block, block.statistics, layers, of_layers, partial(block.run, most=1))
    for name, rounded in made.items():
        layers[name].weight.copy_(rounded.dequantized())
        result.rounded[f"{name}.weight"] = rounded
    for name, tensor in block.block.state_dict().items():
        ours = f"transformer.h.{block.number}.{name}"
        if ours not in result.rounded and not torch.equal(tensor, before[name]):
            result.changed[ours] = tensor.cpu().clone()


METHODS: dict[str, Callable[[CalibratedBlock, Mapping[str, Grid], RoundedModel], None]] = {
    "gptq": round_by_gptq,
    "awq": round_by_awq,
}


@torch.inference_mode()
def round_model(
    model: GPT, samples: Sequence[Tensor], method: str, grids: Mapping[str, Grid], on_block: OnBlock
) -> RoundedModel:
    """Rounds what `grids` says, by name of a weight; the model's own weights become the rounded ones.

    Args:
        model: In evaluation mode, with its weights.
        samples: Token ids, `(N, T)` each, from texts like those the model will see.
        method: One of `METHODS`.
        grids: By our name of a weight: what it is rounded to.
        on_block: Called after each block.
    """
    result = RoundedModel()
    for block in each_block(model, samples, outer=lambda columns: method == "gptq"):
        METHODS[method](block, grids, result)
        on_block(block.number, len(model.transformer.h))
    return result


@torch.inference_mode()
def measure_importance(model: GPT, samples: Sequence[Tensor], on_block: OnBlock) -> dict[str, Tensor]:
    """The mean square of each input of the linear layers, `(I,)`, by our name of the weight."""
    found: dict[str, Tensor] = {}
    for block in each_block(model, samples):
        found |= {f"{name}.weight": one.importance() for name, one in block.statistics.items()}
        on_block(block.number, len(model.transformer.h))
    return found

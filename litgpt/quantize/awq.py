"""AWQ: columns whose inputs are large are scaled up before rounding, and what makes these inputs is scaled down (Lin et
al. 2023, https://arxiv.org/abs/2306.00978).

O, I: rows and columns of a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from litgpt.model.attention import CausalSelfAttention
from litgpt.model.mlp import GptNeoxMLP, LLaMAMLP
from litgpt.model.norm import OffsetLayerNorm
from litgpt.quantize.calibration import InputStatistics
from litgpt.quantize.rounding import Grid, Rounded, round_to_nearest

RATIOS = 20
"""Exponents between 0 and 1 that are tried."""
TOLERANCE = 0.02
"""How far a block's output may move by scaling, as a share of its size: more than rounding in 16 bits does."""


@torch.inference_mode()
def awq(
    block: nn.Module,
    statistics: Mapping[str, InputStatistics],
    layers: Mapping[str, nn.Linear],
    grids: Mapping[str, Grid],
    run: Callable[[], list[Tensor]],
) -> dict[str, Rounded]:
    """Scales what can be scaled in a block, in place, and rounds its layers.

    Args:
        block: The block.
        statistics: Of the inputs of its layers, by name.
        layers: The layers that are rounded, by the same names.
        grids: What to round each to.
        run: Runs the block on some samples, for its outputs.
    """
    names = {id(layer): name for name, layer in layers.items()}
    importance = {name: statistics[name].importance() for name in layers}
    before = run()
    for producer, consumers in foldable(block):
        if not all(id(layer) in names for layer in consumers):
            continue
        own = [names[id(layer)] for layer in consumers]
        scales = _best_scales(consumers, statistics[own[0]], [grids[name] for name in own])
        changed = [producer, *consumers]
        kept = [{name: tensor.clone() for name, tensor in module.state_dict().items()} for module in changed]
        _fold(producer, consumers, scales)
        if _differs(before, run()):  # something else takes the same input
            for module, state in zip(changed, kept, strict=True):
                module.load_state_dict(state)
            continue
        for name in own:
            importance[name] = importance[name] / scales.square()
    return {name: round_to_nearest(layer.weight.cpu(), grids[name], importance[name]) for name, layer in layers.items()}


def foldable(block: Any) -> Iterator[tuple[nn.Module, Sequence[nn.Linear]]]:
    """What puts out the input of some layers, and these layers."""
    attention, mlp = block.attn, block.mlp
    gated = [mlp.fc_1, mlp.fc_2] if isinstance(mlp, LLaMAMLP) else []
    of_mlp = [mlp.fc] if isinstance(mlp, GptNeoxMLP) else gated
    of_attention = [attention.qkv] if isinstance(attention, CausalSelfAttention) else []
    shared = block.norm_2 is None
    if of_attention and (of_mlp or not shared) and _has_weight(block.norm_1):
        yield block.norm_1, [*of_attention, *(of_mlp if shared else ())]
    if of_mlp and not shared and _has_weight(block.norm_2):
        yield block.norm_2, of_mlp
    if gated:
        yield mlp.fc_2, [mlp.proj]


def _has_weight(norm: nn.Module | None) -> bool:
    return isinstance(getattr(norm, "weight", None), Tensor)


def _best_scales(consumers: Sequence[nn.Linear], statistics: InputStatistics, grids: Sequence[Grid]) -> Tensor:
    """The scales `(I,)` whose rounded weights change the layers' outputs least; ones where nothing is better."""
    magnitude, rows = statistics.mean_magnitude().clamp(min=1e-6), statistics.rows
    weights = [layer.weight.float().cpu() for layer in consumers]
    best, best_loss = torch.ones_like(magnitude), float("inf")
    for step in range(RATIOS):
        scales = magnitude.pow(step / RATIOS).clamp(min=1e-4)
        scales = scales / (scales.max() * scales.min()).sqrt()
        loss = 0.0
        for weight, grid in zip(weights, grids, strict=True):
            error = round_to_nearest(weight * scales, grid).dequantized() / scales - weight
            loss += float((rows @ error.t()).square().mean())
        if loss < best_loss:
            best, best_loss = scales, loss
    return best


def _fold(producer: Any, consumers: Sequence[nn.Linear], scales: Tensor) -> None:
    """Scales the columns of the consumers up and the output of the producer down."""
    weight, bias = producer.weight, getattr(producer, "bias", None)
    scales = scales.to(weight.device)
    offset = float(isinstance(producer, OffsetLayerNorm) or getattr(producer, "unit_offset", False))
    divisor = scales if weight.dim() == 1 else scales[:, None]
    weight.copy_((weight.float() + offset) / divisor - offset)
    if bias is not None:
        bias.copy_(bias.float() / scales)
    for layer in consumers:
        layer.weight.copy_(layer.weight.float() * scales)


def _differs(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    size = max(float(one.float().square().mean().sqrt()) for one in before)
    apart = max(float((a.float() - b.float()).square().mean().sqrt()) for a, b in zip(before, after, strict=True))
    return not apart <= TOLERANCE * size

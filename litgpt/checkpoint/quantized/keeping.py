"""Weights that are stored in few bits, kept in them by layers that multiply with such weights."""

from __future__ import annotations

import torch
from torch import nn

from litgpt.checkpoint.weights import Codes, Tensors
from litgpt.errors import LitGPTError
from litgpt.model.moe import Experts
from litgpt.quantize.kernels import check_kernels
from litgpt.quantize.linear import QuantizedExperts, QuantizedLinear
from litgpt.quantize.model import HEAD, keeping_layer, replaceable


def keep_bits(model: nn.Module, weights: Tensors, device: torch.device, dtype: torch.dtype) -> set[str]:
    """Replaces the linear layers of a model on `meta` whose weights can stay as they are stored.

    Args:
        model: The model.
        weights: Its weights.
        device: Where the layers compute.
        dtype: What they compute in.

    Returns:
        The names of the weights that are in these layers now. The others are further from what is stored in the layers'
        numbers than they are as plain numbers, or there is no product for them.
    """
    kept: set[str] = set()
    if weights.codes is None:
        return kept
    for name, module in list(replaceable(model, "int4")):
        if name == HEAD:
            continue
        if isinstance(module, Experts):
            kept |= _keep_experts(model, name, module, weights, device, dtype)
        elif (layer := _kept(weights.codes(f"{name}.weight"), module, device, dtype)) is not None:
            layer.bias = module.bias
            model.set_submodule(name, layer)
            kept.add(f"{name}.weight")
    return kept


def _kept(codes: Codes | None, linear: nn.Linear, device: torch.device, dtype: torch.dtype) -> QuantizedLinear | None:
    """A layer with the weight of a linear one on `meta`; None: it can't be kept."""
    size = linear.in_features, linear.out_features
    if codes is None or codes.codes.shape != linear.weight.shape or not has_product(codes.bits, device, dtype):
        return None
    layer = keeping_layer(codes.bits, codes.scales.size(1), codes.zeros, size, linear.bias is not None, dtype)
    if layer is not None:
        layer.load_codes(codes.codes.to(device), codes.scales.to(device), codes.zeros.to(device))
    return layer


def _keep_experts(
    model: nn.Module, name: str, experts: Experts, weights: Tensors, device: torch.device, dtype: torch.dtype
) -> set[str]:
    """As `keep_bits`, all experts of a layer or none."""
    assert weights.codes is not None
    layers: dict[str, list[QuantizedLinear]] = {}
    for part in experts.linears:
        stacked = getattr(experts, part)
        linear = nn.Linear(stacked.size(2), stacked.size(1), bias=False, device="meta")
        for number in range(len(stacked)):
            layer = _kept(weights.codes(f"{name}.{number}.{part}.weight"), linear, device, dtype)
            if layer is None:
                return set()
            layers.setdefault(part, []).append(layer)
    made = iter([layer for part in (*experts.linears,) for layer in layers[part]])
    model.set_submodule(name, QuantizedExperts(experts, lambda columns, rows: next(made)))
    return {f"{name}.{number}.{part}.weight" for part in layers for number in range(len(layers[part]))}


def has_product(bits: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there is a product with weights of so many bits."""
    try:
        check_kernels(f"int{bits}", device, dtype)
    except LitGPTError:
        return False
    return True

"""float32 linear layers on CPUs with AVX2 and no AVX-512, in less time than as they are loaded.

A single token is a matrix times a vector, and takes as long as the matrix is read. MKL reads it fastest where the
numbers of an *input* lie side by side, if there are at least as many outputs: 0.6 to 0.8 of the time there, half for
two tokens. So such weights are stored transposed, where at most three tokens are expected; their shape stays.

From four tokens on that costs something. Weights then stay as they are, and a head, with its many outputs, is
multiplied some rows at a time, which stay in the cache: 0.6 to 0.75 of the time of MKL's own product for 2 to 64
tokens.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW = 3
"""Tokens up to which transposed weights are the faster ones."""
MANY = 128
"""Tokens up to which a head is multiplied in parts."""
WIDE = 8
"""How many times as many outputs as inputs a head has, at least."""
ROWS = 1024
"""Of a head that are multiplied at a time."""

FITS = torch.backends.cpu.get_cpu_capability() == "AVX2"
"""Found out here: torch's compiler can't."""


def rearrange(model: nn.Module, tokens: int, headroom: int) -> None:
    """Stores the weights of plain float32 layers the way that serves `tokens` tokens at a time best.

    Only of a model that isn't trained: an optimizer's state lies as the weights did when it was made, and fused ones
    take both as they lie. A weight is copied; all such take at most `headroom` bytes, or else none is. What is in a
    mapped file can then no longer be dropped by the system and shared by other processes.
    """
    if not FITS or any(parameter.requires_grad for parameter in model.parameters()):
        return
    found: dict[int, Tensor] = {}
    for module in model.modules():
        if type(module) is not nn.Linear or not applies(module.weight):
            continue
        head = module.out_features >= WIDE * module.in_features
        if head and "forward" not in vars(module):
            module.forward = partial(linear, module)  # type: ignore[method-assign]
        transposed = tokens <= FEW and module.out_features >= module.in_features
        if transposed != is_transposed(module.weight):
            found[module.weight.data_ptr()] = module.weight
    if sum(weight.nbytes for weight in found.values()) <= headroom:
        for weight in found.values():
            weight.data = weight.data.contiguous() if is_transposed(weight) else weight.data.t().contiguous().t()


def applies(weight: Tensor) -> bool:
    """Whether a weight is one that this is for."""
    plain = type(weight) in (Tensor, nn.Parameter)
    return plain and weight.device.type == "cpu" and weight.dtype == torch.float32


def is_transposed(weight: Tensor) -> bool:
    """Whether the numbers of an input lie side by side."""
    return not weight.is_contiguous() and weight.t().is_contiguous()


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """`(…, in)` → `(…, out)`, as the layer's own `forward`."""
    weight, bias = layer.weight, layer.bias
    tokens = x.reshape(-1, x.size(-1))  # (M, in)
    several = 2 <= tokens.size(0) <= MANY and x.dtype == torch.float32 and not torch.is_grad_enabled()
    if not several or not applies(weight) or is_transposed(weight):
        return F.linear(x, weight, bias)
    y = x.new_empty(weight.size(0), tokens.size(0))
    for start in range(0, weight.size(0), ROWS):
        torch.mm(weight[start : start + ROWS], tokens.t(), out=y[start : start + ROWS])
    upright = y.t().contiguous()  # (M, out)
    return (upright if bias is None else upright.add_(bias)).view(*x.shape[:-1], y.size(0))

"""float32 products on AMD's processors with AVX-512, by oneDNN in place of MKL.

torch multiplies float32 matrices with MKL, which leaves a quarter of such a processor's speed unused. oneDNN comes with
torch, too. Measured on a Zen 4, one and two threads, weights of 576 to 11,008: from 64 tokens on 0.7 to 0.85 of MKL's
time for outputs and for gradients by inputs, 0.75 to 1 for gradients by weights; for 4 tokens half of it for large
weights, and no more for small ones.

oneDNN writes code for each number of tokens and each shape of a weight, in float32 and in bfloat16, some 0.3 MB. It
and torch keep 1,024 of these: over a gigabyte in training, where hardly two steps have the same number of tokens. Here
it is fewer, which takes no more time: all layers of a pass share their code.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

FEWEST = 4
"""Tokens below which a product takes as long to prepare as to compute."""
LEAST = 2**22
"""Multiplications below which it does, too."""
KEPT = 128
"""Products whose code is kept."""

for _variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # read when the first is made
    os.environ.setdefault(_variable, str(KEPT))


def _fits() -> bool:
    """Whether this is such a processor, and this torch has both libraries."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():
        return False
    try:
        return hasattr(torch.ops.mkldnn, "_linear_pointwise") and "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


FITS = _fits()


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether `product` is the faster way for `(M, in)` and `(out, in)`."""
    return (
        FITS
        and x.size(0) >= FEWEST
        and x.size(0) * weight.numel() >= LEAST
        and all(
            type(tensor) in (Tensor, nn.Parameter) and tensor.dtype == torch.float32 and tensor.device.type == "cpu"
            for tensor in (x, weight)
        )
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`(M, in)` and `(out, in)` → `x @ weight.T + bias`, `(M, out)`; no gradients."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def use_fast_linear(model: nn.Module) -> None:
    """Lets the plain linear layers of a model compute this way where it applies, and as before where it doesn't."""
    if not FITS:
        return
    for module in model.modules():
        if type(module) is nn.Linear and "forward" not in vars(module) and module.weight.dtype == torch.float32:
            module.forward = partial(linear, module)  # type: ignore[method-assign]


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """`(…, in)` → `(…, out)`, as the layer's own `forward`."""
    weight, bias = layer.weight, layer.bias
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    tokens = x.reshape(-1, x.size(-1))  # (M, in)
    if not serves(tokens, weight):
        return F.linear(x, weight, bias)
    y: Tensor = _Linear.apply(tokens, weight, bias)
    return y.view(*x.shape[:-1], y.size(1))


class _Linear(torch.autograd.Function):
    """Keeps the input for the gradient of the weight alone, and the weight for that of the input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = None if weight is None else product(gradient, weight.t())
        of_weight = None if x is None else product(gradient.t(), x.t())
        return of_x, of_weight, gradient.sum(0) if ctx.needs_input_grad[2] else None

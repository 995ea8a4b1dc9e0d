"""What lies between the two products of a loss: logits become losses and, in place, their gradients, in one kernel.

R: rows, V: vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor, library

TILE = 8192
"""Logits that a program has before it at a time."""


@triton.jit
def _logits(row, BIAS, at, V: tl.constexpr, cap, HAS_BIAS: tl.constexpr, CAPPED: tl.constexpr):
    """Capped logits, and the slope of the cap there."""
    logits = tl.load(row + at, mask=at < V, other=0.0).to(tl.float32)
    if HAS_BIAS:
        logits += tl.load(BIAS + at, mask=at < V, other=0.0).to(tl.float32)
    slope = logits * 0.0 + 1.0
    if CAPPED:
        bent = 2.0 / (1.0 + tl.exp(-2.0 * logits / cap)) - 1.0  # tanh
        logits, slope = bent * cap, 1.0 - bent * bent
    return tl.where(at < V, logits, float("-inf")), slope


@triton.jit
def _rows(X, BIAS, TARGETS, FACTORS, LOSSES, cap, z_loss, smoothing, stride, V: tl.constexpr, TILE: tl.constexpr, HAS_BIAS: tl.constexpr, CAPPED: tl.constexpr, HAS_FACTORS: tl.constexpr, DFT: tl.constexpr, GRADIENTS: tl.constexpr):  # fmt: skip # noqa: E501
    number = tl.program_id(0)
    row = X + number.to(tl.int64) * stride
    target = tl.load(TARGETS + number)
    largest, total, summed, wanted = float("-inf"), 0.0, 0.0, 0.0
    for first in range(0, V, TILE):
        at = first + tl.arange(0, TILE)
        logits, _ = _logits(row, BIAS, at, V, cap, HAS_BIAS, CAPPED)
        higher = tl.maximum(largest, tl.max(logits, axis=0))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(logits - higher), axis=0)
        largest = higher
        summed += tl.sum(tl.where(at < V, logits, 0.0), axis=0)
        wanted += tl.sum(tl.where(at == target, logits, 0.0), axis=0)
    log_total = tl.log(total) + largest
    loss = log_total - (1.0 - smoothing) * wanted - smoothing * summed / V + z_loss * log_total * log_total
    factor = 1.0
    if DFT:
        factor = tl.exp(-loss)
        loss = loss * factor
    if HAS_FACTORS:
        factor = tl.load(FACTORS + number).to(tl.float32)
    tl.store(LOSSES + number, loss)
    if GRADIENTS:
        for first in range(0, V, TILE):
            at = first + tl.arange(0, TILE)
            logits, slope = _logits(row, BIAS, at, V, cap, HAS_BIAS, CAPPED)
            gradient = tl.exp(logits - log_total) * (1.0 + 2.0 * z_loss * log_total)
            gradient -= tl.where(at == target, 1.0 - smoothing, 0.0) + smoothing / V
            tl.store(row + at, (gradient * slope * factor).to(X.dtype.element_ty), mask=at < V)


@library.custom_op("litgpt::cross_entropy_", mutates_args={"products"})
def cross_entropy_(
    products: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    factors: Tensor | None,
    cap: float | None,
    z_loss: float,
    label_smoothing: float,
    dft: bool,
    gradients: bool,
) -> Tensor:
    """Logits `(R, V)` before bias and cap → the losses of all rows, `(R,)`, float32; with `gradients`, the logits are
    overwritten by the gradients of the losses by them, times `factors` `(R,)`. The other arguments are those of
    `litgpt.training.loss.Terms`."""
    (R, V), losses = products.shape, products.new_empty(products.size(0), dtype=torch.float32)
    if R:
        _rows[(R,)](
            *(products, bias, targets, factors, losses, cap or 1.0, z_loss, label_smoothing, products.stride(0), V),
            *(min(TILE, triton.next_power_of_2(V)), bias is not None, cap is not None, factors is not None, dft),
            gradients,
        )
    return losses


@cross_entropy_.register_fake
def _(
    products: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    factors: Tensor | None,
    cap: float | None,
    z_loss: float,
    label_smoothing: float,
    dft: bool,
    gradients: bool,
) -> Tensor:
    return products.new_empty(products.size(0), dtype=torch.float32)

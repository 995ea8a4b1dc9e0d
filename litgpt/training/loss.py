"""Cross-entropy from hidden states without ever holding the logits of all tokens.

The logits of a chunk of rows are made, turned into that chunk's gradients and overwritten by the next chunk; nothing
of the size `(N, V)` outlives it, forward or backward. Rows whose target is ignored are left out before the matrix
product. The idea is Cut Your Losses' (https://arxiv.org/abs/2411.09009) and Liger's
(https://arxiv.org/abs/2410.10989).

N: rows (tokens), C: `n_embd`, V: vocabulary, R: rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

IGNORED = -100
"""The target of a token that has no loss."""

CHUNK_BYTES = 64 * 2**20
"""Memory for the logits of one chunk, bytes."""


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


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    cap: float | None = None,
    buffers: Buffers | None = None,
) -> Tensor:
    """The sum over tokens of `-log softmax(softcap(hidden @ weight.T + bias))[target]`, in float32.

    Gradients are those of the full computation, made in the forward pass for what requires them: a frozen head costs
    no gradient buffer and half a trained one's time. Products run in the dtype of `hidden` (autocast's, inside
    autocast), all else and the sums over chunks in float32 (float64 for float64).

    Args:
        hidden: `(N, C)`.
        weight: `(V, C)`.
        targets: `(N,)`, int64; `IGNORED` has no loss.
        bias: `(V,)`.
        cap: Soft cap of the logits.
        buffers: Kept between calls, saves allocating.
    """
    dtype = hidden.dtype
    device_type = hidden.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
    wanted = tuple(
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)
    )
    with torch.autocast(device_type, enabled=False):
        loss = _LinearCrossEntropy.apply(
            hidden, weight, bias, targets, _Settings(cap, dtype, wanted, buffers or Buffers())
        )
    assert isinstance(loss, Tensor)
    return loss


def head_cross_entropy(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """The same sum for a head that is more than a weight (LoRA, quantized): `head` maps `(R, C)` to logits `(R, V)`.

    Chunks are computed again in the backward pass instead of being kept.
    """
    kept = targets != IGNORED
    hidden, targets = hidden[kept], targets[kept]

    def chunk_loss(rows: Tensor, row_targets: Tensor) -> Tensor:
        return F.cross_entropy(head(rows).float(), row_targets, reduction="sum")

    loss = hidden.sum() * 0.0  # stays connected to the model where every target is ignored
    for rows, row_targets in zip(*(part.split(_rows(vocab_size, 4)) for part in (hidden, targets)), strict=True):
        if rows.size(0):
            loss = loss + checkpoint(chunk_loss, rows, row_targets, use_reentrant=False)
    return loss.float()


class _Settings:
    """What one call is about besides its tensors."""

    def __init__(self, cap: float | None, dtype: torch.dtype, wanted: tuple[bool, ...], buffers: Buffers) -> None:
        self.cap = cap
        self.dtype = dtype
        """Of the matrix products."""
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        """Of all else."""
        self.wants_hidden, self.wants_weight, self.wants_bias = wanted
        self.buffers = buffers


def _rows(vocab_size: int, itemsize: int) -> int:
    """Rows of a chunk, a multiple of 16."""
    return max(16, CHUNK_BYTES // (vocab_size * itemsize) // 16 * 16)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, settings: _Settings
    ) -> Tensor:
        rows = (targets != IGNORED).nonzero().squeeze(1)  # (N',)
        sums = _Sums(hidden, weight, bias, settings)
        for chunk in rows.split(_rows(weight.size(0), settings.wide.itemsize)):
            if chunk.numel():
                sums.add(hidden, chunk, targets[chunk])
        ctx.gradients = ((sums.hidden, hidden.dtype), (sums.weight, weight.dtype), (sums.bias, weight.dtype))
        return sums.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("The gradients of this loss have been used; compute it again.")
        scaled = (None if gradient is None else gradient.mul_(factor).to(dtype) for gradient, dtype in gradients)
        return (*scaled, None, None)


class _Sums:
    """The loss and the gradients, summed up chunk by chunk."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, settings: _Settings) -> None:
        wide = settings.wide
        self.settings = settings
        self.matrix = weight.detach().to(settings.dtype)  # (V, C)
        self.offset = None if bias is None else bias.detach().to(wide)  # (V,)
        self.loss = torch.zeros((), dtype=wide, device=hidden.device)
        self.hidden = torch.zeros_like(hidden, requires_grad=False) if settings.wants_hidden else None
        self.weight = torch.zeros_like(weight, dtype=wide, requires_grad=False) if settings.wants_weight else None
        self.bias = (
            torch.zeros_like(bias, dtype=wide, requires_grad=False)
            if bias is not None and settings.wants_bias
            else None
        )

    def add(self, hidden: Tensor, chunk: Tensor, targets: Tensor) -> None:
        """Adds the rows of `hidden` that `chunk` names."""
        settings = self.settings
        narrow = settings.dtype != settings.wide
        shape = (chunk.numel(), self.matrix.size(0))
        rows = hidden.detach()[chunk].to(settings.dtype)  # (R, C)
        products = settings.buffers.get("products", shape, rows, settings.dtype)
        torch.mm(rows, self.matrix.T, out=products)  # (R, V)
        logits = products if not narrow else settings.buffers.get("logits", shape, rows, settings.wide).copy_(products)
        if self.offset is not None:
            logits.add_(self.offset)
        slope = None
        if settings.cap is not None:
            bent = logits.div_(settings.cap).tanh_()
            slope = torch.mul(bent, bent, out=settings.buffers.get("slope", shape, rows, settings.wide)).neg_().add_(1)
            logits = bent.mul_(settings.cap)
        at_target = (torch.arange(chunk.numel(), device=chunk.device), targets)
        _log_softmax_(logits)
        self.loss -= logits[at_target].sum()
        if self.hidden is None and self.weight is None and self.bias is None:
            return
        gradient = logits.exp_()  # of the logits: softmax - one hot, (R, V)
        gradient[at_target] -= 1
        if slope is not None:
            gradient.mul_(slope)
        if self.bias is not None:
            self.bias += gradient.sum(0)
        if narrow:
            gradient = products.copy_(gradient)
        if self.hidden is not None:
            self.hidden.index_copy_(0, chunk, torch.mm(gradient, self.matrix).to(self.hidden.dtype))
        if self.weight is not None:
            _add_product_(self.weight, gradient, rows)


def _log_softmax_(logits: Tensor) -> None:
    """In place, over the last dimension."""
    if logits.device.type == "cpu":  # the fused kernel works row by row, so it may write where it reads
        torch.log_softmax(logits, -1, out=logits)
    else:
        logits.sub_(logits.logsumexp(-1, keepdim=True))


def _add_product_(total: Tensor, gradient: Tensor, rows: Tensor) -> None:
    """`total += gradient.T @ rows`, `(V, C)`, with `total` in the wide dtype."""
    if gradient.dtype == total.dtype:
        total.addmm_(gradient.T, rows)
        return
    slices = 4096  # rows of V at a time: the product of 16-bit factors comes in 16 bits and is widened when added
    for part, piece in zip(total.split(slices), gradient.split(slices, dim=1), strict=True):
        part.add_(torch.mm(piece.T, rows))


def is_plain(head: nn.Module) -> bool:
    """Whether a head is one weight and nothing more, so that `linear_cross_entropy` serves it."""
    return type(head) is nn.Linear and head.weight.is_floating_point()

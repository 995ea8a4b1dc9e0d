"""Cross-entropy from hidden states without ever holding the logits of all tokens.

The logits of a chunk of rows are made, turned into that chunk's gradients and overwritten by the next chunk; nothing
of the size `(N, V)` outlives it, forward or backward. Rows whose target is ignored are left out before the matrix
product. The idea is Cut Your Losses' (https://arxiv.org/abs/2411.09009) and Liger's
(https://arxiv.org/abs/2410.10989).

N: rows (tokens), C: `n_embd`, V: vocabulary, R: rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from litgpt.kernels.linear import faster_with_onednn, onednn_product
from litgpt.kernels.values import has_values
from litgpt.model import GPT
from litgpt.quantize import QuantizedLinear, dense_weight

IGNORED = -100
"""The target of a token that has no loss."""

CHUNK_BYTES = 64 * 2**20
"""Memory for the logits of one chunk, bytes."""

CACHED_BYTES = 2 * 2**20
"""Memory for what is computed of logits between two products on a CPU: small enough to stay in its cache."""

SLICE = 4096
"""Rows of the head whose gradient by one chunk is made at a time where it comes in another dtype than their sum's."""

RETURNED_BYTES = 40 * 2**20
"""Size of a tensor whose memory the C library gives back as soon as it is freed (glibc: from 32 MiB on, always)."""


@dataclass(frozen=True)
class Terms:
    """What a token's loss is made of besides `-log p(target)`."""

    cap: float | None = None
    """Soft cap of the logits: `cap · tanh(logits / cap)`."""
    z_loss: float = 0.0
    """Adds so many times the square of the logits' log-sum-exp (PaLM, https://arxiv.org/abs/2204.02311, section 5)."""
    label_smoothing: float = 0.0
    """Takes this share, 0 to 1, from the target and spreads it evenly over the vocabulary, the target included
    (https://arxiv.org/abs/1512.00567, section 7)."""

    @property
    def plain(self) -> Terms:
        """The same logits with nothing but the target's loss: what validation reports."""
        return replace(self, z_loss=0.0, label_smoothing=0.0)


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


class NextToken(nn.Module):
    """The sum of the next-token losses of one micro-batch."""

    def __init__(self, model: GPT, z_loss: float = 0.0, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.terms = Terms(model.config.final_logit_softcapping, z_loss, label_smoothing)
        """In training; in evaluation mode the loss is the plain one."""
        self.scratch = Buffers()

    def forward(self, inputs: Tensor, targets: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Inputs and targets `(B, T)`, and for packed samples their `lengths` (B is 1) → the sum of the losses,
        float32.

        Logits are never held for all tokens; see the head of this file.
        """
        model = self.model
        hidden = model.hidden(inputs, lengths=lengths).flatten(0, 1)  # (B·T, C)
        targets = targets.flatten()
        head = model.lm_head
        terms = self.terms if self.training else self.terms.plain
        if is_plain(head) or isinstance(head, QuantizedLinear):
            bias: Tensor | None = head.bias
            divisor = model.config.logits_divisor
            if divisor != 1:
                hidden, bias = hidden / divisor, None if bias is None else bias / divisor
            return linear_cross_entropy(hidden, dense_weight(head), targets, bias, terms, self.scratch)
        assert model.config.padded_vocab_size is not None
        return head_cross_entropy(model.head, hidden, targets, model.config.padded_vocab_size, terms)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    terms: Terms = Terms(),
    buffers: Buffers | None = None,
) -> Tensor:
    """The sum over tokens of `-log softmax(softcap(hidden @ weight.T + bias))[target]` and of the other `terms`, in
    float32.

    Gradients are those of the full computation, made in the forward pass for what requires them: a frozen head costs
    no gradient buffer and half a trained one's time. Products run in the dtype of `hidden` (autocast's, inside
    autocast), all else and the sums over chunks in float32 (float64 for float64).

    Args:
        hidden: `(N, C)`.
        weight: `(V, C)`.
        targets: `(N,)`, int64; `IGNORED` has no loss.
        bias: `(V,)`.
        terms: Soft cap, z-loss, label smoothing.
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
            hidden, weight, bias, targets, _Settings(terms, dtype, wanted, buffers or Buffers())
        )
    assert isinstance(loss, Tensor)
    return loss


def head_cross_entropy(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, vocab_size: int, terms: Terms = Terms()
) -> Tensor:
    """The same sum for a head that is more than a weight (LoRA, quantized): `head` maps `(R, C)` to logits `(R, V)`,
    soft cap included.

    Chunks are computed again in the backward pass instead of being kept.
    """
    kept = targets != IGNORED
    hidden, targets = hidden[kept], targets[kept]

    def chunk_loss(rows: Tensor, row_targets: Tensor) -> Tensor:
        logits = head(rows)
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        loss = F.cross_entropy(logits, row_targets, reduction="sum", label_smoothing=terms.label_smoothing)
        return loss + terms.z_loss * logits.logsumexp(-1).square().sum() if terms.z_loss else loss

    loss = hidden.sum() * 0.0  # stays connected to the model where every target is ignored
    for rows, row_targets in zip(*(_split(part, _rows(vocab_size, 4)) for part in (hidden, targets)), strict=True):
        if rows.size(0):
            loss = loss + checkpoint(chunk_loss, rows, row_targets, use_reentrant=False)
    return loss.float()


class _Settings:
    """What one call is about besides its tensors."""

    def __init__(self, terms: Terms, dtype: torch.dtype, wanted: tuple[bool, ...], buffers: Buffers) -> None:
        self.terms = terms
        self.dtype = dtype
        """Of the matrix products."""
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        """Of all else."""
        self.wants_hidden, self.wants_weight, self.wants_bias = wanted
        self.buffers = buffers


def _rows(vocab_size: int, itemsize: int) -> int:
    """Rows of a chunk, a multiple of 16."""
    return max(16, CHUNK_BYTES // (vocab_size * itemsize) // 16 * 16)


def _split(tensor: Tensor, rows: int) -> tuple[Tensor, ...]:
    """Chunks of so many rows; of a tensor without values the first and the last, as those between are like the
    first."""
    chunks = tensor.split(rows)
    return chunks if len(chunks) < 3 or has_values(tensor) else (chunks[0], chunks[-1])


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, settings: _Settings
    ) -> Tensor:
        rows = (targets != IGNORED).nonzero().squeeze(1)  # (N',)
        sums = _Sums(hidden, weight, bias, settings)
        for chunk in _split(rows, sums.rows_of_chunk()):
            if chunk.numel():
                sums.add(hidden, chunk, targets[chunk])
        ctx.sums = sums
        ctx.dtypes = hidden.dtype, weight.dtype
        return sums.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        sums, ctx.sums = ctx.sums, None
        if sums is None:
            raise RuntimeError("The gradients of this loss have been used; compute it again.")
        of_hidden, of_weight = ctx.dtypes
        hidden = None if sums.hidden is None else sums.hidden.mul_(factor).to(of_hidden)
        bias = None if sums.bias is None else sums.bias.mul_(factor).to(of_weight)
        return hidden, sums.weight_gradient(factor, of_weight), bias, None, None


class _Sums:
    """The loss and the gradients, summed up chunk by chunk."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, settings: _Settings) -> None:
        wide = settings.wide
        self.settings = settings
        self.matrix = weight.detach().to(settings.dtype)  # (V, C)
        self.offset = None if bias is None else bias.detach().to(wide)  # (V,)
        self.loss = torch.zeros((), dtype=wide, device=hidden.device)
        self.hidden = torch.zeros_like(hidden, requires_grad=False) if settings.wants_hidden else None
        self.bias = (
            torch.zeros_like(bias, dtype=wide, requires_grad=False)
            if bias is not None and settings.wants_bias
            else None
        )
        self.weight: list[Tensor] = []  # `(V, C)` in slices, in the wide dtype
        if settings.wants_weight:
            height = weight.size(0)
            if weight.dtype != wide:  # given up one by one as the narrow gradient is made
                height = max(1, RETURNED_BYTES // (weight.size(1) * wide.itemsize) // SLICE) * SLICE
            self.weight = [torch.zeros_like(part, dtype=wide) for part in weight.detach().split(height)]

    def rows_of_chunk(self) -> int:
        """Rows whose logits are made at a time. On a CPU these are held in the dtype of the products alone."""
        settings = self.settings
        on_cpu = self.matrix.device.type == "cpu"
        return _rows(self.matrix.size(0), (settings.dtype if on_cpu else settings.wide).itemsize)

    def add(self, hidden: Tensor, chunk: Tensor, targets: Tensor) -> None:
        """Adds the rows of `hidden` that `chunk` names."""
        settings, V = self.settings, self.matrix.size(0)
        rows = hidden.detach()[chunk].to(settings.dtype)  # (R, C)
        quick = faster_with_onednn(rows, self.matrix)
        if quick:
            products = onednn_product(rows, self.matrix)  # (R, V)
        else:
            products = settings.buffers.get("products", (chunk.numel(), V), rows, settings.dtype)
            torch.mm(rows, self.matrix.T, out=products)
        few = len(rows)
        if products.device.type == "cpu":
            few = max(1, CACHED_BYTES // (V * settings.wide.itemsize))
        for some, their_targets in zip(_split(products, few), _split(targets, few), strict=True):
            self._to_gradient(some, their_targets)
        if self.hidden is not None:
            multiplied = onednn_product(products, self.matrix.T) if quick else products @ self.matrix
            self.hidden.index_copy_(0, chunk, multiplied.to(self.hidden.dtype))
        if self.weight:
            self._add_to_weight(products, rows)

    def _to_gradient(self, products: Tensor, targets: Tensor) -> None:
        """Turns logits `(R, V)` into the loss's gradient by them, in place, and adds their loss."""
        settings, terms = self.settings, self.settings.terms
        shape = (products.size(0), products.size(1))
        logits, slope = products, None
        if settings.dtype != settings.wide:
            logits = settings.buffers.get("logits", shape, products, settings.wide).copy_(products)
        if self.offset is not None:
            logits.add_(self.offset)
        if terms.cap is not None:
            bent = logits.div_(terms.cap).tanh_()
            slope = torch.mul(bent, bent, out=settings.buffers.get("slope", shape, products, settings.wide))
            slope.neg_().add_(1)
            logits = bent.mul_(terms.cap)
        at_target = (torch.arange(shape[0], device=products.device), targets)
        wanted = logits[at_target].mul_(1 - terms.label_smoothing)  # (R,)
        if terms.label_smoothing:
            wanted += logits.mean(-1).mul_(terms.label_smoothing)
        largest = logits.amax(-1, keepdim=True)
        total = logits.sub_(largest).exp_().sum(-1, keepdim=True)
        log_total = total.log().add_(largest)  # log-sum-exp, (R, 1)
        self.loss += log_total.sum() - wanted.sum()
        if terms.z_loss:
            self.loss += terms.z_loss * log_total.square().sum()
        if self.hidden is None and self.bias is None and not self.weight:
            return
        gradient = logits.mul_((1 + 2 * terms.z_loss * log_total).div_(total))  # softmax, but for the z-loss
        gradient[at_target] -= 1 - terms.label_smoothing
        if terms.label_smoothing:
            gradient.sub_(terms.label_smoothing / shape[1])
        if slope is not None:
            gradient.mul_(slope)
        if self.bias is not None:
            self.bias += gradient.sum(0)
        if gradient.dtype != products.dtype:
            products.copy_(gradient)

    def _add_to_weight(self, gradient: Tensor, rows: Tensor) -> None:
        """Adds `gradient.T @ rows`, `(V, C)`."""
        if gradient.dtype == self.settings.wide:
            self.weight[0].addmm_(gradient.T, rows)
            return
        slices = (part for tensor in self.weight for part in tensor.split(SLICE))
        for part, piece in zip(slices, gradient.split(SLICE, dim=1), strict=True):
            part.add_(torch.mm(piece.T, rows))  # a product of 16-bit factors comes in 16 bits, widened when added

    def weight_gradient(self, factor: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The sum over all chunks, times `factor`, in `dtype`; gives the slices up one by one."""
        if not self.weight:
            return None
        if len(self.weight) == 1:
            return self.weight.pop().mul_(factor).to(dtype)
        gradient = torch.empty_like(self.matrix, dtype=dtype)
        for part in gradient.split([len(part) for part in self.weight]):
            part.copy_(self.weight.pop(0).mul_(factor))
        return gradient


def is_plain(head: nn.Module) -> bool:
    """Whether a head is one weight and nothing more, so that `linear_cross_entropy` serves it."""
    return type(head) is nn.Linear and head.weight.is_floating_point()

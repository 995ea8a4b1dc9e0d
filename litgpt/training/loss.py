"""Cross-entropy, and log-probabilities of tokens, from hidden states without ever holding the logits of all tokens.

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

from litgpt.kernels import triton
from litgpt.kernels.buffers import Buffers
from litgpt.kernels.linear import faster_with_onednn, onednn_product
from litgpt.kernels.values import has_values
from litgpt.model import GPT
from litgpt.quantize import QuantizedLinear, dense_weight
from litgpt.training.run import Objective

IGNORED = -100
"""The target of a token that has no loss."""

CHUNK_BYTES = 64 * 2**20
"""Memory for the logits of one chunk, bytes."""

CHUNK_ROWS = 1024
"""Rows of one chunk where kernels are launched from a host, which takes longer than it takes to compute a few rows."""

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
    dft: bool = False
    """Weighs the loss by the target's probability, which counts as a constant (https://arxiv.org/abs/2508.05629)."""

    @property
    def plain(self) -> Terms:
        """The same logits with nothing but the target's loss: what validation reports."""
        return replace(self, z_loss=0.0, label_smoothing=0.0, dft=False)


class NextToken(Objective):
    """The sum of the next-token losses of one micro-batch."""

    def __init__(self, model: GPT, z_loss: float = 0.0, label_smoothing: float = 0.0, dft: bool = False) -> None:
        super().__init__(model)
        self.terms = Terms(model.config.final_logit_softcapping, z_loss, label_smoothing, dft)
        """In training; in evaluation mode the loss is the plain one."""

    def forward(
        self, inputs: Tensor, targets: Tensor, lengths: Sequence[int] | None = None, given: Tensor | None = None
    ) -> Tensor:
        """Inputs and targets `(B, T)`, and for packed samples their `lengths` (B is 1) → the sum of the losses,
        float32.

        Logits are never held for all tokens; see the head of this file.
        """
        hidden, weight, bias = before_logits(self.model, inputs, lengths)
        targets, terms = targets.flatten(), self.terms if self.training else self.terms.plain
        kept, self.kept = self.kept, None
        if weight is not None:
            return linear_cross_entropy(hidden, weight, targets, bias, terms, self.scratch, kept)
        assert self.model.config.padded_vocab_size is not None
        return head_cross_entropy(self.model.head, hidden, targets, self.model.config.padded_vocab_size, terms, kept)


def before_logits(
    model: GPT, inputs: Tensor, lengths: Sequence[int] | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Hidden states `(B·T, C)`, and the weight and the bias that make logits of them; no weight where the head is more
    than one."""
    hidden, head = model.hidden(inputs, lengths=lengths).flatten(0, 1), model.lm_head
    if not (is_plain(head) or isinstance(head, QuantizedLinear)):
        return hidden, None, None
    bias: Tensor | None = head.bias
    divisor = model.config.logits_divisor
    if divisor != 1:
        hidden, bias = hidden / divisor, None if bias is None else bias / divisor
    return hidden, dense_weight(head), bias


def token_log_probs(
    model: GPT,
    inputs: Tensor,
    targets: Tensor,
    lengths: Sequence[int] | None = None,
    buffers: Buffers | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """`(B, T)` each → the log-probability of every target, `(B·T,)`, float32; 0 where a target is `IGNORED`. Logits are
    divided by the `temperature`."""
    if temperature != 1:
        hidden, rows = model.hidden(inputs, lengths=lengths).flatten(0, 1), model.config.padded_vocab_size or 1
        return head_log_probs(lambda states: model.head(states) / temperature, hidden, targets.flatten(), rows)
    hidden, weight, bias = before_logits(model, inputs, lengths)
    if weight is not None:
        terms = Terms(model.config.final_logit_softcapping)
        return linear_log_probs(hidden, weight, targets.flatten(), bias, terms, buffers)
    assert model.config.padded_vocab_size is not None
    return head_log_probs(model.head, hidden, targets.flatten(), model.config.padded_vocab_size)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    terms: Terms = Terms(),
    buffers: Buffers | None = None,
    kept: Tensor | slice | None = None,
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
        kept: The rows that have a target, where that is known.
    """
    settings = _Settings.of(hidden, weight, bias, terms, buffers)
    settings.kept = kept
    with torch.autocast(hidden.device.type, enabled=False):
        loss = _LinearCrossEntropy.apply(hidden, weight, bias, targets, settings)
    assert isinstance(loss, Tensor)
    return loss


def linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    terms: Terms = Terms(),
    buffers: Buffers | None = None,
) -> Tensor:
    """`log softmax(softcap(hidden @ weight.T + bias))[target]` of every token, `(N,)`, float32; 0 where it is
    `IGNORED`.

    Arguments as `linear_cross_entropy`'s; of the terms only the cap counts. Where the head is frozen, the gradients of
    the rows are made in the forward pass and wait for their factors; where it trains, the backward pass makes the
    logits of each chunk again.
    """
    settings = _Settings.of(hidden, weight, bias, terms.plain, buffers)
    with torch.autocast(hidden.device.type, enabled=False):
        log_probs = _LinearLogProbs.apply(hidden, weight, bias, targets, settings)
    assert isinstance(log_probs, Tensor)
    return log_probs


def head_cross_entropy(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    targets: Tensor,
    vocab_size: int,
    terms: Terms = Terms(),
    kept: Tensor | slice | None = None,
) -> Tensor:
    """The same sum for a head that is more than a weight (LoRA, quantized): `head` maps `(R, C)` to logits `(R, V)`,
    soft cap included.

    Chunks are computed again in the backward pass instead of being kept.
    """
    rows = targets != IGNORED if kept is None else kept
    if not len(targets[rows]):
        return connected(head, hidden)
    hidden, targets = hidden[rows], targets[rows]

    def chunk_loss(rows: Tensor, row_targets: Tensor) -> Tensor:
        logits = head(rows)
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        if terms.dft:
            each = F.cross_entropy(logits, row_targets, reduction="none")
            return (each * each.detach().neg().exp()).sum()
        loss = F.cross_entropy(logits, row_targets, reduction="sum", label_smoothing=terms.label_smoothing)
        return loss + terms.z_loss * logits.logsumexp(-1).square().sum() if terms.z_loss else loss

    chunks = slices(hidden, chunk_rows(vocab_size, 4, hidden))
    losses = [checkpoint(chunk_loss, hidden[own], targets[own], use_reentrant=False) for own in chunks]
    return torch.stack(losses).sum().float()


def head_log_probs(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """What `linear_log_probs` returns, for such a head."""
    rows = (targets != IGNORED).nonzero().squeeze(1)

    def chunk_log_probs(states: Tensor, row_targets: Tensor) -> Tensor:
        logits = head(states)
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        return -F.cross_entropy(logits, row_targets, reduction="none")

    parts = [
        checkpoint(chunk_log_probs, hidden[chunk], targets[chunk], use_reentrant=False)
        for chunk in (rows[own] for own in slices(rows, chunk_rows(vocab_size, 4, hidden)))
    ]
    if not parts:
        return connected(head, hidden).expand(len(targets))
    log_probs = torch.cat(parts)
    return log_probs.new_zeros(len(targets)).index_add(0, rows, log_probs)


def connected(head: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
    """Zero, in float32 or wider, made of all that makes logits. Where every target is ignored, all that trains still
    gets its gradient: ranks whose parameters with one differ would wait for each other."""
    logits = head(hidden[:1])
    return (logits.float() if logits.dtype.itemsize < 4 else logits).sum() * 0.0


class _Settings:
    """What one call is about besides its tensors."""

    kept: Tensor | slice | None = None

    @classmethod
    def of(
        cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, terms: Terms, buffers: Buffers | None
    ) -> _Settings:
        """For these tensors, as autograd and autocast are set now."""
        device_type = hidden.device.type
        autocast = torch.is_autocast_enabled(device_type)
        wanted = tuple(
            torch.is_grad_enabled() and tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)
        )
        dtype = torch.get_autocast_dtype(device_type) if autocast else hidden.dtype
        return cls(terms, dtype, wanted, buffers or Buffers())

    def __init__(self, terms: Terms, dtype: torch.dtype, wanted: tuple[bool, ...], buffers: Buffers) -> None:
        self.terms = terms
        self.dtype = dtype
        """Of the matrix products."""
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        """Of all else."""
        self.wants_hidden, self.wants_weight, self.wants_bias = wanted
        self.buffers = buffers

    @property
    def without_gradients(self) -> _Settings:
        """The same for a call that makes none."""
        return _Settings(self.terms, self.dtype, (False, False, False), self.buffers)


def chunk_rows(vocab_size: int, itemsize: int, like: Tensor) -> int:
    """Rows of a chunk of logits, a multiple of 16, on the device of `like`; `itemsize`: bytes for each number."""
    fit = max(16, CHUNK_BYTES // (vocab_size * itemsize) // 16 * 16)
    return fit if like.device.type == "cpu" else max(fit, CHUNK_ROWS)


def slices(tensor: Tensor, rows: int) -> list[slice]:
    """Pieces of so many rows; of a tensor without values the first and the last: those between are like the first."""
    pieces = [slice(start, start + rows) for start in range(0, len(tensor), rows)]
    return pieces if len(pieces) < 3 or has_values(tensor) else [pieces[0], pieces[-1]]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, settings: _Settings
    ) -> Tensor:
        sums = _Sums(hidden, weight, bias, settings)
        sums.add_all(hidden, targets)
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


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, settings: _Settings
    ) -> Tensor:
        ctx.again = settings.wants_weight or settings.wants_bias
        sums = _Sums(hidden, weight, bias, settings.without_gradients if ctx.again else settings)
        sums.each = torch.zeros(targets.numel(), dtype=settings.wide, device=hidden.device)
        sums.add_all(hidden, targets)
        ctx.settings = settings
        ctx.of_rows = sums.hidden
        ctx.save_for_backward(*((hidden, weight, bias, targets) if ctx.again else ()))
        return sums.each.neg_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factors: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.again:
            if ctx.of_rows is None:
                raise RuntimeError("The gradients of these log-probabilities have been used; compute them again.")
            rows, ctx.of_rows = ctx.of_rows, None
            return rows.mul_(factors.neg()[:, None]), None, None, None, None
        hidden, weight, bias, targets = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            sums = _Sums(hidden, weight, bias, ctx.settings)
            sums.add_all(hidden, targets, factors.neg())
            one = torch.ones_like(sums.loss)
            of_bias = None if sums.bias is None else sums.bias.to(weight.dtype)
            return sums.hidden, sums.weight_gradient(one, weight.dtype), of_bias, None, None


class _Sums:
    """The loss and the gradients, summed up chunk by chunk."""

    each: Tensor | None = None
    """Gets the loss of every row, `(N,)`, where it is there."""

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
        return chunk_rows(self.matrix.size(0), (settings.dtype if on_cpu else settings.wide).itemsize, self.matrix)

    def add_all(self, hidden: Tensor, targets: Tensor, factors: Tensor | None = None) -> None:
        """Adds all rows that have a target; their gradients are multiplied with `factors`, `(N,)`."""
        kept = self.settings.kept
        rows = (targets != IGNORED).nonzero().squeeze(1) if kept is None else kept  # (N',)
        for own in slices(targets if isinstance(rows, slice) else rows, self.rows_of_chunk()):
            chunk = own if isinstance(rows, slice) else rows[own]  # without one to leave out, nothing is gathered
            self.add(hidden, chunk, targets[chunk], None if factors is None else factors[chunk])

    def add(self, hidden: Tensor, chunk: Tensor | slice, targets: Tensor, factors: Tensor | None) -> None:
        """Adds the rows of `hidden` that `chunk` names."""
        settings, V = self.settings, self.matrix.size(0)
        rows = hidden.detach()[chunk].to(settings.dtype)  # (R, C)
        quick = faster_with_onednn(rows, self.matrix)
        if quick:
            products = onednn_product(rows, self.matrix)  # (R, V)
        else:
            products = settings.buffers.get("products", (len(rows), V), rows, settings.dtype)
            torch.mm(rows, self.matrix.T, out=products)
        few = len(rows)
        if products.device.type == "cpu":
            few = max(1, CACHED_BYTES // (V * settings.wide.itemsize))
        for own in slices(products, few):
            losses = self._to_gradient(products[own], targets[own], None if factors is None else factors[own])
            self.loss += losses.sum()
            if self.each is not None:
                self.each[torch.arange(len(self.each), device=losses.device)[chunk][own]] = losses
        if self.hidden is not None:
            multiplied = onednn_product(products, self.matrix.T) if quick else products @ self.matrix
            self.hidden[chunk] = multiplied.to(self.hidden.dtype)
        if self.weight:
            self._add_to_weight(products, rows)

    def _to_gradient(self, products: Tensor, targets: Tensor, factors: Tensor | None) -> Tensor:
        """Turns logits `(R, V)` into the loss's gradient by them, in place; returns the losses, `(R,)`."""
        settings, terms = self.settings, self.settings.terms
        if triton.chosen(products):
            return self._to_gradient_at_once(products, targets, factors)
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
        losses = log_total.squeeze(-1) - wanted
        if terms.z_loss:
            losses += terms.z_loss * log_total.squeeze(-1).square()
        if terms.dft:
            factors = losses.neg().exp()
            losses = losses * factors
        if self.hidden is None and self.bias is None and not self.weight:
            return losses
        gradient = logits.mul_((1 + 2 * terms.z_loss * log_total).div_(total))  # softmax, but for the z-loss
        gradient[at_target] -= 1 - terms.label_smoothing
        if terms.label_smoothing:
            gradient.sub_(terms.label_smoothing / shape[1])
        if slope is not None:
            gradient.mul_(slope)
        if factors is not None:
            gradient.mul_(factors[:, None])
        if self.bias is not None:
            self.bias += gradient.sum(0)
        if gradient.dtype != products.dtype:
            products.copy_(gradient)
        return losses

    def _to_gradient_at_once(self, products: Tensor, targets: Tensor, factors: Tensor | None) -> Tensor:
        """As `_to_gradient`, by one kernel."""
        from litgpt.kernels.triton.cross_entropy import cross_entropy_

        terms = self.settings.terms
        wanted = self.hidden is not None or self.bias is not None or bool(self.weight)
        settings = (terms.cap, terms.z_loss, terms.label_smoothing, terms.dft, wanted)
        losses: Tensor = cross_entropy_(products, targets, self.offset, factors, *settings)
        if self.bias is not None:
            self.bias += products.sum(0, dtype=self.bias.dtype)
        return losses

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

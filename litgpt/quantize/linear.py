"""Linear layers and experts whose frozen weights are kept in few bits.

O, I: `out_features`, `in_features`; M: rows of the input; E: experts; G: groups of columns that share a scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litgpt.errors import LitGPTError
from litgpt.kernels.linear import matmul_dtype
from litgpt.model.moe import Experts
from litgpt.quantize import kernels

QUANTIZE_CHUNK = 2**20
"""Weights that are quantized at a time, a multiple of 64 rows of them: more would only take memory."""


class QuantizedLinear(nn.Linear):
    """A linear layer with a frozen weight in few bits: made empty, until `load_weight` is called.

    Gradients go through it to its input, and are those of a linear layer with the weight `dequantized`.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, dtype: torch.dtype) -> None:
        """`dtype`: what is computed in."""
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.dtype = in_features, out_features, dtype
        self.weight = nn.Parameter(torch.empty(0, device="meta", dtype=torch.uint8), requires_grad=False)
        own = nn.Parameter(torch.empty(out_features, device="meta", dtype=dtype)) if bias else None
        self.register_parameter("bias", own)

    def load_weight(self, weight: Tensor) -> None:
        """Quantizes `weight`, `(O, I)` of any floating-point type, and keeps that; its device is this layer's."""
        raise NotImplementedError(type(self).__name__)

    def load_codes(self, codes: Tensor, scales: Tensor, zeros: Tensor) -> None:
        """Keeps a weight that is in few bits already, as `litgpt.checkpoint.weights.Codes` has it."""
        raise NotImplementedError(type(self).__name__)

    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight as a product sees it, `(O, I)`; made anew at each call."""
        raise NotImplementedError(type(self).__name__)

    def product(self, rows: Tensor) -> Tensor:
        """`(M, I)` → `(M, O)`, without gradients and bias."""
        dtype = matmul_dtype(rows)
        return F.linear(rows.to(dtype), self.dequantized(dtype)).to(rows.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """`(…, I)` → `(…, O)`."""
        rows = x.reshape(-1, self.in_features).contiguous()
        training = x.requires_grad and torch.is_grad_enabled()
        y = _Frozen.apply(rows, self) if training else self.product(rows)
        assert isinstance(y, Tensor)
        if self.bias is not None:
            y = y + self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def set_weight(self, packed: Tensor) -> None:
        """Makes `packed` the weight."""
        self.weight = nn.Parameter(packed, requires_grad=False)

    def chunks(self, weight: Tensor) -> Iterator[tuple[Tensor, int, int]]:
        """The weight in float32, rows `start` to `end` at a time; perhaps the very same memory, so not to be written
        to. (Write what is made of each to its place at once: small results that are kept apart would lie where large
        temporary ones were, and the heap grow by one of those for each.)"""
        step = max(1, QUANTIZE_CHUNK // self.in_features // 64) * 64
        for start in range(0, weight.size(0), step):
            rows = weight.detach()[start : start + step]
            yield rows.float().contiguous(), start, start + len(rows)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, dtype={str(self.dtype).removeprefix('torch.')}"


class _Frozen(torch.autograd.Function):
    """A product that keeps nothing for the backward pass: the weight is dequantized again."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(rows, layer.dequantized(rows.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.dequantized(gradient.dtype), None


class Int8Linear(QuantizedLinear):
    """Weights of 8 bits with a scale for each row."""

    scale: Tensor

    def load_weight(self, weight: Tensor) -> None:
        codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scales = torch.empty(weight.size(0), dtype=self.dtype, device=weight.device)
        for rows, start, end in self.chunks(weight):
            # The scale is quantize_groups first, so that what it loses is made up for by the codes.
            scale = rows.abs().amax(dim=1).div_(127).clamp_(min=torch.finfo(self.dtype).tiny).to(self.dtype)
            codes[start:end] = (rows / scale[:, None].float()).round_().clamp_(-127, 127)
            scales[start:end] = scale
        self.load_codes(codes, scales[:, None], scales)

    def load_codes(self, codes: Tensor, scales: Tensor, zeros: Tensor) -> None:
        self.set_weight(codes)
        self.register_buffer("scale", scales[:, 0].to(self.dtype), persistent=False)

    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or self.dtype
        return self.weight.to(dtype).mul_(self.scale[:, None].to(dtype))

    def product(self, rows: Tensor) -> Tensor:
        return kernels.int8_product(rows, self.weight, self.scale)


class Int4Linear(QuantizedLinear):
    """Weights of 4 bits with a scale and a zero for each group of columns of a row: `(code - 8) · scale + zero`."""

    scales: Tensor

    def load_weight(self, weight: Tensor) -> None:
        n, G = weight.size(0), weight.size(1) // kernels.GROUP
        packed: Tensor | None = None
        scales = torch.empty(G, n, 2, dtype=self.dtype, device=weight.device)
        for rows, start, end in self.chunks(weight):
            codes, factors = quantize_groups(rows.view(rows.size(0), -1, kernels.GROUP), self.dtype)
            part = kernels.pack_int4(codes.flatten(1))
            if packed is None:  # what a row takes is the kernel's to say
                packed = part.new_empty(len(part) * n // len(rows), *part.shape[1:])
            packed[len(packed) * start // n : len(packed) * end // n] = part
            scales[:, start:end] = factors.transpose(0, 1)
        assert packed is not None
        self.set_weight(packed)
        self.register_buffer("scales", scales, persistent=False)

    def load_codes(self, codes: Tensor, scales: Tensor, zeros: Tensor) -> None:
        factors = torch.stack((scales, zeros), dim=-1).to(self.dtype)  # (O, G, 2)
        groups = factors.repeat_interleave(self.in_features // kernels.GROUP // factors.size(1), dim=1)
        self.set_weight(kernels.pack_int4(codes.int()))
        self.register_buffer("scales", groups.transpose(0, 1).contiguous(), persistent=False)

    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        return kernels.int4_dequantized(self.weight, self.scales).to(dtype or self.dtype)

    def product(self, rows: Tensor) -> Tensor:
        return kernels.int4_product(rows, self.weight, self.scales)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        before = self.weight.device.type
        if before != "meta" and fn(torch.empty(0, device=self.weight.device)).device.type != before:
            raise LitGPTError("Weights of 4 bits can't be moved to another kind of device; load the model there.")
        return super()._apply(fn, recurse)


@torch.no_grad()
def quantize_groups(groups: Tensor, dtype: torch.dtype, rounds: int = 2) -> tuple[Tensor, Tensor]:
    """Codes 0 … 15 for groups of weights, and the scales and zeros that go with them.

    Starts from the range of a group; then, in turn, scale and zero are those that fit the codes best (least squares)
    and the codes those that fit scale and zero best.

    Args:
        groups: `(O, G, GROUP)` float32.
        dtype: What scales and zeros are kept in.
        rounds: How often.

    Returns:
        Codes of the shape of `groups`, int32, and scales and zeros `(O, G, 2)`.
    """
    low, high = groups.amin(dim=2, keepdim=True), groups.amax(dim=2, keepdim=True)
    scale = (high - low) / 15
    zero = low + 8 * scale
    for turn in range(rounds + 1):
        scale, zero = (factor.to(dtype).float() for factor in (scale, zero))
        divisor = torch.where(scale == 0, 1.0, scale)
        codes = ((groups - zero) / divisor).round_().clamp_(-8, 7)
        if turn < rounds:
            centre = codes.mean(dim=2, keepdim=True)
            offsets = codes - centre
            spread = offsets.square().sum(dim=2, keepdim=True)
            fit = (offsets * groups).sum(dim=2, keepdim=True) / spread.clamp(min=1e-12)
            scale = torch.where(spread > 0, fit, scale)
            zero = groups.mean(dim=2, keepdim=True) - scale * centre
    return (codes + 8).to(torch.int32), torch.cat((scale, zero), dim=2).to(dtype)


class QuantizedExperts(Experts):
    """The experts of a layer, each with layers of its own in few bits; they are computed one after the other."""

    def __init__(self, experts: Experts, make: Callable[[int, int], QuantizedLinear]) -> None:
        """`make`: an empty layer of `(in_features, out_features)` without bias."""
        nn.Module.__init__(self)
        self.swiglu_limit, self.gelu, self.act = experts.swiglu_limit, experts.gelu, experts.act
        self.linears = experts.linears
        self.scales_inputs = experts.scales_inputs
        stacked = dict(experts.named_parameters(recurse=False))
        self.parts = {name: part for name, part in experts.parts.items() if part.endswith("_bias")}
        for name, part in stacked.items():
            if name.endswith("_bias"):
                self.register_parameter(name, part)
            else:
                E, rows, columns = part.shape
                self.add_module(name, ExpertLinears([make(columns, rows) for _ in range(E)]))

    def linear(self, part: str, x: Tensor, expert: Tensor, ends: Tensor) -> Tensor:
        bounds = [0, *ends.tolist()]
        layers = zip(getattr(self, part), bounds, bounds[1:], strict=False)
        y = torch.cat([layer(x[start:end]) for layer, start, end in layers if end > start])
        return y + getattr(self, f"{part}_bias")[expert] if f"{part}.bias" in self.parts else y


class ExpertLinears(nn.ModuleList):
    """One part of all experts; its shape, device and dtype are those of the stacked weight `(E, O, I)` in its place."""

    def first(self) -> QuantizedLinear:
        """The first expert's layer; they are alike."""
        layer = self[0]
        assert isinstance(layer, QuantizedLinear)
        return layer

    @property
    def shape(self) -> torch.Size:
        """`(E, O, I)`."""
        return torch.Size((len(self), self.first().out_features, self.first().in_features))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.first().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the packed weights."""
        return self.first().weight.dtype

    def is_floating_point(self) -> bool:
        """As a tensor's."""
        return False


def dense_weight(layer: nn.Module | Tensor) -> Tensor:
    """The weight of a linear layer `(O, I)`, or of a part of experts `(E, O, I)`, dequantized where it has to be."""
    if isinstance(layer, nn.ModuleList):
        return torch.stack([dense_weight(expert) for expert in layer])
    if isinstance(layer, QuantizedLinear):
        return layer.dequantized()
    weight = layer.weight if isinstance(layer, nn.Module) else layer
    assert isinstance(weight, Tensor)
    return weight

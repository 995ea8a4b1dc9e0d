"""Linear layers on the CPU in less time than torch's own, by the dtype of their weights and the processor.

bfloat16 without gradients
    Where the processor has bfloat16 instructions, `F.linear` hands the weight over transposed, and oneDNN then reorders
    all of it for every call. As weight times tokens it is read in its own order; a single token is a matrix times a
    vector, which reads fastest. All add up in float32 and round once, as `F.linear` does. The result of weight times
    tokens is transposed: the tokens are its columns. Transposing it back costs a fifth of the time at 32 tokens and
    more than is saved from some 200 on, so layers before a pointwise function don't. Measured on a processor with AMX,
    2 to 512 tokens: 0.51 to 0.83 of the time for those; 0.63 to 0.91 for the others up to 64 tokens.

    Where it has none, torch's products of several tokens emulate them at a ninth of float32's speed. Here a few rows of
    the weight at a time are cast to float32, where they stay in the cache, and multiplied: float32's speed with
    bfloat16's memory. A single token is faster as it is: half as much is read. Measured on a processor with AVX2, 2 to
    256 tokens: 0.86 to 0.11 of the time.

float32 on AMD's processors with AVX-512, gradients included
    torch multiplies float32 matrices with MKL, which leaves a quarter of such a processor's speed unused. oneDNN comes
    with torch, too. Measured on a Zen 4, one and two threads, weights of 576 to 11,008: from 64 tokens on 0.7 to 0.85
    of MKL's time for outputs and for gradients by inputs, 0.75 to 1 for gradients by weights; for 4 tokens half of it
    for large weights, and no more for small ones.

    oneDNN writes code for each number of tokens and each shape of a weight, in float32 and in bfloat16, some 0.3 MB. It
    and torch keep 1,024 of these: over a gigabyte in training, where hardly two steps have the same number of tokens.
    Importing this module makes it fewer, which takes no more time: all layers of a pass share their code.

float32 on CPUs with AVX2 and no AVX-512, of a model that isn't trained
    A single token is a matrix times a vector, and takes as long as the matrix is read. MKL reads it fastest where the
    numbers of an *input* are contiguous, if there are at least as many outputs: 0.6 to 0.8 of the time there, half for
    two tokens. So such weights are stored transposed, where at most three tokens are expected; their shape stays.

    From four tokens on that costs something. Weights then stay as they are, and a head, with its many outputs, is
    multiplied some rows at a time, which stay in the cache: 0.6 to 0.75 of the time of MKL's own product for 2 to 64
    tokens.

M: tokens of all sequences, the rows of the input.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CACHE_LINE = 64
"""Bytes."""
BF16_MAX_ROWS = 192
"""Rows up to which weight times tokens, transposed back, is faster than `F.linear`."""
POINTWISE_NEXT = {"fc", "fc_1", "fc_2"}
"""Layers whose output meets only pointwise functions, and another such layer that takes it transposed."""
UPCAST_WEIGHTS = 2**20
"""Weights that are cast to float32 at a time."""
ONEDNN_MIN_ROWS = 4
"""Rows below which a product by oneDNN takes as long to prepare as to compute."""
ONEDNN_MIN_PRODUCTS = 2**22
"""Multiplications below which it does, too."""
ONEDNN_KERNELS = 128
"""Products whose code oneDNN and torch keep."""
FP32_MAX_TRANSPOSED_ROWS = 3
"""Rows up to which transposed float32 weights are faster."""
FP32_MAX_HEAD_ROWS = 128
"""Rows up to which a head is multiplied in blocks."""
FP32_HEAD_RATIO = 8
"""How many times as many outputs as inputs a head has, at least."""
FP32_HEAD_BLOCK = 1024
"""Outputs of a head that are computed at a time."""

for _variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # read when the first product is made
    os.environ.setdefault(_variable, str(ONEDNN_KERNELS))


def _onednn_is_faster() -> bool:
    """Whether this is an AMD processor with AVX-512, and this torch has both libraries."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():
        return False
    try:
        return hasattr(torch.ops.mkldnn, "_linear_pointwise") and "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


# Found out at import: torch's compiler can't, and warns of functions that remember.
_bf16_supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
HAS_BFLOAT16 = bool(_bf16_supported and _bf16_supported())
FASTER_WITH_ONEDNN = _onednn_is_faster()
FASTER_TRANSPOSED = torch.backends.cpu.get_cpu_capability() == "AVX2"

_thread = threading.local()
"""Each thread's memory for weights in float32, used again and again: fresh memory would cost more than the cast."""


def use_fast_linear(model: nn.Module, headroom: int, rows: int = FP32_MAX_TRANSPOSED_ROWS + 1) -> None:
    """Lets the plain linear layers of a model compute the faster way where one applies, and as before elsewhere.

    Args:
        model: Stays what it is to all who train or save it.
        headroom: Bytes that copies of weights, stored to be read faster, may take, in bfloat16 and in float32 each; if
            all would take more, none is copied. A copy of a weight in a mapped file can't be dropped by the system and
            shared by other processes, as the file's pages can.
        rows: How many tokens are expected at a time.
    """
    linears = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear]
    unaligned: dict[int, Tensor] = {}
    for name, layer in linears:
        if "forward" in vars(layer):
            continue
        if _on_cpu(layer.weight, torch.bfloat16):
            if layer.weight.data_ptr() % CACHE_LINE:  # as in a mapped file of safetensors
                unaligned[layer.weight.data_ptr()] = layer.weight
            pointwise_next = name.rpartition(".")[2] in POINTWISE_NEXT
            layer.forward = partial(bf16_linear, layer, pointwise_next)  # type: ignore[method-assign]
        elif FASTER_WITH_ONEDNN and layer.weight.dtype == torch.float32:
            layer.forward = partial(onednn_linear, layer)  # type: ignore[method-assign]
    if sum(weight.nbytes for weight in unaligned.values()) <= headroom:
        for weight in unaligned.values():
            weight.data = weight.data.clone()
    # An optimizer's state is laid out as the weights were when it was made, and fused ones take both as they are.
    if FASTER_TRANSPOSED and not any(parameter.requires_grad for parameter in model.parameters()):
        _rearrange_fp32([layer for _, layer in linears], rows, headroom)


def _on_cpu(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether this is a plain tensor of `dtype` on the CPU."""
    return type(weight) in (Tensor, nn.Parameter) and weight.device.type == "cpu" and weight.dtype == dtype


# -- bfloat16


def has_bfloat16() -> bool:
    """Whether products in bfloat16 are no slower than in float32 on this CPU, as oneDNN knows it."""
    return HAS_BFLOAT16


def matmul_dtype(rows: Tensor) -> torch.dtype:
    """What to multiply `rows` in, where the weight has to be made from something else anyway."""
    slow = rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and not has_bfloat16()
    return torch.float32 if slow else rows.dtype


def float32_scratch(weight: Tensor) -> Tensor:
    """A weight on the CPU in float32, until the next call in this thread."""
    memory = getattr(_thread, "memory", None)
    if memory is None or memory.numel() < weight.numel():
        with torch.inference_mode(False):  # whose tensors could not be written to outside of it
            _thread.memory = memory = torch.empty(max(UPCAST_WEIGHTS, weight.numel()), dtype=torch.float32)
    return memory[: weight.numel()].view(weight.shape).copy_(weight)


def bf16_linear(layer: nn.Linear, transposed: bool, x: Tensor) -> Tensor:
    """`(…, in)` → `(…, out)`, as the layer's own `forward`; `transposed`: a result that weight times tokens leaves
    transposed stays so."""
    weight, bias = layer.weight, layer.bias
    if torch.is_grad_enabled() or x.dtype != torch.bfloat16 or not _on_cpu(weight, torch.bfloat16):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.size(-1))  # (M, in)
    if rows.size(0) > 1 and not has_bfloat16():
        y = _upcast_product(rows, weight, bias)
    elif rows.size(0) == 1:
        y = torch.mv(weight, rows[0]) if bias is None else torch.addmv(bias, weight, rows[0])
    elif rows.size(0) > BF16_MAX_ROWS and not transposed and rows.is_contiguous():
        return F.linear(x, weight, bias)
    else:
        y = torch.mm(weight, rows.t()) if bias is None else torch.addmm(bias[:, None], weight, rows.t())
        y = y.t() if transposed else y.t().contiguous()
    return y.view(*x.shape[:-1], y.size(-1))


def _upcast_product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`(M, in)` → `(M, out)`."""
    step = max(1, UPCAST_WEIGHTS // weight.size(1))
    x, y = rows.float(), rows.new_empty(rows.size(0), weight.size(0))
    for start in range(0, weight.size(0), step):
        part = weight[start : start + step]
        product = torch.mm(x, float32_scratch(part).t())
        y[:, start : start + step] = product if bias is None else product.add_(bias[start : start + step])
    return y


# -- float32 by oneDNN


def faster_with_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether `onednn_product` is the faster way for `(M, in)` and `(out, in)`."""
    return (
        FASTER_WITH_ONEDNN
        and x.size(0) >= ONEDNN_MIN_ROWS
        and x.size(0) * weight.numel() >= ONEDNN_MIN_PRODUCTS
        and _on_cpu(x, torch.float32)
        and _on_cpu(weight, torch.float32)
    )


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`(M, in)` and `(out, in)` → `x @ weight.T + bias`, `(M, out)`; no gradients."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


def onednn_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """`(…, in)` → `(…, out)`, as the layer's own `forward`."""
    weight, bias = layer.weight, layer.bias
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    rows = x.reshape(-1, x.size(-1))  # (M, in)
    if not faster_with_onednn(rows, weight):
        return F.linear(x, weight, bias)
    y: Tensor = _OneDNNLinear.apply(rows, weight, bias)
    return y.view(*x.shape[:-1], y.size(1))


class _OneDNNLinear(torch.autograd.Function):
    """Keeps the input for the gradient of the weight alone, and the weight for that of the input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        return onednn_product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x = None if weight is None else onednn_product(gradient, weight.t())
        of_weight = None if x is None else onednn_product(gradient.t(), x.t())
        return of_x, of_weight, gradient.sum(0) if ctx.needs_input_grad[2] else None


# -- float32 with AVX2


def _rearrange_fp32(layers: Iterable[nn.Linear], rows: int, headroom: int) -> None:
    """Stores the weights of float32 layers the way that is best for `rows` tokens at a time."""
    found: dict[int, Tensor] = {}
    for layer in layers:
        if not _on_cpu(layer.weight, torch.float32):
            continue
        head = layer.out_features >= FP32_HEAD_RATIO * layer.in_features
        if head and "forward" not in vars(layer):
            layer.forward = partial(fp32_head, layer)  # type: ignore[method-assign]
        transposed = rows <= FP32_MAX_TRANSPOSED_ROWS and layer.out_features >= layer.in_features
        if transposed != is_transposed(layer.weight):
            found[layer.weight.data_ptr()] = layer.weight
    if sum(weight.nbytes for weight in found.values()) <= headroom:
        for weight in found.values():
            weight.data = weight.data.contiguous() if is_transposed(weight) else weight.data.t().contiguous().t()


def is_transposed(weight: Tensor) -> bool:
    """Whether the numbers of an input are contiguous."""
    return not weight.is_contiguous() and weight.t().is_contiguous()


def fp32_head(layer: nn.Linear, x: Tensor) -> Tensor:
    """`(…, in)` → `(…, out)`, as the layer's own `forward`."""
    weight, bias = layer.weight, layer.bias
    rows = x.reshape(-1, x.size(-1))  # (M, in)
    several = 2 <= rows.size(0) <= FP32_MAX_HEAD_ROWS and x.dtype == torch.float32 and not torch.is_grad_enabled()
    if not several or not _on_cpu(weight, torch.float32) or is_transposed(weight):
        return F.linear(x, weight, bias)
    y = x.new_empty(weight.size(0), rows.size(0))
    for start in range(0, weight.size(0), FP32_HEAD_BLOCK):
        block = slice(start, start + FP32_HEAD_BLOCK)
        torch.mm(weight[block], rows.t(), out=y[block])
    upright = y.t().contiguous()  # (M, out)
    return (upright if bias is None else upright.add_(bias)).view(*x.shape[:-1], y.size(0))

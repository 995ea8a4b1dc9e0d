"""bfloat16 linear layers on the CPU without gradients, in less time than torch's own.

Where the processor has bfloat16 instructions:
`F.linear` hands the weight over transposed, and oneDNN then rearranges all of it for every call. With the product
turned round (weight times tokens) it is read as it lies; a single token is a matrix times a vector, which reads
fastest. All add up in float32 and round once, as `F.linear` does. The turned product leaves its result lying: the
tokens are its columns. To set it upright costs a fifth of the time at 32 tokens and more than is won from some 200 on,
so layers before a function of single numbers don't. Measured on a processor with AMX, 2 to 512 tokens: 0.51 to 0.83 of
the time for those; 0.63 to 0.91 for the others up to 64 tokens.

Where it has none, torch's products of several tokens emulate them at a ninth of float32's speed. Here a few rows of the
weight at a time are widened to float32, where they stay in the cache, and multiplied: float32's speed with bfloat16's
memory. A single token is faster as it is: half as much is read. Measured on a processor with AVX2, 2 to 256 tokens:
0.86 to 0.11 of the time.
"""

from __future__ import annotations

import threading
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALIGNED = 64
"""Bytes of a cache line."""
MANY = 192
"""Tokens from which on to set the turned product upright costs more than oneDNN's rearranging."""
GATES = {"fc", "fc_1", "fc_2"}
"""Layers whose output meets only functions of single numbers, and another such layer that takes it as it lies."""
WIDENED = 2**20
"""Weights that are widened at a time."""

_scratch = threading.local()
"""Where they go: each thread's own memory, used again and again (fresh memory would cost more than the widening)."""


_known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
BFLOAT16 = bool(_known and _known())
"""Found out here: torch's compiler warns of what a function remembers."""


def has_bfloat16() -> bool:
    """Whether products in bfloat16 are no slower than in float32 on this CPU, as oneDNN knows it."""
    return BFLOAT16


def product_dtype(rows: Tensor) -> torch.dtype:
    """What to multiply `rows` in, where the weight has to be made from something else anyway."""
    slow = rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and not has_bfloat16()
    return torch.float32 if slow else rows.dtype


def widened(weight: Tensor) -> Tensor:
    """A weight on the CPU in float32, until the next call in this thread."""
    memory = getattr(_scratch, "memory", None)
    if memory is None or memory.numel() < weight.numel():
        _scratch.memory = memory = torch.empty(max(WIDENED, weight.numel()), dtype=torch.float32)
    return memory[: weight.numel()].view(weight.shape).copy_(weight)


def use_fast_linear(model: nn.Module, headroom: int) -> None:
    """Lets the plain linear layers of a model compute this way where it applies, and as before where it doesn't.

    Weights that lie across cache lines, as in a mapped file of safetensors, are copied if all such take at most
    `headroom` bytes: reading then takes less time, but no longer can the system drop their pages and other processes
    share them.
    """
    across: dict[int, Tensor] = {}
    for name, module in model.named_modules():
        if type(module) is nn.Linear and "forward" not in vars(module) and applies(module.weight):
            if module.weight.data_ptr() % ALIGNED:
                across[module.weight.data_ptr()] = module.weight
            module.forward = partial(linear, module, name.rpartition(".")[2] in GATES)  # type: ignore[method-assign]
    if sum(weight.nbytes for weight in across.values()) <= headroom:
        for weight in across.values():
            weight.data = weight.data.clone()


def applies(weight: Tensor) -> bool:
    """Whether a weight is one that this is for."""
    plain = type(weight) in (Tensor, nn.Parameter)
    return plain and weight.device.type == "cpu" and weight.dtype == torch.bfloat16


def linear(layer: nn.Linear, lying: bool, x: Tensor) -> Tensor:
    """`(…, in)` → `(…, out)`, as the layer's own `forward`; `lying`: the numbers of each output lie side by side, as
    the turned product leaves them."""
    weight, bias = layer.weight, layer.bias
    if torch.is_grad_enabled() or x.dtype != torch.bfloat16 or not applies(weight):
        return F.linear(x, weight, bias)
    tokens = x.reshape(-1, x.size(-1))  # (M, in)
    if tokens.size(0) > 1 and not has_bfloat16():
        y = _widened_product(tokens, weight, bias)
    elif tokens.size(0) == 1:
        y = torch.mv(weight, tokens[0]) if bias is None else torch.addmv(bias, weight, tokens[0])
    elif tokens.size(0) > MANY and not lying and tokens.is_contiguous():
        return F.linear(x, weight, bias)
    else:
        y = torch.mm(weight, tokens.t()) if bias is None else torch.addmm(bias[:, None], weight, tokens.t())
        y = y.t() if lying else y.t().contiguous()
    return y.view(*x.shape[:-1], y.size(-1))


def _widened_product(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`(M, in)` → `(M, out)`."""
    rows = max(1, WIDENED // weight.size(1))
    x, y = tokens.float(), tokens.new_empty(tokens.size(0), weight.size(0))
    for start in range(0, weight.size(0), rows):
        part = weight[start : start + rows]
        product = torch.mm(x, widened(part).t())
        y[:, start : start + rows] = product if bias is None else product.add_(bias[start : start + rows])
    return y

"""bfloat16 linear layers on the CPU without gradients, at two thirds of the time of torch's own.

`F.linear` hands the weight over transposed, and oneDNN then rearranges all of it for every call. With the product
turned round (weight times tokens) it is read as it lies; a single token is a matrix times a vector, which reads
fastest. Both add up in float32 and round once, as `F.linear` does. Measured on a processor with AMX, 1 to 256 tokens:
0.62 to 0.77 of the time.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ALIGNED = 64
"""Bytes of a cache line."""


def quicken(model: nn.Module) -> None:
    """Lets the plain linear layers of a model compute this way where it applies, and as before where it doesn't.

    Weights that lie across cache lines, as in a mapped file of safetensors, are copied: reading then takes less time.
    """
    for module in model.modules():
        if type(module) is nn.Linear and "forward" not in vars(module) and applies(module.weight):
            if module.weight.data_ptr() % ALIGNED:
                module.weight.data = module.weight.data.clone()
            module.forward = partial(linear, module)  # type: ignore[method-assign]


def applies(weight: Tensor) -> bool:
    """Whether a weight is one that this is for."""
    plain = type(weight) in (Tensor, nn.Parameter)
    return plain and weight.device.type == "cpu" and weight.dtype == torch.bfloat16


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """`(…, in)` → `(…, out)`, as the layer's own `forward`."""
    weight, bias = layer.weight, layer.bias
    if torch.is_grad_enabled() or x.dtype != torch.bfloat16 or not applies(weight):
        return F.linear(x, weight, bias)
    tokens = x.reshape(-1, x.size(-1))  # (M, in)
    if tokens.size(0) == 1:
        y = torch.mv(weight, tokens[0]) if bias is None else torch.addmv(bias, weight, tokens[0])
    else:
        y = torch.mm(weight, tokens.t()) if bias is None else torch.addmm(bias[:, None], weight, tokens.t())
        y = y.t().contiguous()
    return y.view(*x.shape[:-1], -1)

"""How much computing a model takes: floating-point operations, time, and how large a model a budget is best spent on.

N: parameters, D: tokens, T: length of a sequence, C: floating-point operations of a training.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import nn

from litgpt.model import GPT
from litgpt.model.moe import Experts
from litgpt.peft import Wrapped


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one token."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Of training on it."""
        return self.forward + self.backward


def flops_per_token(model: GPT, length: int) -> Flops:
    """Operations of one token in a sequence of `length`: 2 for each weight of a matrix product it goes through, and
    attention's 4·L·N·H·T, forward; backward the same for the gradient of what went in, and again for the gradient of
    each weight that trains.

    PaLM (https://arxiv.org/abs/2204.02311), appendix B. Embeddings are looked up, not multiplied, so they don't count;
    of a layer's experts those count that a token is sent to.
    """
    config = model.config
    active = config.n_expert_per_token / config.n_expert if config.n_expert else 1.0
    weights = trained = 0.0
    counts = numbers_in(model)
    for module in model.modules():
        share = active if isinstance(module, Experts) or _beside_experts(module) else 1.0
        for parameter in () if isinstance(module, nn.Embedding) else module.parameters(recurse=False):
            if parameter.dim() >= 2 or _is_packed(module, parameter):
                weights += counts[parameter] * share
                trained += counts[parameter] * share if parameter.requires_grad else 0.0
    sizes = sum(config.heads(layer) * config.kv_heads(layer)[2] for layer in range(config.n_layer))
    attention = 4.0 * sizes * length
    return Flops(2 * weights + attention, 2 * weights + 2 * trained + 2 * attention)


def numbers_in(model: nn.Module) -> dict[nn.Parameter, int]:
    """How many numbers each parameter holds, however they are packed; a tied one is there once."""
    counts: dict[nn.Parameter, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            counts[parameter] = parameter.numel()
            if isinstance(module, nn.Linear) and _is_packed(module, parameter):
                counts[parameter] = module.in_features * module.out_features
    return counts


def _is_packed(module: nn.Module, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a linear layer's weight in few bits."""
    return isinstance(module, nn.Linear) and parameter is module.weight and not parameter.is_floating_point()


def _beside_experts(module: nn.Module) -> bool:
    return isinstance(module, Wrapped) and isinstance(module.linear, Experts)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """What the device's data sheet promises per second for products in `dtype`; None where that is not known."""
    if device.type != "cuda":
        return None
    from lightning.fabric.utilities.throughput import get_available_flops

    available = get_available_flops(device, dtype)
    return None if available is None else float(available)


def measured_flops(device: torch.device, dtype: torch.dtype, size: int = 1024, seconds: float = 0.3) -> float:
    """What matrix products of `size` reach on this device per second: the best of those that fit into `seconds`."""
    a = torch.ones(size, size, device=device, dtype=dtype)
    best, end = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < end:
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2.0 * size**3 / (time.perf_counter() - began))
    return best


def days(flops: float, peak: float, share: float, devices: int = 1) -> float:
    """Days that `flops` take on `devices` which reach a `share` of `peak` operations a second each."""
    return flops / (peak * share * devices) / 86400


# ------------------------------------------------------------------------------------------------------- Chinchilla

A, B, ALPHA, BETA = 406.4, 410.7, 0.34, 0.28
"""L(N, D) = 1.69 + 406.4 / N^0.34 + 410.7 / D^0.28: Hoffmann et al. 2022 (https://arxiv.org/abs/2203.15556),
approach 3."""
SLOPE, OFFSET = 1.0409573170, 0.9353887391
"""log10 D = 1.041 · log10 N + 0.935: a line through the optima of the paper's table A3 (approach 2)."""


def optimal_tokens(parameters: float) -> float:
    """How many tokens a model of that size is best trained on (approach 2)."""
    return 10.0 ** (SLOPE * math.log10(parameters) + OFFSET)


def optimal_model(flops: float) -> tuple[float, float]:
    """The parameters and tokens that `flops`, as 6·N·D, are best spent on: the minimum of approach 3's loss."""
    balance = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    parameters = balance * (flops / 6) ** (BETA / (ALPHA + BETA))
    return parameters, flops / 6 / parameters

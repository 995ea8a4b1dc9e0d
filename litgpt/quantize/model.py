"""Models whose linear layers are kept in 8 or 4 bits: the modes, what each needs, and how layers are replaced.

Embeddings, norms and the routers of mixtures stay as they are. A head of its own is quantized. One that is the
embedding stays the embedding with bitsandbytes, which is there to save memory; `int8` and `int4`, which are there for
speed as well, give it a copy of its own in 8 bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from litgpt.errors import LitGPTError, UnsupportedError, closest
from litgpt.model.moe import Experts, LLaMAMoE
from litgpt.quantize.bnb import EightBitLinear, FourBitLinear, bitsandbytes
from litgpt.quantize.kernels import GROUP, check_kernels, int4_fits
from litgpt.quantize.linear import Int4Linear, Int8Linear, QuantizedExperts, QuantizedLinear

MODES = ("bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8", "bnb.int8-training", "int8", "int4")
"""What `--quantize` may say."""
HEAD = "lm_head"


def check_quantization(mode: str, device: torch.device, dtype: torch.dtype) -> None:
    """Raises a LitGPTError that says what stands in the way of `--quantize mode` on a device, computing in `dtype`."""
    if mode not in MODES:
        known = closest(mode, MODES) or f" It is one of {', '.join(MODES)}."
        raise LitGPTError(f"There is no --quantize {mode}.{known}")
    if not mode.startswith("bnb."):
        check_kernels(mode, device, dtype)
    elif device.type not in ("cpu", "cuda"):
        raise UnsupportedError(
            f"--quantize {mode} has no kernels for {device.type}; use --quantize int8, or leave it out."
        )
    else:
        bitsandbytes()


def make_layer(
    mode: str, name: str, in_features: int, out_features: int, bias: bool, dtype: torch.dtype
) -> QuantizedLinear:
    """An empty layer for the weight of the linear layer called `name`."""
    size = (in_features, out_features, bias, dtype)
    if mode in ("bnb.int8", "bnb.int8-training"):
        return EightBitLinear(*size)
    if mode.startswith("bnb."):
        kind, _, nested = mode.removeprefix("bnb.").partition("-")
        return FourBitLinear(*size, kind=kind, nested=bool(nested))
    # A head in 4 bits costs more perplexity than all other layers together, and saves little time.
    if mode == "int4" and name != HEAD and int4_fits(in_features, out_features):
        return Int4Linear(*size)
    return Int8Linear(*size)


def replace_linears(model: nn.Module, mode: str, dtype: torch.dtype) -> dict[str, QuantizedLinear]:
    """Replaces the linear layers of a model, on `meta` or not, by empty ones.

    Returns:
        By a weight's name in a checkpoint: the layer whose `load_weight` takes it.
    """
    replaced: dict[str, QuantizedLinear] = {}
    for name, module in list(replaceable(model, mode)):
        if isinstance(module, Experts):
            replaced.update(_replace_experts(model, name, module, mode, dtype))
            continue
        layer = make_layer(mode, name, module.in_features, module.out_features, module.bias is not None, dtype)
        layer.bias = module.bias
        model.set_submodule(name, layer)
        replaced[f"{name}.weight"] = layer
    return replaced


def replaceable(model: nn.Module, mode: str) -> Iterator[tuple[str, nn.Linear | Experts]]:
    """The layers that a mode replaces, by name."""
    routers = {id(module.gate) for module in model.modules() if isinstance(module, LLaMAMoE)}
    for name, module in model.named_modules():
        stays = id(module) in routers or (name == HEAD and mode.startswith("bnb.") and model.tied)
        if isinstance(module, nn.Linear | Experts) and not stays:
            yield name, module


def _replace_experts(
    model: nn.Module, name: str, experts: Experts, mode: str, dtype: torch.dtype
) -> dict[str, QuantizedLinear]:
    quantized = QuantizedExperts(experts, lambda columns, rows: make_layer(mode, name, columns, rows, False, dtype))
    model.set_submodule(name, quantized)
    return {
        f"{name}.{number}.{part}.weight": layer
        for part, layers in quantized.named_children()
        for number, layer in enumerate(layers.children())
        if isinstance(layer, QuantizedLinear)
    }


def keeping_layer(
    bits: int, groups: int, zeros: Tensor, size: tuple[int, int], bias: bool, dtype: torch.dtype
) -> QuantizedLinear | None:
    """An empty layer that keeps a weight as it is stored; None: it would be further from it than plain numbers are.

    Args:
        bits: Of its codes.
        groups: Of columns that share a scale.
        zeros: That are added to them.
        size: `(in_features, out_features)`.
        bias: Whether the layer has one.
        dtype: What is computed in.
    """
    if bits == 8:
        return Int8Linear(*size, bias, dtype)
    exact = torch.equal(
        zeros.to(dtype).float(), zeros
    )  # they differ from the scales' rounding, which all numbers share
    whole = size[0] % (groups * GROUP) == 0
    return Int4Linear(*size, bias, dtype) if exact and whole and int4_fits(*size) else None


def quantize_model(model: nn.Module, mode: str, dtype: torch.dtype) -> None:
    """Quantizes the linear layers of a model that has its weights, in place, one after the other."""
    state = model.state_dict()
    for name, layer in replace_linears(model, mode, dtype).items():
        layer.load_weight(state.pop(name))


def is_quantized(model: nn.Module) -> bool:
    """Whether any of a model's layers is kept in few bits."""
    return any(isinstance(module, QuantizedLinear) for module in model.modules())

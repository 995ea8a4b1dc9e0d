"""What becomes of activations between the forward and the backward pass: kept, computed again, or put elsewhere."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from litgpt.model import GPT

MOVED_BYTES = 2**16
"""Smaller activations stay where they are."""


def checkpoint_blocks(model: GPT, every: int) -> None:
    """Lets every so many-th block (from the first on) compute its activations again in the backward pass, so that only
    its input is kept (Chen et al. 2016, https://arxiv.org/abs/1604.06174). Dropout drops the same again."""
    for number, block in enumerate(model.transformer.h):
        if number % every == 0:
            replace(block, "forward", partial(_checkpointed, block.forward))


def _checkpointed(forward: Any, *args: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args)
    return checkpoint(forward, *args, use_reentrant=False)


def replace(module: nn.Module, method: str, by: Any) -> None:
    """Gives this one module another method, until `restore`."""
    module.__dict__[method] = by
    module.__dict__.setdefault("replaced", set()).add(method)


def restore(model: nn.Module) -> None:
    """Gives all modules of `model` the methods of their classes again."""
    for module in model.modules():
        for method in module.__dict__.pop("replaced", ()):
            module.__dict__.pop(method, None)


class Offload(saved_tensors_hooks):
    """While it is open, what autograd saves is moved to the host's memory, and back when the backward pass needs it.

    Parameters, and views of them, stay: they are on the device anyway.
    """

    def __init__(self, model: nn.Module, host: torch.device | str = "cpu") -> None:
        self.host = torch.device(host)
        self.model = model
        super().__init__(self._pack, self._unpack)

    def __enter__(self) -> None:
        self.kept = {parameter.untyped_storage().data_ptr() for parameter in self.model.parameters()}
        super().__enter__()

    def _pack(self, tensor: Tensor) -> tuple[torch.device, Tensor]:
        if tensor.nbytes < MOVED_BYTES or tensor.untyped_storage().data_ptr() in self.kept:
            return tensor.device, tensor
        pinned = tensor.device.type == "cuda"
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.host, pin_memory=pinned)
        return tensor.device, copy.copy_(tensor, non_blocking=pinned)

    def _unpack(self, packed: tuple[torch.device, Tensor]) -> Tensor:
        device, tensor = packed
        return tensor.to(device, non_blocking=True)


def offloading(model: nn.Module, wanted: bool) -> AbstractContextManager[Any]:
    """An `Offload` if wanted."""
    return Offload(model) if wanted else nullcontext()

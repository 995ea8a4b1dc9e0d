"""What is done to a model's blocks before training, and undone after it: compiled, their activations computed again or
put elsewhere between the forward and the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from litgpt.kernels.dropout import drop
from litgpt.model import GPT, Block
from litgpt.model.attention import Attention, AttentionContext, document_mask
from litgpt.model.cache import Span
from litgpt.model.moe import Experts
from litgpt.peft import Wrapped, WrappedExperts
from litgpt.quantize import QuantizedLinear
from litgpt.runtime import check_compiler

if TYPE_CHECKING:
    from litgpt.training.run import Run

VERSIONS = 64
"""Of a block's code that torch may compile: with and without gradients, for updates that train and those that don't,
for one number of tokens and for any. Beyond its own limit, 8, it would go on without compiling."""

MOVED_BYTES = 2**16
"""Smaller activations stay where they are."""


def shape_blocks(run: Run) -> None:
    """Compiles and checkpoints the blocks of the run's model as asked; `restore` undoes it."""
    if run.train.dropout:
        drop_out(run.model, run.train.dropout, F.dropout if run.train.compile else scaled_drop)
    if run.train.compile:
        compile_blocks(run.model, run.fabric.device)
    if run.train.checkpointed_every:
        checkpoint_blocks(run.model, run.train.checkpointed_every)


def replace(module: nn.Module, method: str, by: Any) -> None:
    """Gives this one module another method, until `restore`."""
    module.__dict__[method] = by
    module.__dict__.setdefault("replaced", set()).add(method)


def restore(model: nn.Module) -> None:
    """Gives all modules of `model` the methods of their classes again."""
    for module in model.modules():
        for method in module.__dict__.pop("replaced", ()):
            module.__dict__.pop(method, None)


# -------------------------------------------------------------------------------------------------------------- dropped


def drop_out(model: GPT, share: float, drop: Callable[[Tensor, float], Tensor]) -> None:
    """In training, leaves out a random share of embeddings, of attention weights (not beside a soft cap, sinks or
    slopes), and of what attention and MLP add (https://arxiv.org/abs/1207.0580; GPT-2's places).

    Args:
        model: To train.
        share: 0 to 1.
        drop: Sets a share of a tensor to zero and scales up the rest.
    """

    def dropping(module: nn.Module, compute: Any) -> Callable[..., Tensor]:
        def forward(*args: Any) -> Tensor:
            found = compute(*args)
            return drop(found, share) if module.training else found

        return forward

    replace(model, "embed", dropping(model, model.embed))
    config = model.config
    for block in model.transformer.h:
        attention: Any = block.attn
        mlp: Any = block.mlp
        for module in (attention, mlp):
            if not isinstance(module, nn.Identity):
                replace(module, "forward", dropping(module, module.forward))
        plain = isinstance(attention, Attention) and attention.sinks is None and config.alibi is None
        if plain and config.attention_logit_softcapping is None:
            replace(attention, "attend", partial(_attend_dropping, attention, share))


def scaled_drop(x: Tensor, share: float) -> Tensor:
    """`drop`, with the factor in it."""
    dropped, factor = drop(x, share)
    return dropped if factor == 1 else dropped * factor


def _attend_dropping(
    attention: Attention, share: float, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext
) -> Tensor:
    """As `Attention.attend`, with a share of the attention weights left out in training."""
    if not attention.training:
        return Attention.attend(attention, q, k, v, context)
    repeats = q.size(1) // k.size(1)
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    lengths = context.lengths or (q.size(2),)
    if context.lengths is None:
        masks = [context.masks[attention.window]]
    else:
        masks = [document_mask(attention.config, length, attention.window, q.device) for length in lengths]
    parts = q.split(lengths, 2), k.split(lengths, 2), v.split(lengths, 2), masks
    attended = [
        F.scaled_dot_product_attention(*one, dropout_p=share, is_causal=one[-1] is None, scale=attention.scale)
        for one in zip(*parts, strict=True)
    ]
    return torch.cat(attended, 2)


# ------------------------------------------------------------------------------------------------------------- compiled


def compile_blocks(model: GPT, device: torch.device, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compiles what a block computes, but for what depends on more than shapes (attention over packed samples, which
    expert gets which token) and what is no torch code (quantized layers): these run as they are between two compiled
    pieces.

    The first pass compiles for its number of tokens; the first one with another number compiles once more, for any.
    Passes with a KV cache are not compiled.

    Raises:
        LitGPTError: There is no compiler for this device.
    """
    if backend == "inductor":
        check_compiler(device, "train.compile")
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, VERSIONS)
    for module in model.modules():
        if isinstance(module, Attention):
            replace(module, "attend", torch.compiler.disable(module.attend))
        elif isinstance(module, Experts | WrappedExperts | QuantizedLinear) or (
            isinstance(module, Wrapped) and getattr(module, "dropout", False)  # whose mask torch's compiler cannot draw
        ):
            replace(module, "forward", torch.compiler.disable(module.forward))
    compiled = torch.compile(Block.forward, backend=backend)
    for block in model.transformer.h:
        assert isinstance(block, Block)
        if not isinstance(block.attn, Attention):
            replace(block.attn, "forward", torch.compiler.disable(block.attn.forward))
        replace(block, "forward", partial(_forward, block, compiled))


def _forward(block: Block, compiled: Any, x: torch.Tensor, context: Any) -> Any:
    cached: Span | None = context.span
    return compiled(block, x, context) if cached is None else Block.forward(block, x, context)


# ---------------------------------------------------------------------------------------------------------- activations


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

"""`torch.compile`, block by block: all blocks share their code, so that one is compiled and not the whole model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from litgpt.errors import LitGPTError
from litgpt.model import GPT, Block
from litgpt.model.attention import Attention
from litgpt.model.cache import Span
from litgpt.model.moe import Experts
from litgpt.peft import Wrapped, WrappedExperts
from litgpt.quantize import QuantizedLinear
from litgpt.training.memory import replace

COMPILERS = ("g++", "c++", "clang++")
VERSIONS = 64
"""Of a block's code that torch may compile: with and without gradients, for updates that train and those that don't,
for one number of tokens and for any. Beyond its own limit, 8, it would go on without compiling."""


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
        _check_compiler(device)
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


def _check_compiler(device: torch.device) -> None:
    if device.type == "mps":
        raise LitGPTError("train.compile has no compiler for mps here; leave it out.")
    if device.type == "cpu" and not any(map(shutil.which, COMPILERS)):
        raise LitGPTError(
            f"train.compile needs a C++ compiler on a CPU, and none of {', '.join(COMPILERS)} is installed; "
            "install one, or leave it out."
        )

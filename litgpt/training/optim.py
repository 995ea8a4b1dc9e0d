"""From a name or a dictionary to an optimizer with its parameter groups."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from litgpt.errors import LitGPTError, UsageError, closest

FUSED_DEVICES = frozenset({"cpu", "cuda", "mps"})


def make_optimizer(
    spec: str | dict[str, Any], parameters: Iterable[tuple[str, nn.Parameter]], fused: bool = True
) -> Optimizer:
    """The optimizer that `spec` describes over named `parameters`.

    Weight decay acts on matrices and embeddings only, not on norms, gates and biases, as in GPT-3's and
    nanoGPT's training. A fused implementation is used where torch has one, unless `spec` chooses.

    Args:
        spec: The name of a class in `torch.optim`, a dotted class path, or `{"class_path": …, "init_args": {…}}`.
        parameters: `(name, parameter)` of all that trains.
        fused: False where gradients must be unscaled before the step (16-mixed).

    Raises:
        LitGPTError: Unknown class or argument, or nothing to train.
    """
    class_path, init_args = _split(spec)
    optimizer_class = find_class(class_path)
    known = inspect.signature(optimizer_class).parameters
    for name in init_args:
        if name not in known and not any(entry.kind is entry.VAR_KEYWORD for entry in known.values()):
            raise LitGPTError(f"{class_path} has no argument {name!r}.{closest(name, known)}")
    named = list(parameters)
    if not named:
        raise LitGPTError("Nothing trains: no parameter belongs to the training method.")
    on = {parameter.device.type for _, parameter in named}
    faster: dict[str, Any] = {}
    if (
        fused
        and "fused" in known
        and on <= FUSED_DEVICES
        and not {"fused", "foreach", "capturable", "differentiable"} & {*init_args}
    ):
        faster = {"fused": True}
    decay = init_args.get("weight_decay", known["weight_decay"].default if "weight_decay" in known else 0)
    try:
        return optimizer_class(_groups(named, decay), **init_args, **faster)
    except (TypeError, ValueError) as error:
        raise LitGPTError(f"optimizer: {class_path} refuses its arguments {init_args}: {error}.") from None


def _split(spec: str | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    if "class_path" not in spec:
        raise LitGPTError(
            "optimizer needs a class_path, for example {class_path: AdamW, init_args: {lr: 1e-3}}; "
            f"it has {', '.join(map(str, spec)) or 'nothing'}."
        )
    return spec["class_path"], dict(spec.get("init_args") or {})


def _groups(named: list[tuple[str, nn.Parameter]], decay: float) -> list[dict[str, Any]]:
    if not decay:
        return [{"params": [parameter for _, parameter in named]}]
    matrices = [parameter for name, parameter in named if _is_matrix(name, parameter)]
    vectors = [parameter for name, parameter in named if not _is_matrix(name, parameter)]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Neither a bias, though all experts' are one tensor of two dimensions, nor one number a head, `(1, 1, N, 1)`."""
    return not name.endswith("bias") and sum(size > 1 for size in parameter.shape) >= 2


def find_class(class_path: str) -> type[Optimizer]:
    """The optimizer class of that name in `torch.optim` (whatever its case), or at that dotted path.

    Raises:
        LitGPTError: There is none, or its step needs a closure.
    """
    module_name, _, name = class_path.rpartition(".")
    try:
        module = importlib.import_module(module_name or "torch.optim")
    except ImportError as error:
        raise LitGPTError(f"optimizer {class_path}: {module_name} cannot be imported ({error}).") from None
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        names = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Optimizer)]
        raise UsageError(f"There is no optimizer {class_path!r}.{closest(name, names)}")
    if issubclass(found, torch.optim.LBFGS):
        raise LitGPTError(
            f"{class_path} evaluates the model several times a step, which this loop doesn't; use AdamW, for example."
        )
    return found

"""From a name or a dictionary to an optimizer with its parameter groups."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from litgpt.args import TrainArgs, import_path
from litgpt.errors import LitGPTError, MissingPackageError, UsageError, closest, one_line, quoted
from litgpt.model.sharding import whole
from litgpt.training.optim.muon import Muon, fused_parts, groups_for_muon

FUSED_DEVICES = frozenset({"cpu", "cuda", "mps"})

BITSANDBYTES = "AdEMAMix LAMB LARS Lion".split()
"""Classes of bitsandbytes without `8bit`, `32bit` or `Paged` in their names that torch does not have."""

UNFIT: dict[type[Optimizer], str] = {
    torch.optim.LBFGS: "evaluates the model several times a step, which this loop doesn't",
    torch.optim.SparseAdam: "takes sparse gradients alone, and this model's are dense",
}
"""Optimizers that can't be used, and why."""


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that require a gradient, by name."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def optimizer_for(model: nn.Module, spec: str | dict[str, Any], train: TrainArgs, precision: str) -> Optimizer:
    """The optimizer that `spec` describes over what trains of `model`; see `make_optimizer`."""
    return make_optimizer(
        spec,
        trained_parameters(model),
        fused=precision != "16-mixed",
        decay_all=train.decay_norms_and_biases,
        parts=fused_parts(model),
    )


def make_optimizer(
    spec: str | dict[str, Any],
    parameters: Iterable[tuple[str, nn.Parameter]],
    fused: bool = True,
    decay_all: bool = False,
    parts: Mapping[str, Sequence[int]] | None = None,
) -> Optimizer:
    """The optimizer that `spec` describes over named `parameters`.

    Weight decay acts on matrices and embeddings only, not on norms, gates and biases, as in GPT-3's and
    nanoGPT's training, unless `decay_all`. A fused implementation is used where torch has one, unless `spec` chooses.

    Args:
        spec: The name of a class in `torch.optim` (or of an 8-bit or paged one in bitsandbytes), a dotted class path,
            or `{"class_path": …, "init_args": {…}}`. Muon is `litgpt.training.optim.muon.Muon`.
        parameters: `(name, parameter)` of all that trains.
        fused: False where gradients must be unscaled before the step (16-mixed).
        decay_all: Weight decay on everything.
        parts: For Muon: the rows of the matrices that a parameter holds, by name (`muon.fused_parts`).

    Raises:
        LitGPTError: Unknown class or argument, nothing to train, or no such optimizer on this device.
    """
    class_path, init_args = _split(spec)
    optimizer_class = find_class(class_path)
    known = inspect.signature(optimizer_class).parameters
    for name in init_args:
        if name not in known and not any(entry.kind is entry.VAR_KEYWORD for entry in known.values()):
            raise UsageError(f"optimizer: {class_path} has no argument {quoted(name)}.{closest(name, known)}")
    named = list(parameters)
    if not named:
        raise LitGPTError("Nothing trains: no parameter belongs to the training method.")
    on = {parameter.device.type for _, parameter in named}
    if on == {"cpu"} and optimizer_class.__name__.startswith("Paged"):
        raise LitGPTError(
            f"{class_path} moves its state between a GPU and the host's memory, and this run is on the CPU: "
            f"use {optimizer_class.__name__.removeprefix('Paged')}."
        )
    faster: dict[str, Any] = {}
    if (
        fused
        and "fused" in known
        and on <= FUSED_DEVICES
        and not {"fused", "foreach", "capturable", "differentiable"} & {*init_args}
    ):
        faster = {"fused": True}
    decay = init_args.get("weight_decay", known["weight_decay"].default if "weight_decay" in known else 0)
    decaying = [one for one in named if decay_all or _is_matrix(*one)]
    others = [one for one in named if not (decay_all or _is_matrix(*one))]
    if optimizer_class is Muon:
        groups = groups_for_muon(decaying, others, parts or {})
    else:
        groups = _groups(decaying, others) if decay else [{"params": [parameter for _, parameter in named]}]
    with _refusals(class_path, init_args):
        return optimizer_class(groups, **init_args, **faster)


def check_optimizer(spec: str | dict[str, Any]) -> None:
    """Tries an optimizer on a few small parameters, so that a mistake is told before a model or data are read.

    Raises:
        UsageError: Unknown class or argument, or a value that it refuses, at once or in its first step.
    """
    class_path, init_args = _split(spec)
    optimizer_class = find_class(class_path)
    if optimizer_class.__name__.startswith("Paged"):
        return  # which wants a GPU
    sizes = {"transformer.h.0.mlp.fc.weight": (4, 4), "transformer.h.0.norm_1.weight": (4,), "lm_head.weight": (4, 4)}
    tried = [(name, nn.Parameter(torch.ones(size))) for name, size in sizes.items()]
    optimizer = make_optimizer({"class_path": class_path, "init_args": init_args}, tried)
    if not optimizer_class.__module__.startswith(("torch.optim", __package__)) or init_args.get("capturable"):
        return  # another's may want a GPU
    for _, parameter in tried:
        parameter.grad = torch.ones_like(parameter)
    with _refusals(class_path, init_args):
        optimizer.step()


def check_sharded(spec: str | dict[str, Any], sharded: Tensor) -> None:
    """Tries an optimizer on a small matrix that is shared out as `sharded` is; called on every rank.

    Raises:
        UsageError: It doesn't step that as it steps a matrix in one piece.
    """
    from torch.distributed.tensor import distribute_tensor

    of: Any = sharded
    start = torch.linspace(-1, 1, 64 * of.device_mesh.size(), device=sharded.device).view(-1, 8)
    layout = distribute_tensor(start, of.device_mesh, of.placements, src_data_rank=None)
    results = []
    for matrix in (start.clone(), layout):
        parameter = nn.Parameter(matrix)
        optimizer = make_optimizer(spec, [("transformer.h.0.mlp.fc.weight", parameter)])
        try:
            for _ in range(2):
                parameter.grad = parameter.detach().sin()
                optimizer.step()
            results.append(whole(parameter.detach()))
        except LitGPTError:
            raise
        except Exception:
            results.append(torch.full_like(start, float("nan")))
    alone, together = results
    if not torch.allclose(alone, together, atol=1e-6):
        name = _split(spec)[0]
        raise UsageError(
            f"optimizer: {name} can't step a matrix whose rows are on several devices; use AdamW, say, or "
            "--strategy ddp."
        )


@contextmanager
def _refusals(class_path: str, init_args: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except LitGPTError:
        raise
    except Exception as error:
        raise UsageError(f"optimizer: {class_path} refuses its arguments {init_args}: {one_line(error)}.") from None


def dotted(spec: str | dict[str, Any]) -> str | dict[str, Any]:
    """The same optimizer by a dotted path, where LitGPT asks for one: with arguments, and outside of `torch.optim`."""
    class_path, init_args = _split(spec)
    path = import_path(find_class(class_path))
    if not init_args:
        return class_path if path == f"torch.optim.{class_path}" else path
    return {"class_path": path, "init_args": init_args}


def _split(spec: str | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(spec, str):
        return spec, {}
    if "class_path" not in spec:
        raise UsageError(
            "optimizer needs a class_path, for example {class_path: AdamW, init_args: {lr: 1e-3}}; "
            f"it has {', '.join(map(str, spec)) or 'nothing'}."
        )
    return spec["class_path"], dict(spec.get("init_args") or {})


def _groups(decaying: list[tuple[str, nn.Parameter]], others: list[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = [
        {"params": [parameter for _, parameter in decaying]},
        {"params": [parameter for _, parameter in others], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Neither a bias, though all experts' are one tensor of two dimensions, nor one number a head, `(1, 1, N, 1)`; but
    a matrix of one row or column, such as LoRA's of rank 1."""
    is_spread = parameter.dim() in (2, 3) or sum(size > 1 for size in parameter.shape) >= 2
    return is_spread and not name.endswith(("bias", "magnitude"))


def scale_rates(
    optimizer: Optimizer, named: Iterable[tuple[str, nn.Parameter]], factor: Callable[[str], float]
) -> None:
    """Multiplies the learning rates of parameters by `factor(name)`: groups are split where it differs (LoRA+)."""
    factors = {id(parameter): factor(name) for name, parameter in named}
    for group in list(optimizer.param_groups):
        found = {factors[id(parameter)] for parameter in group["params"]}
        rates = sorted(found, key=lambda rate: (rate != 1, rate))  # the plain one first: it is what logs show
        members = {rate: [p for p in group["params"] if factors[id(p)] == rate] for rate in rates}
        base = group["lr"]
        group.update(params=members[rates[0]], lr=base * rates[0])
        for rate in rates[1:]:
            optimizer.param_groups.append({**group, "params": members[rate], "lr": base * rate})


def find_class(class_path: str) -> type[Optimizer]:
    """The optimizer class of that name in `torch.optim` or bitsandbytes, or at that dotted path; for Muon ours, which
    has AdamW for what is no hidden matrix.

    Raises:
        LitGPTError: There is none, or it is none for this loop.
    """
    if class_path in ("Muon", "torch.optim.Muon"):
        return Muon
    module_name, _, name = class_path.rpartition(".")
    if not module_name and (name in BITSANDBYTES or name.startswith("Paged") or name.endswith(("8bit", "32bit"))):
        module_name = "bitsandbytes.optim"
    try:
        module = importlib.import_module(module_name or "torch.optim")
    except ImportError as error:
        if module_name.startswith("bitsandbytes"):
            raise MissingPackageError(
                f"optimizer {class_path} is bitsandbytes': pip install 'litgpt[quant]'."
            ) from None
        raise UsageError(f"optimizer {class_path}: {module_name} cannot be imported ({error}).") from None
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        names = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, Optimizer)]
        raise UsageError(f"There is no optimizer {quoted(class_path)}.{closest(name, names)}")
    for unfit, why in UNFIT.items():
        if issubclass(found, unfit):
            raise UsageError(f"{class_path} {why}; use AdamW, for example.")
    return found


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """The 2-norm of all gradients together, in float32 at least; zero without any."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return whole(torch.nn.utils.get_total_norm(gradients))


class StepsInBackward:
    """Steps each parameter as soon as its gradient is complete, and frees that gradient, so that there is never more
    than one.

    Args:
        optimizer: One whose parameters don't depend on each other, as all of torch's that take no closure.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.norms: list[Tensor] = []
        """Of the gradients since the last `norm`."""
        groups = enumerate(optimizer.param_groups)
        self.group_of = {id(parameter): number for number, group in groups for parameter in group["params"]}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.hooks = [parameter.register_post_accumulate_grad_hook(self._step) for parameter in parameters]

    def _step(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.norms.append(torch.linalg.vector_norm(parameter.grad, dtype=torch.float32))
        groups = self.optimizer.param_groups
        self.optimizer.param_groups = [{**groups[self.group_of[id(parameter)]], "params": [parameter]}]
        try:
            self.optimizer.step()
        finally:
            self.optimizer.param_groups = groups
        parameter.grad = None

    def norm(self) -> Tensor:
        """The 2-norm of all gradients since the last call."""
        norms, self.norms = self.norms, []
        return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())

    def end(self) -> None:
        """Leaves the parameters as they were."""
        for hook in self.hooks:
            hook.remove()

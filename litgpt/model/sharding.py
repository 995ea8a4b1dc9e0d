"""Models whose parameters are shared out over ranks: torch's FSDP2, whose parameters are DTensors.

Torch's distributed modules are imported only where they are used: a run on one device does without.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from litgpt.model.gpt import GPT

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def nothing(module: nn.Module) -> None:
    """Done to a module that is as it should be."""


def shard(model: GPT, mesh: DeviceMesh, prepare: Callable[[nn.Module], None] = nothing) -> None:
    """Leaves this rank its rows of every parameter; a block's are gathered while it computes, and those outside of the
    blocks from `hidden` on until the end of the backward pass, as the loss needs the head's weight.

    Args:
        model: On `meta` or not, with its method attached; its blocks may be shared out by `shard_block` already.
        mesh: One dimension: the ranks that share. Two: copies, and the ranks that share each of them (HSDP).
        prepare: Called with each block, and at last with the model, before it is shared out; what this gives values
            is never whole in more than one block.
    """
    from torch.distributed.fsdp import register_fsdp_forward_method

    # Nothing writes to the hidden states, which a model gives as a view.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for block in model.transformer.h:
        if not is_sharded(block):
            prepare(block)
            shard_block(block, mesh)
    prepare(model)
    shard_block(model, mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "hidden")


def shard_block(module: nn.Module, mesh: DeviceMesh, reshard_after_forward: bool | None = None) -> None:
    """Leaves this rank its rows of the parameters of one module, which are gathered together."""
    from torch.distributed.fsdp import fully_shard

    sharded = fully_shard(module, mesh=mesh, reshard_after_forward=reshard_after_forward)
    sharded.set_force_sum_reduction_for_comms(True)  # gloo has no average


def is_sharded(thing: nn.Module | Tensor) -> bool:
    """Whether a model, or a tensor, is shared out over ranks."""
    if isinstance(thing, nn.Module):
        return any(is_sharded(parameter) for parameter in thing.parameters())
    return hasattr(thing, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered if it is shared out: to be called on every rank."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def own_rows(tensor: Tensor) -> tuple[int, int]:
    """The first row, and the number of rows, that this rank has of a tensor that is shared out."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    of: Any = tensor
    shape, offsets = compute_local_shape_and_global_offset(of.shape, of.device_mesh, of.placements)
    return (min(offsets[0], tensor.size(0)), shape[0]) if shape[0] else (0, 0)


def like(source: Tensor, tensor: Tensor) -> Tensor:
    """`source`, shared out as `tensor` is, of which every rank has all rows."""
    if not is_sharded(tensor):
        return source
    from torch.distributed.tensor import DTensor

    of: Any = tensor
    start, count = own_rows(tensor)
    part = source.narrow(0, start, count).to(tensor.device).contiguous()
    return DTensor.from_local(part, of.device_mesh, of.placements, shape=tensor.shape, stride=tensor.stride())


@torch.no_grad()
def take_rows(parameter: Tensor, fetch: Callable[[int, int], Tensor]) -> None:
    """Fills what this rank has of `parameter` with `fetch(start, count)`, rows of the whole."""
    own: Tensor = parameter.to_local()  # type: ignore[attr-defined]
    start, count = own_rows(parameter)
    if count:
        own.copy_(fetch(start, count))


@contextmanager
def whole_parameters(
    module: nn.Module, make: Callable[[Tensor], Tensor], keep: bool = False
) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Inside, the module's own parameters are whole, `make` of those that are shared out: pairs of these and those.

    Args:
        module: Parameters of modules inside it stay as they are.
        make: From a parameter that is shared out to a whole tensor.
        keep: Afterwards, this rank takes its rows of what is in them then.
    """
    sharded = {name: one for name, one in module._parameters.items() if one is not None and is_sharded(one)}
    wholes = {name: nn.Parameter(make(one), requires_grad=False) for name, one in sharded.items()}
    module._parameters.update(wholes)
    try:
        yield [(one, wholes[name]) for name, one in sharded.items()]
        for name, one in sharded.items() if keep else ():
            found = module._parameters[name]
            assert found is not None
            take_rows(one, partial(found.detach().narrow, 0))
    finally:
        module._parameters.update(sharded)


def empty(parameter: Tensor) -> Tensor:
    """Room for the whole of a parameter that is shared out."""
    return torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)


def shape_only(parameter: Tensor) -> Tensor:
    """The whole of a parameter, without values."""
    return torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")


def everything(name: str) -> bool:
    """Whether a tensor is one of the model: of all that are."""
    return True


def saved_tensors(
    model: nn.Module, make: Callable[[Tensor], Tensor] = whole, wanted: Callable[[str], bool] = everything
) -> Iterator[tuple[str, Tensor]]:
    """What `model.state_dict()` of the model in one piece would hold of what is `wanted`, tensor by tensor, each
    gathered when its turn comes: to be called, and read to the end, on every rank. Parameters that modules share come
    under each name."""
    for module in model.modules():
        reshard: Any = getattr(module, "reshard", None)
        if reshard is not None:
            reshard()
    for prefix, module in model.named_modules():
        found: dict[str, Tensor] = {}
        for values in (shape_only, make):
            with whole_parameters(module, values):
                module._save_to_state_dict(found, f"{prefix}." if prefix else "", keep_vars=False)
            if not any(map(wanted, found)):
                found.clear()
                break
        for name in list(found):
            tensor = found.pop(name)
            if wanted(name):
                yield name, tensor


class Source(Protocol):
    """Tensors by name, whole or some rows of them."""

    @property
    def names(self) -> Collection[str]: ...

    def fetch(self, name: str) -> Tensor: ...

    def rows(self, name: str, start: int, count: int) -> Tensor: ...


def load_tensors(modules: Iterable[tuple[str, nn.Module]], source: Source) -> set[int]:
    """Fills what this rank has of the parameters and buffers that `source` has, under the names that a state dict of
    the whole model has for them; of what is stored as it is in memory, only this rank's rows are fetched.

    Args:
        modules: Of the model, with their names; own parameters of these are filled, shared out or not.
        source: Of values.

    Returns:
        `id` of each parameter that was filled.
    """
    seen: set[int] = set()
    for prefix, module in modules:
        start = f"{prefix}." if prefix else ""
        names: dict[str, Tensor] = {}
        with whole_parameters(module, shape_only):
            module._save_to_state_dict(names, start, keep_vars=False)
        wanted = [name for name in names if name in source.names]
        own = {start + name: one for name, one in module._parameters.items() if one is not None}
        if type(module)._load_from_state_dict is nn.Module._load_from_state_dict:
            for name in wanted:
                if name in own and is_sharded(own[name]):
                    if id(own[name]) not in seen:
                        take_rows(own[name], partial(source.rows, name))
                        seen.add(id(own[name]))
                else:
                    with torch.no_grad():
                        getattr(module, name.removeprefix(start)).copy_(source.fetch(name))
                    seen.add(id(own.get(name)))
        elif wanted:
            seen.update(map(id, own.values()))
            with whole_parameters(module, empty, keep=True):
                tensors = {name: source.fetch(name) for name in wanted}
                module._load_from_state_dict(tensors, start, {}, False, [], [], [])
    return seen


def reset_tensors(modules: Iterable[tuple[str, nn.Module]], loaded: Collection[int]) -> None:
    """Gives own parameters of `modules` whose `id` is not in `loaded` the values that training starts from, as they do
    themselves: the random numbers are those of a model in one piece. To be called on every rank, with the same seed."""
    modules = list(modules)
    left = {id(one) for _, module in modules for one in module.parameters(recurse=False)} - set(loaded)

    def make(parameter: Tensor) -> Tensor:
        return empty(parameter) if id(parameter) in left else whole(parameter)

    for _, module in modules:
        reset = getattr(module, "reset_parameters", None)
        if reset is None or left.isdisjoint(map(id, module.parameters(recurse=False))):
            continue

        with ExitStack() as stack:
            parts = [stack.enter_context(whole_parameters(part, make, keep=True)) for part in module.modules()]
            pairs = [pair for part in parts for pair in part]
            pairs += [(one, one) for one in module.parameters() if id(one) in left]  # in one piece
            before = [made._version for _, made in pairs]
            reset()
            changed = {id(one) for (one, made), was in zip(pairs, before, strict=True) if made._version != was}
        left -= changed
    assert not left, "a module has parameters that it can't reset"

"""What a training method is: it changes a model in place, and says what trains and what a checkpoint of it holds.

A wrapped linear keeps its own parameters under `<name>.linear.*`; in files they are `<name>.*`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from litgpt.errors import LitGPTError, UsageError
from litgpt.model import GPT
from litgpt.model.moe import EXPERT_PARTS, Experts
from litgpt.model.sharding import is_sharded, load_tensors, saved_tensors, shape_only


class Method(ABC):
    """A way to train a model: everything, or a few new parameters beside frozen ones."""

    suffix: str
    """What follows `lit_model.pth` in the name of the file that holds the owned parameters; empty: the model itself."""

    @abstractmethod
    def attach(self, model: GPT) -> None:
        """Changes `model` in place, on whatever device it is (`meta` too), and freezes what the method doesn't own."""

    @abstractmethod
    def owns(self, name: str) -> bool:
        """Whether the parameter of that name trains and is saved."""

    @property
    def switchable(self) -> bool:
        """Whether `switched_off` leaves the model as it was before anything was attached."""
        return False

    def check(self, model: GPT) -> None:  # noqa: B027
        """Raises a LitGPTError if it makes no sense to train `model`, to which nothing is attached yet, this way."""

    def settings(self) -> dict[str, Any]:
        """What `hyperparameters.yaml` says of it besides the command's own arguments."""
        return {}

    def continue_from(self, found: Method) -> Method:
        """The method that goes on with what `found` has learned, asked to be this one.

        Raises:
            LitGPTError: It was learned in another way.
        """
        if found == self:
            return self
        raise LitGPTError(
            f"The folder holds what {type(found).__name__} learned, with other settings than those asked for; give the "
            "folder of the model itself, or the settings that it was trained with."
        )

    def resized(self, n_rows: int) -> Method:
        """The method that trains a model of so many tokens, new ones among them.

        Raises:
            UsageError: It doesn't train embeddings.
        """
        raise UsageError(
            f"{type(self).__name__} leaves embeddings as they are, so new tokens would learn nothing; --resize_vocab "
            "is for finetune_full and finetune_lora."
        )

    def rate_factor(self, name: str) -> float:
        """What the learning rate is multiplied with for a parameter that trains."""
        return 1.0


class Full(Method):
    """Every parameter trains."""

    suffix = ""

    def __init__(self, vocabulary: int | None = None) -> None:
        self.vocabulary = vocabulary
        """Rows of embedding and head, where these are not the model's."""

    def attach(self, model: GPT) -> None:
        if self.vocabulary is not None:
            resize_vocabulary(model, self.vocabulary)
        model.requires_grad_(True)

    def resized(self, n_rows: int) -> Full:
        return Full(n_rows)

    def owns(self, name: str) -> bool:
        return True


class Wrapped(nn.Module):
    """A layer with something beside it; `linear` is the original, quantized or not."""

    enabled = True
    """Whether what is beside it is computed; see `switched_off`."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def mergers(self, name: str) -> dict[str, Callable[[Tensor], Tensor]]:
        """For this layer, called `name`: the weights that merging changes, by their names in a checkpoint, and how."""
        raise NotImplementedError(type(self).__name__)

    def unwrapped(self) -> nn.Module:
        """The original layer, with what was beside it merged in."""
        raise NotImplementedError(type(self).__name__)


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """Inside, wrapped layers of a method that is `switchable` compute what they did before they were wrapped."""
    layers = [module for module in model.modules() if isinstance(module, Wrapped)]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


class WrappedLinear(Wrapped):
    """A linear layer with something beside it."""

    linear: nn.Linear

    @property
    def weight(self) -> Tensor:
        """The frozen weight alone, `(out, in)`."""
        return self.linear.weight

    @property
    def bias(self) -> Tensor | None:
        """The frozen bias alone, `(out,)`."""
        return self.linear.bias


class WrappedExperts(Wrapped):
    """All experts of a layer, with parameters beside each of their parts; in a file these are named expert by expert.

    In memory, those of all experts are one tensor, `<part>_<kind>`, whose first dimension is the expert.
    """

    linear: Experts
    kinds: tuple[str, ...]
    """What there is beside a part."""
    parts: tuple[str, ...] = EXPERT_PARTS
    """Those that have something beside them."""

    def part_parameters(self, part: str) -> tuple[Tensor, ...]:
        """The parameters beside a part, in the order of `kinds`, `(E, …)` each."""
        return tuple(getattr(self, f"{part}_{kind}") for kind in self.kinds)

    def forward(self, tokens: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """As `Experts.forward`."""
        return self.linear.forward(tokens, weights, chosen, self.compute_part)

    def compute_part(self, part: str, x: Tensor, expert: Tensor, ends: Tensor) -> Tensor:
        """As `Experts.linear`, with what is beside it."""
        raise NotImplementedError(type(self).__name__)

    def _names(self, prefix: str) -> dict[str, tuple[str, int]]:
        """Name in a state dict → parameter here, and the number of the expert."""
        own = [(part, kind) for part in self.parts for kind in self.kinds]
        count = self.part_parameters(self.parts[0])[0].size(0)
        return {f"{prefix}{i}.{part}.{kind}": (f"{part}_{kind}", i) for i in range(count) for part, kind in own}

    def stored(self, own: str) -> Tensor:
        """A parameter as files hold it."""
        parameter: Tensor = getattr(self, own)
        return parameter

    def store(self, own: str, stacked: Tensor, assign: bool) -> None:
        """Takes a parameter as files hold it; `assign`: without copying it into the one that is there."""
        if assign:
            setattr(self, own, nn.Parameter(stacked, requires_grad=getattr(self, own).requires_grad))
        else:
            with torch.no_grad():
                getattr(self, own).copy_(stacked)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        names = self._names(prefix)
        stored = {own: self.stored(own) for own, _ in names.values()}
        for name, (own, expert) in names.items():
            destination[name] = (stored[own] if keep_vars else stored[own].detach())[expert]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool, *lists: list[str]
    ) -> None:
        names = self._names(prefix)
        absent = [name for name in names if name not in state_dict]
        if absent:
            lists[0].extend(absent if strict else [])
            return
        for own in {own: None for own, _ in names.values()}:
            stacked = torch.stack([state_dict[name] for name, (parameter, _) in names.items() if parameter == own])
            self.store(own, stacked, assign=local_metadata.get("assign_to_params_buffers", False))


def empty_parameter(weight: Tensor, *shape: int) -> nn.Parameter:
    """A parameter on the device of `weight`, and in its dtype where that isn't a quantized one."""
    dtype = weight.dtype if weight.is_floating_point() else torch.get_default_dtype()
    return nn.Parameter(torch.empty(shape, device=weight.device, dtype=dtype))


def resize_vocabulary(model: GPT, n_rows: int) -> None:
    """Gives embedding and head so many rows, in place; new ones are the mean of those that there are.

    Raises:
        LitGPTError: They are kept in few bits.
    """
    tied, embedding, head = model.tied, model.transformer.wte, model.lm_head
    for layer, names in ((embedding, ("weight",)), (head, ("weight", "bias"))):
        for name in names:
            old = getattr(layer, name)
            if old is None:
                continue
            if not old.is_floating_point():
                raise LitGPTError("The vocabulary can't be resized where the head is quantized; leave --quantize out.")
            old = old.detach()
            more = old.mean(0, keepdim=True).expand(max(0, n_rows - len(old)), *old.shape[1:])
            setattr(layer, name, nn.Parameter(torch.cat((old[:n_rows], more))))
    if tied:
        head.weight = embedding.weight
    embedding.num_embeddings = head.out_features = n_rows
    model.config = replace(model.config, vocab_size=n_rows, padded_vocab_size=n_rows)


def wrap_modules(model: nn.Module, wrapper: Callable[[str, nn.Module], nn.Module | None]) -> int:
    """Replaces modules in place by `wrapper(name, module)`, where that isn't None; returns how many it replaced."""
    replaced: list[str] = []
    for name, module in list(model.named_modules()):
        if name.startswith(tuple(f"{outer}." for outer in replaced)):  # a part of what has been replaced as a whole
            continue
        new = wrapper(name, module)
        if new is not None:
            model.set_submodule(name, new)
            replaced.append(name)
    return len(replaced)


def unwrap_modules(model: nn.Module) -> None:
    """Merges every wrapped layer and puts the plain one back, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Wrapped):
            model.set_submodule(name, module.unwrapped())


def merged_weights(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The weights of a checkpoint, one by one, with what `model` learned beside them merged in."""
    mergers: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Wrapped):
            mergers.update(module.mergers(name))
    return ((name, mergers[name](tensor) if name in mergers else tensor) for name, tensor in weights)


def freeze_others(model: nn.Module, owns: Callable[[str], bool]) -> None:
    """Gradients for what a method owns and for nothing else."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad = owns(name)


def narrow_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Keeps what doesn't train and only ever enters products, or is looked up, in the dtype of the products: beside it,
    autocast makes no copies. What trains stays as it is, and so do norms, which are small."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv1d | Experts):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad and parameter.is_floating_point():
                    parameter.data = parameter.data.to(dtype)


def base_name(name: str) -> str:
    """The name of a frozen parameter in a checkpoint: `….qkv.linear.weight` is `….qkv.weight` there."""
    return name.replace(".linear.", ".")


def base_state(model: nn.Module, owns: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    """The parameters a wrapping method left as they were, under the names a checkpoint has for them."""
    return ((base_name(name), tensor) for name, tensor in model.state_dict().items() if not owns(name))


def owned_state(model: nn.Module, owns: Callable[[str], bool]) -> dict[str, Tensor]:
    """What `lit_model.pth.<method>` holds: the owned parameters under their names in the model; only their shapes where
    they are shared out over ranks."""
    tensors = saved_tensors(model, shape_only) if is_sharded(model) else model.state_dict().items()
    return {name: tensor for name, tensor in tensors if owns(name)}


@dataclass(frozen=True)
class _Whole:
    """A state dict, of which rows can be asked for."""

    names: dict[str, Tensor]

    def fetch(self, name: str) -> Tensor:
        return self.names[name]

    def rows(self, name: str, start: int, count: int) -> Tensor:
        return self.names[name].narrow(0, start, count)


def load_owned(model: nn.Module, owns: Callable[[str], bool], state: dict[str, Tensor], where: str) -> None:
    """Copies the parameters of a method from a file into a model it is attached to (on `meta`: takes them as they are).

    Raises:
        LitGPTError: A parameter is missing, unknown, or of another shape; `where` names the file.
    """
    own = owned_state(model, owns)
    for name, tensor in own.items():
        if name not in state:
            raise LitGPTError(f"{where} lacks {name}; it was trained with other settings than those asked for.")
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)} where the model has {tuple(tensor.shape)}"
            raise LitGPTError(
                f"{where} holds {name} of shape {shapes}; it was trained on another model or with another rank."
            )
    surplus = [name for name in state if name not in own]
    if surplus:
        raise LitGPTError(
            f"{where} holds {surplus[0]}, which the model has no place for; it was trained with other settings."
        )
    if is_sharded(model):
        load_tensors(model.named_modules(), _Whole(state))
        return
    on_meta = any(tensor.is_meta for tensor in own.values())
    model.load_state_dict(state, strict=False, assign=on_meta)


def parameter_counts(model: nn.Module, owns: Callable[[str], bool]) -> tuple[int, int]:
    """How many numbers train and how many are frozen; a tied tensor counts once."""
    counts = [0, 0]
    for name, parameter in model.named_parameters():
        quantized = getattr(parameter, "quant_state", None)  # bitsandbytes packs two 4-bit numbers into a byte
        numel = torch.Size(quantized.shape).numel() if quantized is not None else parameter.numel()
        counts[0 if owns(name) else 1] += numel
    return counts[0], counts[1]

"""Reads a family's weight table in both directions: their tensors under our names, ours under theirs.

N: `n_head`, G: `n_query_groups`, H: `head_size`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from litgpt.config import Config
from litgpt.errors import LitGPTError, closest
from litgpt.families.base import Drop, Interleaved, Join, Same

Fetch = Callable[[str], Tensor]
"""A tensor by name, read when called."""


@dataclass(frozen=True)
class Tensors:
    """A lazy state dict: names now, tensors when asked for."""

    names: tuple[str, ...]
    fetch: Fetch

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self.fetch(name)) for name in self.names)


class WeightTable:
    """The weight rules of one model, spelled out layer by layer."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.prefix = config.family.prefix
        self.rules: dict[str, Same | Join | Interleaved] = {}  # by our module name
        self.dropped: set[str] = set()
        for rule in config.family.weights:
            for layer in range(config.n_layer) if "{i}" in str(rule) else (0,):
                self._spell_out(rule, str(layer))

    def _spell_out(self, rule: Same | Join | Interleaved | Drop, layer: str) -> None:
        if isinstance(rule, Drop):
            self.dropped.add(rule.theirs.replace("{i}", layer))
            return
        ours = rule.ours.replace("{i}", layer)
        if isinstance(rule, Join):
            q, k, v = (name.replace("{i}", layer) for name in rule.theirs)
            self.rules[ours] = Join((q, k, v), ours)
        elif isinstance(rule, Same):
            self.rules[ours] = Same(rule.theirs.replace("{i}", layer), ours, rule.transpose)
        else:
            self.rules[ours] = Interleaved(rule.theirs.replace("{i}", layer), ours)

    # -- theirs → ours

    def import_from(self, theirs: Tensors, wanted: Iterable[str]) -> Tensors:
        """Their tensors under our names.

        Args:
            theirs: What the files hold.
            wanted: Our names, as a model's state dict has them; a tied head is not looked for.

        Raises:
            LitGPTError: A tensor is missing, or there is one that no rule uses.
        """
        present = {self._full_name(name, theirs.names): name for name in theirs.names}
        sources = {
            name: self._sources(name)
            for name in wanted
            if not (self.config.tie_embeddings and name == "lm_head.weight")
        }
        for ours, names in sources.items():
            for name in names:
                if name not in present:
                    raise LitGPTError(
                        f"The checkpoint has no tensor {name!r}, which {ours} is made of.{closest(name, present)}"
                    )
        used = {name for names in sources.values() for name in names} | self.dropped | {self.head_name()}
        for name in present:
            if name not in used:
                raise LitGPTError(
                    f"The checkpoint has a tensor {name!r} that {self.config.family.architectures[0]} has no place for."
                )

        def fetch(ours: str) -> Tensor:
            return self._combine(ours, [theirs.fetch(present[name]) for name in sources[ours]])

        return Tensors(tuple(sources), fetch)

    def head_name(self) -> str:
        """Their name of the head's weight, which tied checkpoints may leave out or repeat."""
        return self._sources("lm_head.weight")[0]

    def _full_name(self, name: str, names: Iterable[str]) -> str:
        """`name`, with the family's prefix where the whole checkpoint leaves it out."""
        bare = not any(other.startswith(self.prefix) for other in names)
        return self.prefix + name if bare and name != "lm_head.weight" else name

    def _sources(self, ours: str) -> tuple[str, ...]:
        module, _, parameter = ours.rpartition(".")
        rule = self.rules.get(module)
        if rule is None:
            raise LitGPTError(f"{self.config.family.architectures[0]} models have no counterpart of {ours}.")
        theirs = rule.theirs if isinstance(rule, Join) else (rule.theirs,)
        return tuple(f"{name}.{parameter}" for name in theirs)

    def _combine(self, ours: str, tensors: list[Tensor]) -> Tensor:
        rule = self.rules[ours.rpartition(".")[0]]
        if isinstance(rule, Join):
            return torch.cat(tensors)
        if isinstance(rule, Interleaved):
            return deinterleave_qkv(tensors[0], self.config)
        return tensors[0].t().contiguous() if rule.transpose and tensors[0].dim() == 2 else tensors[0]

    # -- ours → theirs

    def export_from(self, ours: Tensors) -> Tensors:
        """Our tensors under their names; a tied head is left out, as `transformers` leaves it out.

        Raises:
            LitGPTError: One of ours has no counterpart.
        """
        origins: dict[str, tuple[str, int]] = {}
        for name in ours.names:
            if not (self.config.tie_embeddings and name == "lm_head.weight"):
                origins.update({theirs: (name, part) for part, theirs in enumerate(self._sources(name))})

        def fetch(theirs: str) -> Tensor:
            name, part = origins[theirs]
            return self._take_apart(name, part, ours.fetch(name))

        return Tensors(tuple(origins), fetch)

    def _take_apart(self, ours: str, part: int, tensor: Tensor) -> Tensor:
        rule = self.rules[ours.rpartition(".")[0]]
        if isinstance(rule, Join):
            return tensor.split(qkv_rows(self.config))[part]
        if isinstance(rule, Interleaved):
            return interleave_qkv(tensor, self.config)
        return tensor.t().contiguous() if rule.transpose and tensor.dim() == 2 else tensor


def qkv_rows(config: Config) -> list[int]:
    """Rows of Q, K and V in `attn.qkv`."""
    assert config.head_size is not None and config.n_query_groups is not None
    return [heads * config.head_size for heads in (config.n_head, config.n_query_groups, config.n_query_groups)]


def deinterleave_qkv(tensor: Tensor, config: Config) -> Tensor:
    """Rows `q… k v` of one key-value head after another → `[Q | K | V]`; GPT-NeoX has one query head a group."""
    assert config.head_size is not None and config.n_query_groups is not None
    per_group = config.n_head // config.n_query_groups
    grouped = tensor.view(config.n_query_groups, per_group + 2, config.head_size, -1)
    parts = [part.reshape(-1, *tensor.shape[1:]) for part in grouped.split((per_group, 1, 1), dim=1)]
    return torch.cat(parts)


def interleave_qkv(tensor: Tensor, config: Config) -> Tensor:
    """The inverse of `deinterleave_qkv`."""
    parts = [
        part.view(config.n_query_groups, -1, config.head_size, *tensor.shape[1:])
        for part in tensor.split(qkv_rows(config))
    ]
    return torch.cat(parts, dim=1).reshape(tensor.shape)


def lazy(tensors: Mapping[str, Tensor]) -> Tensors:
    """A state dict as `Tensors`."""
    return Tensors(tuple(tensors), tensors.__getitem__)

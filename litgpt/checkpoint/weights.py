"""Reads a family's weight table in both directions: their tensors under our names, ours under theirs.

N: `n_head`, G: `n_query_groups`, H: `head_size`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor

from litgpt.config import Config
from litgpt.errors import LitGPTError, closest, quoted
from litgpt.families.base import (
    Absorbed,
    Dealt,
    Drop,
    Family,
    GatedJoin,
    Interleaved,
    Join,
    Rows,
    Rule,
    Same,
    Split,
    Stacked,
    spelled,
)

Fetch = Callable[[str], Tensor]
"""A tensor by name, read when called."""


@dataclass(frozen=True)
class Tensors:
    """A lazy state dict: names now, tensors when asked for."""

    names: tuple[str, ...]
    fetch: Fetch
    fetch_rows: Callable[[str, int, int], Tensor] | None = None
    """Some rows of a tensor, where that is less work than the whole: `(name, first row, number)`."""
    codes: Callable[[str], Codes | None] | None = None
    """A weight as it is stored in few bits; of None, or where this is None, it is not."""

    def rows(self, name: str, start: int, count: int) -> Tensor:
        """`count` rows of a tensor from `start` on; of one that is memory-mapped no others are read."""
        if self.fetch_rows is not None:
            return self.fetch_rows(name, start, count)
        return self.fetch(name).narrow(0, start, count)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self.fetch(name)) for name in self.names)


@dataclass(frozen=True)
class Codes:
    """A weight in few bits: of 4, `(code - 8) · scale + zero`, of 8 `code · scale`."""

    TENSORS: ClassVar[tuple[str, ...]] = ("codes", "scales", "zeros")
    bits: int
    """4 or 8."""
    codes: Tensor
    """`(O, I)`: uint8 0 … 15, or int8."""
    scales: Tensor
    """`(O, G)` float32, of as many columns each."""
    zeros: Tensor
    """The same."""


class WeightTable:
    """The weight rules of one model, spelled out layer by layer and expert by expert."""

    def __init__(self, config: Config, family: Family | None = None) -> None:
        """`family`: the tables of another format than the one that `config.family` is written in."""
        self.config = config
        self.family = family or config.family
        self.strict = family is not None
        self.rules: dict[str, Rule] = {}  # by our module name
        self.dropped: list[str] = []
        for rule in self.family.rules(config):
            for layer in range(config.n_layer) if "{i}" in str(rule) else (0,):
                for expert in range(config.n_expert) if "{e}" in str(rule) else (0,):
                    self._add(spelled(rule, layer, expert))

    def _add(self, rule: Rule) -> None:
        if isinstance(rule, Drop):
            self.dropped.append(rule.theirs.replace("{n}", str(self.config.n_layer)))
        else:
            for ours in rule.ours if isinstance(rule, Split | Stacked | Dealt) else (rule.ours,):
                self.rules[ours] = rule

    def _add_alternatives(self, present: Iterable[str]) -> None:
        """Rules that the checkpoint has the tensors of, in the place of those it lacks them of."""
        present = set(present)
        for rule in self.family.alternatives:
            for layer in range(self.config.n_layer):
                first = spelled(rule, layer)
                if isinstance(first, Drop) or not present & {str(first.theirs), f"{first.theirs}.weight"}:
                    continue
                for expert in range(self.config.n_expert) if "{e}" in str(rule) else (0,):
                    one = spelled(rule, layer, expert)
                    self._add(one)
                    if isinstance(one, Same):  # which the table may have had a rule for parameters in the place of
                        self.rules.pop(f"{one.ours}.weight", None)

    # -- theirs → ours

    def import_from(self, theirs: Tensors, wanted: Iterable[str]) -> Tensors:
        """Their tensors under our names.

        Args:
            theirs: What the files hold.
            wanted: Our names, a model's state dict for instance, whose shapes they must have then; a tied head is not
                looked for.

        Raises:
            LitGPTError: A tensor is missing; on reading: one has another shape.
        """
        present = self.present(theirs.names)
        self._add_alternatives(present)
        sources = {name: self.sources(name) for name in wanted if not self._is_tied_head(name)}
        for ours, names in sources.items():
            for name in names:
                if name not in present:
                    raise LitGPTError(
                        f"The checkpoint has no tensor {quoted(name)}, which {ours} is made of."
                        f"{closest(name, present.values())}"
                    )
        used = {name for names in sources.values() for name in names} | {*self.dropped, self.head_name()}
        beginnings = tuple(name[:-1] for name in self.dropped if name.endswith("*"))
        surplus = [name for name in present if name not in used and not name.startswith(beginnings)]
        if surplus:
            self._tell_surplus([present[name] for name in surplus])

        shapes = {name: tensor.shape for name, tensor in wanted.items()} if isinstance(wanted, Mapping) else {}

        def fetch(ours: str) -> Tensor:
            parts = [theirs.fetch(present[name]) for name in sources[ours]]
            parts = self._upright(ours, parts, shapes.get(ours))
            try:
                tensor = self._combine(ours, parts)
            except (RuntimeError, IndexError, ValueError):  # parts that don't even fit together
                tensor = None
            if tensor is None or tensor.shape != shapes.get(ours, tensor.shape):
                found = " and ".join(
                    f"{name} {tuple(part.shape)}" for name, part in zip(sources[ours], parts, strict=True)
                )
                needed = f" of the shape {tuple(shapes[ours])}" if ours in shapes else ""
                raise LitGPTError(
                    f"The checkpoint's {found} can't be {ours}{needed}; its configuration says other sizes."
                )
            if ours == "transformer.wte.weight" and self.config.padding_row is not None:
                tensor = tensor.clone()
                tensor[self.config.padding_row] = 0
            return tensor

        def fetch_rows(ours: str, start: int, count: int) -> Tensor:
            if not isinstance(self._rule(ours), Join) or ours not in shapes:
                return fetch(ours).narrow(0, start, count)
            parts = self._upright(ours, [theirs.fetch(present[name]) for name in sources[ours]], shapes[ours])
            if sum(map(len, parts)) != shapes[ours][0] or any(part.shape[1:] != shapes[ours][1:] for part in parts):
                fetch(ours)  # which says what is wrong
            return rows_of_joined(parts, start, count)

        def codes(ours: str) -> Codes | None:
            return self._joined_codes(ours, [theirs.codes(present[name]) for name in sources[ours] if theirs.codes])

        return Tensors(tuple(sources), fetch, fetch_rows, codes if theirs.codes else None)

    def _joined_codes(self, ours: str, parts: Sequence[Codes | None]) -> Codes | None:
        """One of ours in few bits, of theirs; None: they are not, or not alike."""
        given = [part for part in parts if part is not None]
        alike = {(part.bits, part.scales.size(1)) for part in given}
        if len(given) < len(parts) or len(alike) != 1 or not self.keeps_rows(ours):
            return None
        joined = (self._combine(ours, [getattr(part, field) for part in given]) for field in Codes.TENSORS)
        return Codes(given[0].bits, *joined)

    def keeps_rows(self, ours: str) -> bool:
        """Whether each row of a weight of ours is one of a linear layer of theirs, as a whole."""
        rule = self._rule(ours)
        if ours in self.rules or isinstance(rule, Stacked | Absorbed | Rows):
            return False
        return not (isinstance(rule, Same) and (rule.transpose or rule.row))

    def _tell_surplus(self, names: list[str]) -> None:
        """What no rule uses is left alone, as transformers leaves it, but for files whose format knows every tensor."""
        architecture = self.family.architectures[0]
        if self.strict:
            raise LitGPTError(f"The checkpoint has a tensor {quoted(names[0])} that {architecture} has no place for.")
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        named = ", ".join(quoted(name) for name in sorted(names)[:3])
        _tell_once(f"{architecture} has no place for {named}{more} of the checkpoint: left out.")

    def head_name(self) -> str:
        """Their name of the head's weight, which tied checkpoints may leave out or repeat."""
        return self.sources("lm_head.weight")[0]

    def _is_tied_head(self, ours: str) -> bool:
        return bool(self.config.tie_embeddings) and ours == "lm_head.weight"

    def present(self, names: Sequence[str]) -> dict[str, str]:
        """The tensors there are, by the names the table has for them."""
        family = self.family
        present = {}
        for name in names:
            if not name.startswith(family.not_text):
                table_name = next((new + name[len(old) :] for old, new in family.renames if name.startswith(old)), name)
                present[table_name] = name
        if any(name.startswith(family.prefix) for name in present):
            return present
        # Some checkpoints leave the prefix out.
        head = self.head_name().removesuffix("weight")
        return {name if name.startswith(head) else family.prefix + name: theirs for name, theirs in present.items()}

    def _rule(self, ours: str) -> Rule:
        rule = self.rules.get(ours) or self.rules.get(ours.rpartition(".")[0])
        if rule is None:
            raise LitGPTError(f"{self.family.architectures[0]} models have no counterpart of {ours}.")
        return rule

    def sources(self, ours: str) -> tuple[str, ...]:
        """Their tensors that one of ours is made of."""
        rule = self._rule(ours)
        theirs = rule.theirs if isinstance(rule, Join | GatedJoin | Rows | Absorbed) else (rule.theirs,)
        parameter = "" if ours in self.rules else "." + ours.rpartition(".")[2]
        return tuple(name + parameter for name in theirs)

    def _upright(self, ours: str, tensors: list[Tensor], shape: torch.Size | None) -> list[Tensor]:
        """Stacked experts that may lie either way round, as ours do."""
        rule = self._rule(ours)
        if not isinstance(rule, Stacked) or not rule.rows or shape is None or len(shape) < 2:
            return tensors
        fits = tensors[0].shape[1:] == (shape[0] * len(rule.ours), shape[1])
        return tensors if fits else [tensors[0].mT]

    def _combine(self, ours: str, tensors: list[Tensor]) -> Tensor:
        rule = self._rule(ours)
        if isinstance(rule, Join):
            return torch.cat(tensors)
        if isinstance(rule, Rows):
            return torch.stack(tensors)
        if isinstance(rule, GatedJoin):
            heads = self.config.heads(int(rule.ours.split(".")[2]))
            gates, queries = (tensor.unflatten(0, (heads, -1)) for tensor in tensors[:2])
            return torch.cat((torch.stack((queries, gates), dim=1).flatten(0, 2), *tensors[2:]))
        if isinstance(rule, Same) and rule.row:
            return tensors[0].flatten()
        if isinstance(rule, Absorbed):
            return torch.cat((tensors[0].mT, tensors[1]), dim=1).flatten(0, 1)
        if isinstance(rule, Split):
            return tensors[0].chunk(len(rule.ours))[rule.ours.index(ours.rpartition(".")[0])]
        if isinstance(rule, Dealt):
            return ungroup_rows(rule, rule.ours.index(ours.rpartition(".")[0]), tensors[0])
        if isinstance(rule, Stacked):
            part, parts = rule.ours.index(ours), len(rule.ours)
            of_expert = tensors[0][rule.expert]
            if rule.rows:
                return of_expert.chunk(parts)[part]
            columns = of_expert[..., part::parts] if rule.by_turns else of_expert.chunk(parts, dim=-1)[part]
            return columns.t() if columns.dim() == 2 else columns
        if isinstance(rule, Interleaved):
            return deinterleave_qkv(tensors[0], self.config, rule.groups, rule.order)
        transposed = isinstance(rule, Same) and rule.transpose and tensors[0].dim() == 2
        return tensors[0].t().contiguous() if transposed else tensors[0]

    # -- ours → theirs

    def export_from(self, ours: Tensors) -> Tensors:
        """Our tensors under their names; a tied head is left out, as `transformers` leaves it out.

        Raises:
            LitGPTError: One of ours has no counterpart.
        """
        origins: dict[str, tuple[str, int]] = {}
        for name in ours.names:
            if not self._is_tied_head(name):
                for part, theirs in enumerate(self.sources(name)):
                    origins.setdefault(theirs, (name, part))

        def fetch(theirs: str) -> Tensor:
            name, part = origins[theirs]
            rule = self._rule(name)
            if isinstance(rule, Split):
                parameter = name.rpartition(".")[2]
                return torch.cat([ours.fetch(f"{module}.{parameter}") for module in rule.ours])
            if isinstance(rule, Dealt):
                parameter = name.rpartition(".")[2]
                return group_rows(rule, [ours.fetch(f"{module}.{parameter}") for module in rule.ours])
            if isinstance(rule, Stacked):
                return self._stack(theirs, ours)
            return self._take_apart(rule, part, ours.fetch(name))

        return Tensors(tuple(origins), fetch)

    def _stack(self, theirs: str, ours: Tensors) -> Tensor:
        """One tensor of all experts."""
        rules = {rule for rule in self.rules.values() if isinstance(rule, Stacked) and rule.theirs == theirs}
        experts = []
        for rule in sorted(rules, key=lambda rule: rule.expert):
            parts = [ours.fetch(name) for name in rule.ours]
            if rule.rows:
                experts.append(torch.cat(parts))
                continue
            columns = [part.t() if part.dim() == 2 else part for part in parts]  # (in, out) or (out,)
            experts.append(torch.stack(columns, dim=-1).flatten(-2) if rule.by_turns else torch.cat(columns, dim=-1))
        return torch.stack(experts)

    def _take_apart(self, rule: Rule, part: int, tensor: Tensor) -> Tensor:
        if isinstance(rule, Join):
            rows = self.config.qkv_rows(int(rule.ours.split(".")[2]))
            return tensor.split([size for size in rows if size])[part]
        if isinstance(rule, Rows):
            return tensor[part]
        if isinstance(rule, GatedJoin):
            layer = int(rule.ours.split(".")[2])
            queries, *others = tensor.split(self.config.qkv_rows(layer))
            both = queries.unflatten(0, (self.config.heads(layer), 2, -1))
            return both[:, 1 - part].flatten(0, 1) if part < 2 else others[part - 2]
        if isinstance(rule, Same) and rule.row:
            return tensor[None]
        if isinstance(rule, Absorbed):
            sizes = self.config.latent_attention
            assert sizes is not None
            of_heads = tensor.unflatten(0, (self.config.n_head, -1))  # (N, P + D, L)
            keys, values = of_heads.split((sizes["qk_nope_head_dim"], sizes["v_head_dim"]), dim=1)
            return values if part else keys.mT
        if isinstance(rule, Interleaved):
            return interleave_qkv(tensor, self.config, rule.groups, rule.order)
        return tensor.t().contiguous() if isinstance(rule, Same) and rule.transpose and tensor.dim() == 2 else tensor


@cache
def _tell_once(sentence: str) -> None:
    """Once a process."""
    print(sentence, file=sys.stderr)


def rows_of_joined(parts: Sequence[Tensor], start: int, count: int) -> Tensor:
    """`count` rows from `start` on of tensors one below the other; no others are read."""
    pieces, first = [], 0
    for part in parts:
        low, high = max(start, first), min(start + count, first + len(part))
        pieces += [part[low - first : high - first]] if low < high else []
        first += len(part)
    return torch.cat(pieces)


def ungroup_rows(rule: Dealt, which: int, tensor: Tensor) -> Tensor:
    """The rows of one of our tensors, out of theirs, which deals them out by group."""
    parts = tensor.unflatten(0, (rule.groups, -1)).split([size for sizes in rule.rows for size in sizes], dim=1)
    first = sum(len(sizes) for sizes in rule.rows[:which])
    return torch.cat([part.flatten(0, 1) for part in parts[first : first + len(rule.rows[which])]])


def group_rows(rule: Dealt, tensors: Sequence[Tensor]) -> Tensor:
    """The inverse of `ungroup_rows`, of all our tensors."""
    parts = [
        part.unflatten(0, (rule.groups, -1))
        for tensor, sizes in zip(tensors, rule.rows, strict=True)
        for part in tensor.split([rule.groups * size for size in sizes])
    ]
    return torch.cat(parts, dim=1).flatten(0, 1)


def deinterleave_qkv(tensor: Tensor, config: Config, groups: int = 0, order: str = "qkv") -> Tensor:
    """Rows `q… k v` of one group of heads after another → `[Q | K | V]`; GPT-NeoX has one query head a group."""
    groups = groups or config.n_query_groups or config.n_head
    rows = dict(zip("qkv", config.qkv_rows(), strict=True))
    grouped = tensor.unflatten(0, (groups, -1)).split([rows[part] // groups for part in order], dim=1)
    parts = dict(zip(order, grouped, strict=True))
    return torch.cat([parts[part].flatten(0, 1) for part in "qkv"])


def interleave_qkv(tensor: Tensor, config: Config, groups: int = 0, order: str = "qkv") -> Tensor:
    """The inverse of `deinterleave_qkv`."""
    groups = groups or config.n_query_groups or config.n_head
    parts = dict(zip("qkv", tensor.split(config.qkv_rows()), strict=True))
    return torch.cat([parts[part].unflatten(0, (groups, -1)) for part in order], dim=1).flatten(0, 1)


def lazy(tensors: Mapping[str, Tensor]) -> Tensors:
    """A state dict as `Tensors`."""
    return Tensors(tuple(tensors), tensors.__getitem__)

"""Layers with a low-rank update beside them (LoRA, https://arxiv.org/abs/2106.09685), and what can be done to one.

    y = W x + b + s B A x               A: (r, in), B: (out, r); s is alpha / r
    rsLoRA   s is alpha / sqrt(r)       so that a high rank learns as fast (https://arxiv.org/abs/2312.03732)
    DoRA     y = b + m / |W + s B A| (W + s B A) x      | | of each row, m: (out,) (https://arxiv.org/abs/2402.09353)
    PiSSA    y = W x + b + s (B A - B0 A0) x     training starts at B = B0, A = A0, the r largest singular values of W
             and their vectors (https://arxiv.org/abs/2404.02948); W stays whole, and a file has it as LoRA of rank 2 r

The fused query-key-value layer, rows [Q | K | V], may have one A for each enabled part, stacked; B and m then hold the
enabled rows one below the other. T: tokens, P: parts, E: experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from litgpt.kernels.dropout import drop
from litgpt.model.moe import Experts, grouped_linear
from litgpt.peft.method import WrappedExperts, WrappedLinear, empty_parameter
from litgpt.quantize import dense_weight

UPDATES = ("lora_A", "lora_B", "lora_magnitude")
"""The ends of the names of an update's parameters."""
FAST_STEPS = 16
"""Power iterations of the randomised singular value decomposition."""


@dataclass(frozen=True)
class Update:
    """How the update of a layer is made."""

    r: int
    alpha: float
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    init: str = "default"
    """`default`, `pissa`, or `pissa-fast`, with a randomised decomposition."""

    @property
    def scaling(self) -> float:
        """What the product is multiplied with."""
        return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The parameters it has."""
        return UPDATES if self.dora else UPDATES[:2]


def row_norms(weight: Tensor) -> Tensor:
    """`(…, out, in)` → `(…, out)`, in float32 or better."""
    return torch.linalg.vector_norm(weight, dim=-1, dtype=torch.promote_types(weight.dtype, torch.float32))


@torch.no_grad()
def updated_row_norms(weight: Tensor, squared_norms: Tensor, a: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Of `W + s B A`, without making it: `(…, out)`. `squared_norms` are those of `row_norms(weight)`."""
    dtype = squared_norms.dtype
    with torch.autocast(weight.device.type, enabled=False):
        shared = (weight @ a.to(weight.dtype).mT).to(dtype)  # (…, out, r)
        a, b = a.to(dtype), scaling * b.to(dtype)
        total = squared_norms + ((2 * shared + b @ (a @ a.mT)) * b).sum(-1)
    return total.clamp_min(torch.finfo(dtype).tiny).sqrt()


@torch.no_grad()
def merged(
    weight: Tensor,
    a: Tensor,
    b: Tensor,
    scaling: float,
    magnitude: Tensor | None = None,
    rows: Sequence[range] | None = None,
) -> Tensor:
    """`W + s B A`, its rows brought to their magnitudes, computed in float32 or better, in the dtype of `weight`.

    All of them may be stacked. `rows` are those that `magnitude` is of; None: all.
    """
    dtype = torch.promote_types(b.dtype, torch.float32)
    update = scaling * (b.to(dtype) @ a.to(dtype))
    result = weight.to(dtype) + update.to(weight.device)
    if magnitude is not None:
        norms = row_norms(result).clamp_min(torch.finfo(dtype).tiny)
        result *= scatter_rows(magnitude.to(result), norms, rows).div(norms)[..., None]
    return result.to(weight.dtype)


def scatter_rows(own: Tensor, others: Tensor, rows: Sequence[range] | None) -> Tensor:
    """`others` `(out,)` with the values of `own` at `rows`; None: `own`, which has all rows."""
    if rows is None:
        return own
    pieces, done = [], 0
    for block, at in zip(own.split([len(part) for part in rows]), rows, strict=True):
        pieces += [others[done : at.start], block]
        done = at.stop
    return torch.cat((*pieces, others[done:]))


def scale_rows(y: Tensor, gains: Tensor, bias: Tensor | None) -> Tensor:
    """A layer's output `(…, out)` with each row of the weight, but not the bias in it, multiplied by `gains`."""
    gains = gains.to(y.dtype)
    return y * gains if bias is None else torch.addcmul(bias.to(y.dtype) * (1 - gains), y, gains)


def low_rank_factors(weight: Tensor, r: int, scaling: float, fast: bool) -> tuple[Tensor, Tensor]:
    """A `(…, r, in)` and B `(…, out, r)` such that `s B A` is the best approximation of `weight` of that rank."""
    full = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    if fast:
        u, s, v = torch.svd_lowrank(full, q=r, niter=FAST_STEPS)
        vt = v.mT
    else:
        u, s, vt = torch.linalg.svd(full, full_matrices=False)
    roots = (s[..., :r] / scaling).sqrt()
    return roots[..., None] * vt[..., :r, :], u[..., :r] * roots[..., None, :]


def copy_like(tensor: Tensor, other: Tensor | None) -> Tensor:
    """A copy of `tensor` with the device and dtype of the one it replaces, if that has values."""
    return tensor.clone() if other is None or other.is_meta else tensor.to(other, copy=True)


class LoRALinear(WrappedLinear):
    """A linear layer with a low-rank update, or, of the fused query-key-value layer, one for each of some parts."""

    def __init__(self, linear: nn.Linear, update: Update, parts: Sequence[range] | None = None) -> None:
        super().__init__(linear)
        self.update, self.parts = update, parts
        self.r, self.scaling, self.dropout = update.r, update.scaling, update.dropout
        weight, stacked = linear.weight, 1 if parts is None else len(parts)
        rows = linear.out_features if parts is None else sum(map(len, parts))
        self.lora_A = empty_parameter(weight, stacked * self.r, linear.in_features)
        self.lora_B = empty_parameter(weight, rows, self.r)
        self.lora_magnitude = empty_parameter(weight, rows) if update.dora else None
        self.squared_norms: Tensor | None = None
        self.start_A: Tensor | None
        self.start_B: Tensor | None
        self.register_buffer("start_A", None, persistent=False)
        self.register_buffer("start_B", None, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start of training, when the layer computes what it did without an update."""
        self.squared_norms = None
        if self.update.init == "default":
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as a linear layer's own weight
            nn.init.zeros_(self.lora_B)
            if self.lora_magnitude is None:
                return
        weight = dense_weight(self.linear).detach()
        blocks = [weight] if self.parts is None else [weight[rows.start : rows.stop] for rows in self.parts]
        with torch.no_grad():
            if self.update.init != "default":
                self._init_pissa(blocks)
            if self.lora_magnitude is not None and not weight.is_meta:
                self.lora_magnitude.copy_(torch.cat([row_norms(block) for block in blocks]))

    def _init_pissa(self, blocks: list[Tensor]) -> None:
        """The start of PiSSA."""
        if not self.lora_A.is_meta:
            fast = self.update.init == "pissa-fast"
            starts = [low_rank_factors(block, self.r, self.scaling, fast) for block in blocks]
            self.lora_A.copy_(torch.cat([a for a, _ in starts]))
            self.lora_B.copy_(torch.cat([b for _, b in starts]))
        self.start_A, self.start_B = self.lora_A.detach().clone(), self.lora_B.detach().clone()

    def down(self) -> Tensor:
        """All A, `(P r, in)`; with those of the start below each, `(P 2r, in)`."""
        if self.start_A is None:
            return self.lora_A
        pairs = zip(self.lora_A.split(self.r), self.start_A.split(self.r), strict=True)
        return torch.cat([matrix for pair in pairs for matrix in pair])

    def up_rows(self) -> Tensor:
        """B of the rows with an update, `(rows, r)`; with that of the start beside it, `(rows, 2r)`."""
        return self.lora_B if self.start_B is None else torch.cat((self.lora_B, -self.start_B), dim=1)

    def up(self) -> Tensor:
        """The matrix that takes `down() x` to the layer's output, `(out, …)`."""
        if self.parts is None:
            return self.up_rows()
        # Block-diagonal with empty rows for parts without an update: this small matrix pads, not the activations.
        columns = []
        for block, rows in zip(self.up_rows().split([len(rows) for rows in self.parts]), self.parts, strict=True):
            columns.append(F.pad(block, (0, 0, rows.start, self.linear.out_features - rows.stop)))
        return torch.cat(columns, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """`(…, in)` → `(…, out)`."""
        if not self.enabled:
            return self.linear(x)
        rows = x.flatten(0, -2)  # (T, in)
        y = self.linear(rows)  # (T, out)
        kept, factor = drop(rows, self.dropout if self.training else 0.0)
        down = self.down()
        a = F.linear(kept, down.to(rows.dtype)).to(y.dtype)  # (T, P r)
        if self.parts is not None and self.lora_magnitude is None and not torch.is_grad_enabled():
            self._add_parts(y, a, self.scaling * factor)
            return y.view(*x.shape[:-1], -1)
        up = self.up()
        # One product that adds onto the layer's own output: nothing else of size T x out is made, forward or backward.
        y.addmm_(a, up.to(y.dtype).t(), alpha=self.scaling * factor)
        if self.lora_magnitude is not None:
            y = self._apply_magnitude(y, down, up)
        return y.view(*x.shape[:-1], -1)

    def _add_parts(self, y: Tensor, a: Tensor, scaling: float) -> None:
        """Adds each part's update to its own rows: without gradients, which would copy all of `y` for each, that takes
        fewer operations than one padded matrix, and a token has little else to do."""
        assert self.parts is not None
        ups = self.up_rows().to(y.dtype).split([len(rows) for rows in self.parts])
        for up, own, rows in zip(ups, a.chunk(len(self.parts), dim=1), self.parts, strict=True):
            y[:, rows.start : rows.stop].addmm_(own, up.t(), alpha=scaling)

    def _apply_magnitude(self, y: Tensor, down: Tensor, up: Tensor) -> Tensor:
        assert self.lora_magnitude is not None
        weight = dense_weight(self.linear)
        if self.squared_norms is None or self.squared_norms.device != weight.device:
            self.squared_norms = row_norms(weight.detach()).square()
        # A constant to the gradients (section 4.3 of the paper).
        norms = updated_row_norms(weight, self.squared_norms, down, up, self.scaling)
        return scale_rows(y, scatter_rows(self.lora_magnitude.to(norms.dtype), norms, self.parts) / norms, self.bias)

    def merge_into(self, weight: Tensor) -> Tensor:
        """The weight of the plain layer that computes the same, given the frozen `weight` `(out, in)`; in its dtype."""
        return merged(weight, self.down(), self.up(), self.scaling, self.lora_magnitude, self.parts)

    def mergers(self, name: str) -> dict[str, Callable[[Tensor], Tensor]]:
        return {f"{name}.weight": self.merge_into}

    def unwrapped(self) -> nn.Module:
        self.linear.weight = nn.Parameter(self.merge_into(self.weight), requires_grad=False)
        return self.linear

    def extra_repr(self) -> str:
        return f"r={self.r}, scaling={self.scaling:g}, dropout={self.dropout:g}"

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.start_A is not None:
            for name, stored in (("lora_A", self.down()), ("lora_B", self.up_rows())):
                destination[prefix + name] = stored if keep_vars else stored.detach()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        names = prefix + "lora_A", prefix + "lora_B"
        if self.start_A is not None and all(name in state_dict for name in names):
            pairs = state_dict[names[0]].unflatten(0, (-1, 2, self.r))  # (P, 2, r, in)
            b, start_b = state_dict[names[1]].split(self.r, dim=1)
            state_dict = {**state_dict, names[0]: pairs[:, 0].flatten(0, 1), names[1]: b.contiguous()}
            self.start_A = copy_like(pairs[:, 1].flatten(0, 1), self.start_A)
            self.start_B = copy_like(-start_b, self.start_B)
        super()._load_from_state_dict(state_dict, prefix, *rest)


class LoRAExperts(WrappedExperts):
    """All experts of a layer, some or all of their linears with an update."""

    def __init__(self, experts: Experts, updates: dict[str, Update]) -> None:
        """`updates`: of the parts that have one; they may differ in rank and scaling."""
        super().__init__(experts)
        first = next(iter(updates.values()))
        self.updates, self.parts, self.kinds = updates, tuple(updates), first.kinds
        self.dropout = first.dropout
        self.squared_norms: dict[str, Tensor] = {}
        for part, update in updates.items():
            weight: Tensor = getattr(experts, part)  # (E, out, in)
            E, rows, columns = weight.shape
            shapes = {"lora_A": (E, update.r, columns), "lora_B": (E, rows, update.r), "lora_magnitude": (E, rows)}
            for kind in self.kinds:
                self.register_parameter(f"{part}_{kind}", empty_parameter(weight, *shapes[kind]))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start of training, as `LoRALinear`'s for each expert."""
        self.squared_norms = {}
        for part, update in self.updates.items():
            a, b, *magnitude = self.part_parameters(part)
            if update.init == "default":
                for matrix in a.unbind():
                    nn.init.kaiming_uniform_(matrix, a=math.sqrt(5))
                nn.init.zeros_(b)
                if not magnitude:
                    continue
            weight = dense_weight(getattr(self.linear, part)).detach()
            if update.init != "default":
                if not weight.is_meta:
                    first = low_rank_factors(weight, update.r, update.scaling, update.init == "pissa-fast")
                    with torch.no_grad():
                        a.copy_(first[0])
                        b.copy_(first[1])
                for kind, matrix in (("lora_A", a), ("lora_B", b)):
                    self.register_buffer(f"start_{part}_{kind}", matrix.detach().clone(), persistent=False)
            if magnitude and not weight.is_meta:
                with torch.no_grad():
                    magnitude[0].copy_(row_norms(weight))

    def matrices(self, part: str) -> tuple[Tensor, Tensor]:
        """A `(E, r, in)` and B `(E, out, r)` of a part; with those of the start, of rank 2r."""
        return self.stored(f"{part}_lora_A"), self.stored(f"{part}_lora_B")

    def stored(self, own: str) -> Tensor:
        parameter, start = super().stored(own), getattr(self, f"start_{own}", None)
        if start is None:
            return parameter
        return torch.cat((parameter, start), dim=1) if own.endswith("A") else torch.cat((parameter, -start), dim=2)

    def store(self, own: str, stacked: Tensor, assign: bool) -> None:
        start = getattr(self, f"start_{own}", None)
        if start is not None:
            stacked, of_start = stacked.split(
                super().stored(own).size(1 if own.endswith("A") else 2), dim=1 if own.endswith("A") else 2
            )
            stacked = stacked.contiguous()
            setattr(self, f"start_{own}", copy_like(of_start if own.endswith("A") else -of_start, start))
        super().store(own, stacked, assign)

    def compute_part(self, part: str, x: Tensor, expert: Tensor, ends: Tensor) -> Tensor:
        y = self.linear.linear(part, x, expert, ends)
        if part not in self.parts or not self.enabled:
            return y
        kept, factor = drop(x, self.dropout if self.training else 0.0)
        a, b = (matrix.to(y.dtype) for matrix in self.matrices(part))
        update = grouped_linear(grouped_linear(kept.to(y.dtype), a, ends), b, ends)
        y = y.add_(update, alpha=self.updates[part].scaling * factor)
        return self._apply_magnitude(part, y, expert) if self.updates[part].dora else y

    def _apply_magnitude(self, part: str, y: Tensor, expert: Tensor) -> Tensor:
        weight = dense_weight(getattr(self.linear, part))
        if part not in self.squared_norms or self.squared_norms[part].device != weight.device:
            self.squared_norms[part] = row_norms(weight.detach()).square()
        scaling = self.updates[part].scaling
        norms = updated_row_norms(weight, self.squared_norms[part], *self.matrices(part), scaling)  # (E, out)
        gains = self.part_parameters(part)[2].to(norms.dtype) / norms
        bias = getattr(self.linear, f"{part}_bias", None)
        return scale_rows(y, gains[expert], None if bias is None else bias[expert])

    def mergers(self, name: str) -> dict[str, Callable[[Tensor], Tensor]]:
        found: dict[str, Callable[[Tensor], Tensor]] = {}
        for part in self.parts:
            for expert, own in enumerate(zip(*self._part_update(part), strict=True)):
                found[f"{name}.{expert}.{part}.weight"] = partial(self._merge, part, own)
        return found

    def unwrapped(self) -> nn.Module:
        for part in self.parts:
            weight = self._merge(part, self._part_update(part), getattr(self.linear, part))
            setattr(self.linear, part, nn.Parameter(weight, requires_grad=False))
        return self.linear

    def _part_update(self, part: str) -> tuple[Tensor, ...]:
        """All that makes the update of a part, stacked."""
        return (*self.matrices(part), *self.part_parameters(part)[2:])

    def _merge(self, part: str, update: tuple[Tensor, ...], weight: Tensor) -> Tensor:
        a, b, *magnitude = update
        return merged(weight, a, b, self.updates[part].scaling, magnitude[0] if magnitude else None)

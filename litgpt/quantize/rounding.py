"""Weights as whole numbers of few bits with a scale (and perhaps a zero point) for each group of columns: by rounding
to nearest, and by GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323).

O, I: rows and columns of a weight; G: groups of columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from litgpt.errors import LitGPTError

BLOCK = 128
"""Columns that GPTQ corrects before it passes what is left on to all others."""
DAMPING = 0.01
"""Of the mean of a Hessian's diagonal, added to it."""
SHRINKS = 20
"""Narrower ranges that are tried for a group, down to `NARROWEST` of the whole."""
NARROWEST = 0.5
MAX_FP8 = 448.0
"""The largest number of E4M3."""


@dataclass(frozen=True)
class Grid:
    """What weights are rounded to."""

    bits: int
    group_size: int | None
    """Columns that share a scale; None: all of a row."""
    symmetric: bool
    """Whether the middle code means zero; else each group has a code of its own that does."""
    dtype: torch.dtype
    """Of the scales."""

    @property
    def top(self) -> int:
        """The highest code."""
        return 2**self.bits - 1

    def groups(self, weight: Tensor) -> Tensor:
        """`(O, I)` → `(O, G, I / G)`.

        Raises:
            LitGPTError: The groups don't come out even.
        """
        size = self.group_size or weight.size(1)
        if weight.size(1) % size:
            raise LitGPTError(f"{weight.size(1)} columns can't be quantized in groups of {size}.")
        return weight.unflatten(1, (-1, size))


@dataclass(frozen=True)
class Rounded:
    """A weight on a grid: `(code - zero) · scale`."""

    codes: Tensor
    """`(O, I)` uint8."""
    scales: Tensor
    """`(O, G)`."""
    zeros: Tensor
    """`(O, G)` uint8."""

    def dequantized(self) -> Tensor:
        """`(O, I)` float32."""
        groups = self.codes.unflatten(1, (self.scales.size(1), -1)).float()
        return ((groups - self.zeros[..., None].float()) * self.scales[..., None].float()).flatten(1)


def round_to_nearest(weight: Tensor, grid: Grid, importance: Tensor | None = None) -> Rounded:
    """Each weight becomes the nearest code.

    Args:
        weight: `(O, I)`.
        grid: What to round to.
        importance: `(I,)`: what an error in each column counts; groups then get the narrower range that loses least,
            with their largest weights cut. None: the range of all weights.
    """
    groups = grid.groups(weight.float())  # (O, G, S)
    scales, zeros = _range(groups, grid)
    if importance is not None:
        weights = importance.float().unflatten(0, (groups.size(1), -1))  # (G, S)
        best = _loss(groups, scales, zeros, weights, grid)
        for step in range(1, SHRINKS):
            tried = _range(groups, grid, 1 - step * (1 - NARROWEST) / SHRINKS)
            loss = _loss(groups, *tried, weights, grid)
            better = loss < best
            scales, zeros = (torch.where(better, new, old) for new, old in zip(tried, (scales, zeros), strict=True))
            best = torch.where(better, loss, best)
    codes = _codes(groups, scales, zeros, grid)
    return Rounded(codes.flatten(1).to(torch.uint8), scales.to(grid.dtype), zeros.to(torch.uint8))


def _range(groups: Tensor, grid: Grid, share: float = 1.0) -> tuple[Tensor, Tensor]:
    """Scales, as they are kept, and zero points `(O, G)`, both float32, for groups `(O, G, S)`."""
    tiny = torch.finfo(grid.dtype).tiny
    if grid.symmetric:
        scales = groups.abs().amax(-1) * (2 * share / grid.top)
        scales = scales.to(grid.dtype).clamp(min=tiny).float()
        return scales, torch.full_like(scales, (grid.top + 1) // 2)
    low, high = groups.amin(-1).clamp(max=0) * share, groups.amax(-1).clamp(min=0) * share
    scales = ((high - low) / grid.top).to(grid.dtype).clamp(min=tiny).float()
    return scales, (-low / scales).round_().clamp_(0, grid.top)


def _codes(groups: Tensor, scales: Tensor, zeros: Tensor, grid: Grid) -> Tensor:
    return (groups / scales[..., None]).round_().add_(zeros[..., None]).clamp_(0, grid.top)


def _loss(groups: Tensor, scales: Tensor, zeros: Tensor, weights: Tensor, grid: Grid) -> Tensor:
    made = _codes(groups, scales, zeros, grid).sub_(zeros[..., None]).mul_(scales[..., None])
    return (made - groups).square_().mul_(weights).sum(-1)


@torch.no_grad()
def gptq(weight: Tensor, hessian: Tensor, grid: Grid) -> Rounded:
    """Rounds column after column, each time changing the columns still to come so that they make up for the error.

    Args:
        weight: `(O, I)`.
        hessian: `(I, I)`: the sum over the layer's inputs of their outer products.
        grid: What to round to; the scales of a group are chosen when its turn comes.
    """
    left = weight.float().clone()
    rows, columns = left.shape
    size = grid.group_size or columns
    grid.groups(left)  # which says whether they come out even
    dead = hessian.diagonal() == 0
    left[:, dead] = 0
    inverse = _inverse_root(hessian.float(), dead)
    codes = torch.empty(rows, columns, dtype=torch.uint8)
    scales, zeros = torch.empty(rows, columns // size), torch.empty(rows, columns // size)
    if size == columns:
        scales, zeros = _range(left[:, None], grid)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.empty(rows, end - start)
        for column in range(start, end):
            group = column // size
            if column % size == 0 and size < columns:
                if column + size > end:  # the block's corrections have not reached the rest of the group
                    ahead = left[:, column : column + size].clone()
                    done = slice(start, column)
                    ahead[:, end - column :] -= errors[:, : column - start] @ inverse[done, end : column + size]
                else:
                    ahead = left[:, column : column + size]
                scales[:, group], zeros[:, group] = (part[:, 0] for part in _range(ahead[:, None], grid))
            scale, zero = scales[:, group], zeros[:, group]
            code = (left[:, column] / scale).round_().add_(zero).clamp_(0, grid.top)
            codes[:, column] = code.to(torch.uint8)
            error = (left[:, column] - (code - zero) * scale) / inverse[column, column]
            left[:, column:end] -= torch.outer(error, inverse[column, column:end])
            errors[:, column - start] = error
        left[:, end:] -= errors @ inverse[start:end, end:]
    return Rounded(codes, scales.to(grid.dtype), zeros.to(torch.uint8))


def _inverse_root(hessian: Tensor, dead: Tensor) -> Tensor:
    """The upper Cholesky factor of the damped Hessian's inverse; the damping grows until there is one.

    Raises:
        LitGPTError: There is none, as when an input was no number.
    """
    mean = float(hessian.diagonal().mean())
    hessian = hessian + torch.diag(dead.float() * max(mean, 1e-8))
    for factor in (1, 10, 100):
        damped = hessian + torch.eye(len(hessian)) * (DAMPING * factor * max(mean, 1e-8))
        root, failed = torch.linalg.cholesky_ex(damped)
        if not failed and bool(torch.isfinite(root).all()):
            inverse, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(root), upper=True)
            if not failed:
                return inverse
    raise LitGPTError("The model's activations on this data are no numbers, so GPTQ has nothing to go by.")


def round_to_fp8(weight: Tensor) -> Rounded:
    """E4M3 numbers `(O, I)` in the place of codes, with a scale a row `(O, 1)` in float32."""
    wide = weight.float()
    scales = wide.abs().amax(1, keepdim=True).clamp_(min=1e-12) / MAX_FP8
    codes = (wide / scales).clamp_(-MAX_FP8, MAX_FP8).to(torch.float8_e4m3fn)
    return Rounded(codes, scales, torch.zeros_like(scales))

"""Rows of numbers as GGUF's quantized blocks: Q4_K, Q5_K, Q6_K, Q5_0, Q5_1 and Q8_0, perhaps by what columns matter.

The layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h. The scales of a block are searched for as
llama.cpp does it: among some candidates the one with the least weighted error, with the codes that fit it.

B: blocks of 256 (`_K`) or 32 numbers; S: parts of such a block that have scales of their own; P: numbers in a part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

SUPER_BLOCK, SMALL_BLOCK = 256, 32
"""Numbers in a block."""
CHUNK = 2**19
"""Numbers that are quantized at a time."""
EMPTY = 1e-15
"""Blocks whose numbers are all smaller are zero."""


def quantize_rows(rows: Tensor, kind: str, importance: Tensor | None = None) -> Tensor:
    """`(R, C)` → the bytes of its blocks, `(R, bytes)` uint8.

    Args:
        rows: C is a multiple of the type's block.
        kind: One of `ENCODERS`.
        importance: `(C,)`: what an error in each column counts, the mean square of what it is multiplied with.
    """
    encoder = ENCODERS[kind]
    parts = []
    step = max(1, CHUNK // rows.size(1))
    for part in rows.split(step):
        wide = part.float()
        blocks = wide.reshape(-1, encoder.block)
        weights = None
        if importance is not None:
            weights = importance.float().expand_as(wide).reshape(-1, encoder.block)
        spread = (wide.square().mean(1, keepdim=True)).expand(-1, wide.size(1) // encoder.block).reshape(-1, 1)
        parts.append(encoder.encode(blocks, weights, spread).view(len(wide), -1))
    return torch.cat(parts)


# ----------------------------------------------------------------------------------------------- scales of one part


def fit_range(
    x: Tensor, weights: Tensor, top: int, first: float, step: float, steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes 0 … `top` with a scale and a minimum at or below 0: `x ≈ scale · code - offset`.

    Args:
        x: `(…, P)`.
        weights: Of its errors.
        top: The highest code.
        first: What is added to `top`, at first, to get the number of steps in the range of `x`.
        step: How much more each time.
        steps: How often, at most.

    Returns:
        Scale and offset `(…)`, and codes `(…, P)`.
    """
    low, high = x.amin(-1).clamp(max=0), x.amax(-1)
    flat = high <= low
    span = torch.where(flat, 1.0, high - low)
    sum_w, sum_x = weights.sum(-1), (weights * x).sum(-1)
    scale, offset = span / top, low
    codes = ((x - low[..., None]) * (top / span)[..., None]).round_().clamp_(0, top)
    best = (weights * (scale[..., None] * codes + low[..., None] - x).square()).sum(-1)
    for number in range(steps + 1):
        span = torch.where(flat, 1.0, high - offset)  # from the best minimum so far
        tried = ((x - offset[..., None]) * ((first + step * number + top) / span)[..., None]).round_().clamp_(0, top)
        weighted = weights * tried
        sum_l, sum_l2, sum_xl = weighted.sum(-1), (weighted * tried).sum(-1), (weighted * x).sum(-1)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        solvable = determinant > 0
        divisor = torch.where(solvable, determinant, 1.0)
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / divisor
        new_offset = (sum_l2 * sum_x - sum_l * sum_xl) / divisor
        above = new_offset > 0
        new_scale = torch.where(above, sum_xl / torch.where(sum_l2 > 0, sum_l2, 1.0), new_scale)
        new_offset = new_offset.clamp(max=0)
        loss = (weights * (new_scale[..., None] * tried + new_offset[..., None] - x).square()).sum(-1)
        better = solvable & (loss < best)
        best, scale, offset = (
            torch.where(better, new, old) for new, old in ((loss, best), (new_scale, scale), (new_offset, offset))
        )
        codes = torch.where(better[..., None], tried, codes)
    scale = torch.where(flat, 0.0, scale)
    return scale, -offset, torch.where(flat[..., None], 0.0, codes)


def fit_symmetric(x: Tensor, weights: Tensor, half: int) -> tuple[Tensor, Tensor]:
    """Codes `-half` … `half - 1` with a scale: `x ≈ scale · code`; the scale `(…)` and the codes `(…, P)`."""
    extreme = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    empty = extreme.abs() < EMPTY
    extreme = torch.where(empty, 1.0, extreme)

    def attempt(steps: float) -> tuple[Tensor, Tensor, Tensor]:
        codes = (x * (-steps / extreme)).round_().clamp_(-half, half - 1)
        weighted = weights * codes
        return codes, (weighted * x).sum(-1, keepdim=True), (weighted * codes).sum(-1, keepdim=True)

    codes, sum_lx, sum_l2 = attempt(half)
    scale = torch.where(sum_l2 > 0, sum_lx / torch.where(sum_l2 > 0, sum_l2, 1.0), 0.0)
    best = scale * sum_lx
    for number in (*range(-9, 0), *range(1, 10)):
        tried, sum_lx, sum_l2 = attempt(half + 0.1 * number)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        codes = torch.where(better, tried, codes)
        scale = torch.where(better, sum_lx / torch.where(sum_l2 > 0, sum_l2, 1.0), scale)
        best = torch.where(better, scale * sum_lx, best)
    return torch.where(empty, 0.0, scale)[..., 0], torch.where(empty, 0.0, codes)


def fit_positive(x: Tensor, weights: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Codes 0 … `top` of numbers at or above 0, with a scale: the scale `(…)` and the codes `(…, P)`."""
    high = x.amax(-1, keepdim=True)
    empty = high < EMPTY
    high = torch.where(empty, 1.0, high)
    best_steps, best = torch.full_like(high, top), None
    for number in (0, *range(-4, 0), *range(1, 5)):
        steps = top + 0.1 * number
        codes = (x * (steps / high)).round_().clamp_(max=top)
        loss = (weights * (x - codes * (high / steps)).square()).sum(-1, keepdim=True)
        better = loss < best if best is not None else torch.ones_like(loss, dtype=torch.bool)
        best_steps = torch.where(better, steps, best_steps)
        best = loss if best is None else torch.where(better, loss, best)
    codes = (x * (best_steps / high)).round_().clamp_(max=top)
    sum_lx, sum_l2 = (weights * x * codes).sum(-1), (weights * codes * codes).sum(-1)
    for _ in range(5):  # one code after the other is moved where that helps
        for place in range(x.size(-1)):
            w, value, code = weights[..., place], x[..., place], codes[..., place]
            without_lx, without_l2 = sum_lx - w * value * code, sum_l2 - w * code * code
            possible = (without_lx > 0) & (without_l2 > 0)
            new = (value * without_l2 / torch.where(possible, without_lx, 1.0)).round_().clamp_(max=top)
            new_lx, new_l2 = without_lx + w * value * new, without_l2 + w * new * new
            better = possible & (new != code) & (new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2)
            codes[..., place] = torch.where(better, new, code)
            sum_lx, sum_l2 = torch.where(better, new_lx, sum_lx), torch.where(better, new_l2, sum_l2)
    scale = torch.where(sum_l2 > 0, sum_lx / torch.where(sum_l2 > 0, sum_l2, 1.0), 0.0)
    return torch.where(empty[..., 0], 0.0, scale), torch.where(empty, 0.0, codes)


# -------------------------------------------------------------------------------------------------- one type each


def _bytes(tensor: Tensor) -> Tensor:
    """Its bytes, the last dimension's after one another."""
    return tensor.contiguous().view(torch.uint8)


def _ranged(top: int, bits: int, plain: tuple[float, float, int]) -> Callable[[Tensor, Tensor | None, Tensor], Tensor]:
    """Q4_K and Q5_K: eight parts with a scale and a minimum of 6 bits each, and two of 16 bits for all."""

    def encode(blocks: Tensor, importance: Tensor | None, spread: Tensor) -> Tensor:
        del spread
        x = blocks.unflatten(1, (8, 32))  # (B, S, P)
        if importance is None:
            weights = x.square().mean(-1, keepdim=True).sqrt() + x.abs()
            scales, offsets, codes = fit_range(x, weights, top, *plain)
            d, m = scales.amax(1, keepdim=True), offsets.amax(1, keepdim=True)
            ls, lm = (
                torch.where(most > 0, part * (63 / torch.where(most > 0, most, 1.0)), 0.0).round_().clamp_(0, 63)
                for part, most in ((scales, d), (offsets, m))
            )
            d, m = d / 63, m / 63
        else:
            variance = 2 * blocks.square().mean(1)[:, None, None]
            weights = importance.unflatten(1, (8, 32)) * (variance + x.square()).sqrt()
            scales, offsets, codes = fit_range(x, weights, top, -0.9, 0.05, 36)
            (d, ls), (m, lm) = (fit_positive(part, weights.sum(-1), 63) for part in (scales, offsets))
            d, m = d[:, None], m[:, None]
        d, m = d.half(), m.half()
        scale, offset = (d.float() * ls)[..., None], (m.float() * lm)[..., None]
        fitted = ((x + offset) / torch.where(scale == 0, 1.0, scale)).round_().clamp_(0, top)
        codes = torch.where(scale == 0, codes, fitted).to(torch.uint8)
        head = (_bytes(d), _bytes(m), _six_bits(ls.to(torch.uint8), lm.to(torch.uint8)))
        pairs = codes.unflatten(1, (4, 2))  # two parts share their bytes: the first has the low halves
        low = (pairs[:, :, 0] & 15 | (pairs[:, :, 1] & 15) << 4).flatten(1)
        if bits == 4:
            return torch.cat((*head, low), dim=1)
        places = torch.arange(8, dtype=torch.uint8)[None, :, None]
        high = ((codes >> 4) << places).sum(1, dtype=torch.uint8)  # a bit for each part
        return torch.cat((*head, high, low), dim=1)

    return encode


def _six_bits(scales: Tensor, offsets: Tensor) -> Tensor:
    """Eight numbers of 6 bits, twice, in twelve bytes: the later four's upper bits lie above the earlier four's."""
    first = scales[:, :4] | scales[:, 4:] >> 4 << 6
    second = offsets[:, :4] | offsets[:, 4:] >> 4 << 6
    third = scales[:, 4:] & 15 | (offsets[:, 4:] & 15) << 4
    return torch.cat((first, second, third), dim=1)


def _q6_k(blocks: Tensor, importance: Tensor | None, spread: Tensor) -> Tensor:
    """Sixteen parts with a scale of 8 bits each, and one of 16 bits for all."""
    del spread
    x = blocks.unflatten(1, (16, 16))
    weights = x.square() if importance is None else importance.unflatten(1, (16, 16))
    scales, codes = fit_symmetric(x, weights, 32)
    extreme = scales.gather(1, scales.abs().argmax(1, keepdim=True))
    empty = extreme.abs() < EMPTY
    factor = -128 / torch.where(empty, 1.0, extreme)
    d = torch.where(empty, 0.0, 1 / factor).half()
    parts = torch.where(empty, 0.0, (factor * scales).round_().clamp_(max=127))
    scale = (d.float() * parts)[..., None]
    fitted = (x / torch.where(scale == 0, 1.0, scale)).round_().clamp_(-32, 31)
    codes = torch.where(empty[..., None], -32.0, torch.where(scale == 0, codes, fitted))
    halves = (codes + 32).to(torch.uint8).view(-1, 2, 4, 32)  # of 128 numbers, a quarter each
    low = torch.cat(
        (halves[:, :, 0] & 15 | (halves[:, :, 2] & 15) << 4, halves[:, :, 1] & 15 | (halves[:, :, 3] & 15) << 4), 2
    )
    high = sum((halves[:, :, quarter] >> 4) << 2 * quarter for quarter in range(4))
    assert isinstance(high, Tensor)
    return torch.cat((low.flatten(1), high.flatten(1), _bytes(parts.to(torch.int8)), _bytes(d)), dim=1)


def _weights_of(x: Tensor, importance: Tensor, spread: Tensor) -> Tensor:
    return importance * (spread + x.square()).sqrt()


def _high_bits(codes: Tensor) -> Tensor:
    """The fifth bits of 32 codes, in four bytes."""
    bits = (codes >> 4).unflatten(1, (4, 8))
    return (bits << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)


def _q5_0(x: Tensor, importance: Tensor | None, spread: Tensor) -> Tensor:
    """A scale for 32 numbers."""
    if importance is None:
        extreme = x.gather(1, x.abs().argmax(1, keepdim=True))
        d = extreme / -16
        codes = (x * torch.where(d == 0, 0.0, 1 / d) + 16.5).floor().clamp_(0, 31)
    else:
        scale, symmetric = fit_symmetric(x, _weights_of(x, importance, spread), 16)
        d, codes = scale[:, None], symmetric + 16
    codes = codes.to(torch.uint8)
    return torch.cat((_bytes(d.half()), _high_bits(codes), codes[:, :16] & 15 | (codes[:, 16:] & 15) << 4), dim=1)


def _q5_1(x: Tensor, importance: Tensor | None, spread: Tensor) -> Tensor:
    """A scale and a minimum for 32 numbers."""
    if importance is None:
        low = x.amin(1, keepdim=True)
        d = (x.amax(1, keepdim=True) - low) / 31
        codes = ((x - low) * torch.where(d == 0, 0.0, 1 / d) + 0.5).floor().clamp_(0, 31)
        m = low
    else:
        scale, offset, codes = fit_range(x, _weights_of(x, importance, spread), 31, -0.9, 0.05, 36)
        d, m = scale[:, None], -offset[:, None]
    codes = codes.to(torch.uint8)
    low_bits = codes[:, :16] & 15 | (codes[:, 16:] & 15) << 4
    return torch.cat((_bytes(d.half()), _bytes(m.half()), _high_bits(codes), low_bits), dim=1)


def _q8_0(x: Tensor, importance: Tensor | None, spread: Tensor) -> Tensor:
    """A scale for 32 numbers of 8 bits."""
    del importance, spread
    d = x.abs().amax(1, keepdim=True) / 127
    scaled = x * torch.where(d == 0, 0.0, 1 / d)
    codes = (scaled.abs() + 0.5).floor().copysign(scaled)
    return torch.cat((_bytes(d.half()), _bytes(codes.to(torch.int8))), dim=1)


@dataclass(frozen=True)
class Encoder:
    """A type of blocks."""

    block: int
    """Numbers in one."""
    encode: Callable[[Tensor, Tensor | None, Tensor], Tensor]
    """Blocks `(B, block)`, the importance of their columns, and the mean square of each one's row `(B, 1)` → their
    bytes, `(B, bytes)`."""


ENCODERS = {
    "q4_k": Encoder(SUPER_BLOCK, _ranged(15, 4, (-1.0, 0.1, 20))),
    "q5_k": Encoder(SUPER_BLOCK, _ranged(31, 5, (-0.5, 0.1, 15))),
    "q6_k": Encoder(SUPER_BLOCK, _q6_k),
    "q5_0": Encoder(SMALL_BLOCK, _q5_0),
    "q5_1": Encoder(SMALL_BLOCK, _q5_1),
    "q8_0": Encoder(SMALL_BLOCK, _q8_0),
}
"""By name, in small letters."""

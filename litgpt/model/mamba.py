"""Mixing tokens by states that forget: Mamba 2's heads, and a short convolution alone.

State space duality (Dao and Gu 2024, https://arxiv.org/abs/2405.21060): each head keeps one matrix,

    S_t = a_t S_{t-1} + d_t B_t x_tᵀ        y_t = S_tᵀ C_t + D x_t        a_t = exp(-d_t exp(A_log))

d: how far a token moves the state, made of the token, as B, C and x are.

B: batch, T: tokens, C: `n_embd`, N: heads, H: head size, G: groups of heads that share B and C, P: state size,
W: channels of the convolution, L: tokens of a chunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litgpt.config import Config
from litgpt.model.attention import AttentionContext
from litgpt.model.delta_net import CHUNK
from litgpt.model.norm import rms_norm, upcast


class Recurrent(nn.Module):
    """What a layer with a causal convolution needs of a cache, and of packed documents."""

    conv: nn.Conv1d

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer

    def by_document(self, x: Tensor, context: AttentionContext) -> Tensor:
        """`mix` of `(B, T, …)`; of packed documents each begins with nothing."""
        if context.lengths is None:
            return self.mix(x, context)
        return torch.cat([self.mix(part, context) for part in x.split(context.lengths, dim=1)], dim=1)

    def mix(self, x: Tensor, context: AttentionContext) -> Tensor:
        """What a sequence's tokens see of those before them, going on from the state in the cache, if there is one."""
        raise NotImplementedError

    def convolve(self, new: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Inputs `(B, W, T)`, and the last ones before them → `(B, W, T)`, and the last ones now."""
        kept = self.conv.kernel_size[0] - 1
        start = new.new_zeros(*new.shape[:2], kept) if before is None else before.to(new.dtype)
        whole = torch.cat((start, new), dim=-1)
        return self.conv(whole), whole[..., whole.size(-1) - kept :]


class ShortConv(Recurrent):
    """A gated causal convolution over a few tokens (LFM2, https://arxiv.org/abs/2511.23404)."""

    def __init__(self, config: Config, layer: int) -> None:
        assert config.short_conv is not None
        super().__init__(layer)
        bias, kernel = bool(config.short_conv["bias"]), config.short_conv["kernel_size"]
        self.in_proj = nn.Linear(config.n_embd, 3 * config.n_embd, bias=bias)
        self.conv = nn.Conv1d(config.n_embd, config.n_embd, kernel, groups=config.n_embd, bias=bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=bias)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """`(B, T, C)` → `(B, T, C)`."""
        before, after, x = self.in_proj(x).chunk(3, dim=-1)
        return self.proj(after * self.by_document(before * x, context))

    def mix(self, x: Tensor, context: AttentionContext) -> Tensor:
        span = context.span
        mixed, last = self.convolve(x.mT, None if span is None else span.state(self.layer)[0])
        if span is not None:
            span.store_state(self.layer, last)
        return mixed.mT


class Mamba2(Recurrent):
    """Heads whose state forgets at a speed of its own; the output is gated and normed, group by group."""

    def __init__(self, config: Config, layer: int) -> None:
        assert config.state_space is not None
        super().__init__(layer)
        sizes = config.state_space
        self.n_heads, self.head_size = sizes["n_heads"], sizes["head_size"]
        self.n_groups, self.state_size = sizes["n_groups"], sizes["state_size"]
        self.time_limit = sizes.get("least_time", 0.0), sizes.get("most_time")
        self.width = self.n_heads * self.head_size
        channels = self.width + 2 * self.n_groups * self.state_size
        self.rows = self.width, channels, self.n_heads  # [gate | x B C | d]
        self.in_proj = nn.Linear(config.n_embd, sum(self.rows), bias=bool(sizes["bias"]))
        self.conv = nn.Conv1d(channels, channels, sizes["kernel_size"], groups=channels, bias=bool(sizes["conv_bias"]))
        self.dt_bias = nn.Parameter(torch.empty(self.n_heads))
        self.A_log = nn.Parameter(torch.empty(self.n_heads))
        self.D = nn.Parameter(torch.empty(self.n_heads))
        self.norm = nn.Parameter(torch.empty(self.width)) if sizes.get("norm", True) else None
        self.gate_last = bool(sizes.get("gate_last", False))
        self.eps = config.norm_eps
        self.proj = nn.Linear(self.width, config.n_embd, bias=bool(sizes.get("out_bias", sizes["bias"])))
        shared = self.n_groups * self.state_size
        self.part_sizes = self.width, self.width, shared, shared, self.n_heads
        self.multipliers = config.multipliers
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start of training: heads that forget at speeds of their own."""
        for parameter in (self.dt_bias, self.D, self.norm):
            if parameter is not None:
                nn.init.ones_(parameter)
        with torch.no_grad():
            nn.init.uniform_(self.A_log, 1.0, 16.0).log_()

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """`(B, T, C)` → `(B, T, C)`."""
        gate, inputs = self.project(x).split((self.width, sum(self.rows[1:])), dim=-1)
        y, gate = self.by_document(inputs, context), F.silu(upcast(gate))  # (B, T, N·H)
        if self.norm is None:
            return self.proj((y * gate).to(x.dtype))
        normed = rms_norm((y if self.gate_last else y * gate).unflatten(-1, (self.n_groups, -1)), self.eps).flatten(2)
        if self.gate_last:
            return self.proj((upcast(self.norm) * normed * gate).to(x.dtype))
        return self.proj(self.norm * normed.to(x.dtype))

    def project(self, x: Tensor) -> Tensor:
        """`(B, T, C)` → `[gate | x B C | d]`, multiplied with what these are multiplied with."""
        if self.multipliers is None:
            return self.in_proj(x)
        parts = self.in_proj(x * self.multipliers["state_in"]).split(self.part_sizes, dim=-1)
        return torch.cat([part * by for part, by in zip(parts, self.multipliers["state_parts"], strict=True)], dim=-1)

    def mix(self, x: Tensor, context: AttentionContext) -> Tensor:
        inputs, step = x.split(self.rows[1:], dim=-1)
        span = context.span
        conv_state, state = (None, None) if span is None else span.state(self.layer)
        mixed, conv_state = self.convolve(inputs.mT, conv_state)
        values, keys, queries = F.silu(mixed).mT.split((self.width, *[self.n_groups * self.state_size] * 2), dim=-1)
        values = upcast(values.unflatten(-1, (self.n_heads, -1)).transpose(1, 2))  # (B, N, T, H)
        repeats = self.n_heads // self.n_groups
        keys, queries = (
            upcast(part.unflatten(-1, (self.n_groups, -1)).transpose(1, 2)).repeat_interleave(repeats, dim=1)
            for part in (keys, queries)
        )  # (B, N, T, P)
        step = F.softplus(upcast(step) + self.dt_bias).clamp(*self.time_limit).mT  # (B, N, T)
        log_decay = -upcast(self.A_log).exp()[:, None] * step
        if state is None:
            state = values.new_zeros(x.size(0), self.n_heads, self.state_size, self.head_size)
        with torch.autocast(x.device.type, enabled=False):  # sums over all tokens so far
            y, state = decaying_sum(queries, keys, values * step[..., None], log_decay, state)
        if span is not None:
            span.store_state(self.layer, conv_state, state)
        y = y + upcast(self.D)[:, None, None] * values
        return y.transpose(1, 2).flatten(2)


def decaying_sum(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Queries on a state that fades by each token's share before the token adds to it, chunk by chunk.

    Args:
        q: `(B, N, T, P)`.
        k: As `q`.
        v: `(B, N, T, H)`.
        log_decay: The logarithm of how much of the state each token keeps, `(B, N, T)`.
        state: Before the first token, `(B, N, P, H)`.

    Returns:
        The outputs, `(B, N, T, H)`, and the state after the last token.
    """
    outputs = []
    for first in range(0, q.size(2), CHUNK):
        queries, keys, values = (part[:, :, first : first + CHUNK] for part in (q, k, v))
        total = log_decay[:, :, first : first + CHUNK].cumsum(dim=-1)  # (B, N, L): since the chunk began
        length = total.size(-1)
        future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
        between = (total[..., None] - total[..., None, :]).masked_fill(future, -torch.inf).exp()  # (B, N, L, L)
        outputs.append((queries * total.exp()[..., None]) @ state + (queries @ keys.mT * between) @ values)
        left = (total[..., -1:] - total).exp()[..., None]
        state = total[..., -1, None, None].exp() * state + (keys * left).mT @ values
    return torch.cat(outputs, dim=2), state

"""Attention without keys and values: each head keeps one matrix, its state, which every token corrects a little.

Gated delta networks (Yang et al. 2024, https://arxiv.org/abs/2412.06464):

    S_t = a_t S_{t-1} + k_t b_t (v_t - (a_t S_{t-1})ᵀ k_t)ᵀ        y_t = S_tᵀ q_t

a: how much is kept, b: how much is corrected, both between 0 and 1 and made of the token.

B: batch, T: tokens, C: `n_embd`, N: value heads, K: key heads, P: key size, D: value size, W: channels of the
convolution (all queries, keys and values), L: tokens of a chunk, M: chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.model.attention import AttentionContext
from litgpt.model.norm import RMSNorm, upcast

Rule = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""The type of `gated_delta_rule`."""
CHUNK = 64
"""Tokens that are computed together, by products of matrices."""


class GatedDeltaNet(nn.Module):
    """A layer of such heads; queries, keys and values pass through a short causal convolution first."""

    rule: ClassVar[Rule]
    decay: nn.Module
    gate: nn.Module

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        assert config.linear_attention is not None
        sizes = config.linear_attention
        self.layer = layer
        self.n_key_heads, self.key_size = sizes["n_key_heads"], sizes["key_size"]
        self.n_value_heads, self.value_size = sizes["n_value_heads"], sizes["value_size"]
        self.qkv_rows = config.qkv_rows(layer)
        channels, width = sum(self.qkv_rows), self.qkv_rows[2]
        self.qkv = nn.Linear(config.n_embd, channels, bias=False)  # rows: [Q | K | V]
        self.gate = nn.Linear(config.n_embd, width, bias=False)
        self.beta = nn.Linear(config.n_embd, self.n_value_heads, bias=False)
        self.decay = nn.Linear(config.n_embd, self.n_value_heads, bias=False)
        self.conv = nn.Conv1d(channels, channels, sizes["kernel_size"], groups=channels, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(self.n_value_heads))
        self.A_log = nn.Parameter(torch.empty(self.n_value_heads))
        self.norm = RMSNorm(self.value_size, eps=config.norm_eps)
        self.proj = nn.Linear(width, config.n_embd, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The start of training: heads that forget at speeds of their own (Mamba 2, https://arxiv.org/abs/2405.21060)."""
        nn.init.ones_(self.dt_bias)
        with torch.no_grad():
            nn.init.uniform_(self.A_log, 1.0, 16.0).log_()

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """`(B, T, C)` → `(B, T, C)`."""
        B, T, _ = x.shape
        log_decay = self.log_decay(x)
        qkv, beta = self.qkv(x), upcast(self.beta(x)).sigmoid()  # (B, T, W), (B, T, N)
        if context.lengths is None:
            y = self.mix(qkv, log_decay, beta, context)
        else:  # each document begins with nothing
            documents = zip(*(part.split(context.lengths, dim=1) for part in (qkv, log_decay, beta)), strict=True)
            y = torch.cat([self.mix(q, a, b, context) for q, a, b in documents], dim=1)
        gate = self.gate(x).view(B, T, self.n_value_heads, self.value_size)
        y = self.gated(y.to(x.dtype), gate)  # (B, T, N, D)
        return self.proj(y.to(x.dtype).flatten(2))

    def log_decay(self, x: Tensor) -> Tensor:
        """`(B, T, C)` → log a, `(B, T, N)`."""
        return -upcast(self.A_log).exp() * F.softplus(upcast(self.decay(x)) + self.dt_bias)

    def gated(self, y: Tensor, gate: Tensor) -> Tensor:
        """What the heads have found, normed, and scaled by their gates, `(B, T, N, D)` each."""
        return self.norm(y) * F.silu(upcast(gate))

    def mix(self, qkv: Tensor, log_decay: Tensor, beta: Tensor, context: AttentionContext) -> Tensor:
        """The heads' outputs, `(B, T, N, D)`, going on from the state in the cache, if there is one."""
        B, T, _ = qkv.shape
        new = qkv.mT  # (B, W, T)
        if context.span is None:
            conv_state = new.new_zeros(B, new.size(1), self.conv.kernel_size[0] - 1)
            state = log_decay.new_zeros(B, self.n_value_heads, self.key_size, self.value_size)
        else:
            conv_state, state = context.span.state(self.layer)
        conv_input = torch.cat((conv_state.to(new.dtype), new), dim=-1)
        mixed = F.silu(self.conv(conv_input)).mT  # (B, T, W)
        q, k, v = (
            part.unflatten(-1, (-1, size))
            for part, size in zip(mixed.split(self.qkv_rows, -1), self.sizes, strict=True)
        )
        repeats = self.n_value_heads // self.n_key_heads
        q, k = (l2_norm(part).repeat_interleave(repeats, dim=2).transpose(1, 2) for part in (q, k))  # (B, N, T, P)
        with torch.autocast(qkv.device.type, enabled=False):  # sums over all tokens so far
            y, state = type(self).rule(
                q * self.key_size**-0.5, k, upcast(v).transpose(1, 2), log_decay.transpose(1, 2), beta.mT, state
            )
        if context.span is not None:
            context.span.store_state(self.layer, conv_input[..., T:], state)
        return y.transpose(1, 2)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Of a head's query, key and value."""
        return self.key_size, self.key_size, self.value_size


class ChannelDeltaNet(GatedDeltaNet):
    """Such heads that forget channel by channel of their keys (Kimi Linear, https://arxiv.org/abs/2510.26692); what
    says how fast, and the outputs' gates, are of low rank."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__(config, layer)
        keys, width = self.qkv_rows[0], self.qkv_rows[2]
        if keys != width:
            raise LitGPTError("linear_attention by_channel has as many and as wide keys as values.")
        self.decay = nn.Sequential(
            nn.Linear(config.n_embd, self.key_size, bias=False), nn.Linear(self.key_size, keys, bias=False)
        )
        self.gate = nn.Sequential(
            nn.Linear(config.n_embd, self.value_size, bias=False), nn.Linear(self.value_size, width, bias=False)
        )
        self.dt_bias = nn.Parameter(torch.empty(keys))
        self.A_log = nn.Parameter(torch.empty(1, 1, self.n_value_heads, 1))
        self.reset_parameters()

    def log_decay(self, x: Tensor) -> Tensor:
        """`(B, T, C)` → log a, `(B, T, N, P)`."""
        step = F.softplus(upcast(self.decay(x)) + self.dt_bias).unflatten(-1, (self.n_value_heads, -1))
        return -upcast(self.A_log).exp() * step

    def gated(self, y: Tensor, gate: Tensor) -> Tensor:
        """What the heads have found, normed, and scaled by the sigmoids of their gates."""
        return self.norm(y) * upcast(gate).sigmoid()


def l2_norm(x: Tensor) -> Tensor:
    """`x` at length 1, in float32 at least."""
    x = upcast(x)
    return x * (x.square().sum(dim=-1, keepdim=True) + 1e-6).rsqrt()


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Queries on a state that every token corrects first, chunk by chunk (section 3.3 of the paper).

    Args:
        q: `(B, N, T, P)`.
        k: As `q`, of length 1.
        v: `(B, N, T, D)`.
        log_decay: The logarithm of how much of the state each token keeps, `(B, N, T)`.
        beta: How much of what is wrong in the state each token corrects, `(B, N, T)`.
        state: Before the first token, `(B, N, P, D)`.

    Returns:
        The outputs, `(B, N, T, D)`, and the state after the last token.
    """
    T = q.size(2)
    length = min(CHUNK, T)
    if T == 1:
        state = log_decay.exp()[..., None] * state
        error = v - k @ state  # (B, N, 1, D)
        state = state + k.mT @ (beta[..., None] * error)
        return q @ state, state
    q, k, v = (F.pad(part, (0, 0, 0, -T % length)).unflatten(2, (-1, length)) for part in (q, k, v))  # (B, N, M, L, …)
    log_decay, beta = (F.pad(part, (0, -T % length)).unflatten(2, (-1, length)) for part in (log_decay, beta))
    log_decay_sum = log_decay.cumsum(dim=-1)  # (B, N, M, L): since the chunk began
    future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    log_decay_between = (log_decay_sum[..., None] - log_decay_sum[..., None, :]).masked_fill(future, -torch.inf)
    decay_between = log_decay_between.exp()  # (B, N, M, L, L)
    # A token's correction depends on those before it in the chunk: a triangular system, solved for all at once: for
    # the values, and for what the chunk's first state has at their keys.
    beta_k = beta[..., None] * k
    right_side = torch.cat((beta[..., None] * v, log_decay_sum.exp()[..., None] * beta_k), dim=-1)
    system = beta_k @ k.mT * decay_between
    solved = torch.linalg.solve_triangular(system, right_side, upper=False, unitriangular=True)
    new_values, state_keys = solved.split((v.size(-1), k.size(-1)), dim=-1)
    inside, q = q @ k.mT * decay_between, q * log_decay_sum.exp()[..., None]
    log_chunk_decay = log_decay_sum[..., -1:]
    k = k * (log_chunk_decay - log_decay_sum).exp()[..., None]
    outputs = []
    for chunk in range(q.size(2)):
        correction = new_values[:, :, chunk] - state_keys[:, :, chunk] @ state  # (B, N, L, D)
        outputs.append(q[:, :, chunk] @ state + inside[:, :, chunk] @ correction)
        state = log_chunk_decay[:, :, chunk].exp()[..., None] * state + k[:, :, chunk].mT @ correction
    return torch.cat(outputs, dim=2)[:, :, :T], state


CHANNEL_CHUNK = 16
"""Tokens that are computed together where each channel forgets by itself: what lies between two is a vector."""


def channel_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """As `gated_delta_rule`, with a `log_decay` for each row of the state, `(B, N, T, P)`."""
    outputs = []
    for first in range(0, q.size(2), CHANNEL_CHUNK):
        queries, keys, values, step, share = (
            part[:, :, first : first + CHANNEL_CHUNK] for part in (q, k, v, log_decay, beta)
        )
        total = step.cumsum(dim=2)  # (B, N, L, P): since the chunk began
        length = total.size(2)
        future = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)[..., None]
        between = (total[:, :, :, None] - total[:, :, None]).masked_fill(future, -torch.inf).exp()  # (B, N, L, L, P)
        reached = keys[:, :, None] * between  # what is left of each key at each later token
        system = (share[..., None, None] * keys[:, :, :, None] * reached).sum(dim=-1)
        known = (keys * total.exp()) @ state
        corrections = torch.linalg.solve_triangular(
            system, share[..., None] * (values - known), upper=False, unitriangular=True
        )
        inside = (queries[:, :, :, None] * reached).sum(dim=-1)
        outputs.append((queries * total.exp()) @ state + inside @ corrections)
        left = (total[:, :, -1:] - total).exp()
        state = total[:, :, -1, :, None].exp() * state + (keys * left).mT @ corrections
    return torch.cat(outputs, dim=2), state


GatedDeltaNet.rule = staticmethod(gated_delta_rule)
ChannelDeltaNet.rule = staticmethod(channel_delta_rule)

"""A residual stream that is several, of which each block computes with one and corrects the others, and a path of low
rank beside attention.

Alternating updates: Baykal et al. 2023, https://arxiv.org/abs/2301.13310; LAuReL: Menghani et al. 2024,
https://arxiv.org/abs/2411.07501.

M: streams, B: batch, T: tokens, C: `n_embd`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from litgpt.config import Config
from litgpt.model.norm import RMSNorm, make_norm, upcast


class Spread(nn.ModuleList):
    """Makes the other streams of the first, each by a projection, as large as that."""

    def __init__(self, config: Config) -> None:
        assert config.streams is not None
        others = range(config.streams["count"] - 1)
        super().__init__(nn.Linear(config.n_embd, config.n_embd, bias=False) for _ in others)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, C)` → `(M, B, T, C)`."""
        return torch.stack([x, *(as_large(projection(x), x) for projection in self)])


class GatheringNorm(RMSNorm):
    """The last norm, of the mean of all streams, each projected but for the first, and as large as that."""

    def __init__(self, config: Config) -> None:
        super().__init__(config.n_embd, eps=config.norm_eps)
        self.gather = Spread(config)

    def forward(self, x: Tensor) -> Tensor:
        """`(M, B, T, C)` → `(B, T, C)`."""
        others = [as_large(projection(part), x[0]) for projection, part in zip(self.gather, x[1:], strict=True)]
        return super().forward(torch.stack([x[0], *others]).mean(dim=0))


def as_large(x: Tensor, other: Tensor) -> Tensor:
    """`x` with the root mean square of another."""
    return x * other.square().mean(-1, keepdim=True).sqrt() / x.square().mean(-1, keepdim=True).clamp(min=1e-5).sqrt()


class Streams(nn.Module):
    """What a block needs to predict all streams, and to correct them by what it gives."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert config.streams is not None
        count = self.count = config.streams["count"]
        self.active, self.scaled = config.streams["active"], bool(config.streams["scaled"])
        self.router_norm = make_norm(config)
        self.router = nn.Linear(config.n_embd, count, bias=False)
        self.prediction = nn.Linear(count, count * count, bias=False)
        self.correction = nn.Linear(count, count, bias=False)
        self.scale = nn.Parameter(torch.empty(config.n_embd))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """To where it scales by nothing."""
        nn.init.ones_(self.scale)

    def modes(self, x: Tensor) -> Tensor:
        """`(B, T, C)` → how a token's streams are to be mixed, `(B, T, M)`."""
        return upcast(self.router(self.router_norm(x) / x.size(-1))).tanh().to(x.dtype)

    def predict(self, x: Tensor) -> Tensor:
        """`(M, B, T, C)` → the same."""
        weights = self.prediction(self.modes(x[self.active])).unflatten(-1, (self.count, self.count))  # (B, T, M, M)
        return x + torch.einsum("mbtc,btnm->nbtc", x, weights)

    def correct(self, predicted: Tensor, y: Tensor) -> Tensor:
        """What was predicted `(M, B, T, C)`, by what the block gives `(B, T, C)`."""
        shares = (self.correction(self.modes(y)) + 1).movedim(-1, 0)[..., None]  # (M, B, T, 1)
        return predicted + (y - predicted[self.active]) * shares

    def add(self, corrected: Tensor, layer_input: nn.Module, given: Tensor) -> Tensor:
        """Adds what the active stream chooses from the layer's inputs `(B, T, P)` to all streams but the first."""
        first = corrected[self.active]
        chosen = layer_input(first * self.scale if self.scaled else first, given)
        return torch.cat((corrected[:1], corrected[1:] + chosen))


class LowRankPath(nn.Module):
    """A token, and what a path of low rank makes of it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert config.residual_rank is not None
        self.left = nn.Linear(config.n_embd, config.residual_rank, bias=False)
        self.right = nn.Linear(config.residual_rank, config.n_embd, bias=False)
        self.norm = make_norm(config)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, T, C)` → `(B, T, C)`."""
        return x + self.norm(self.right(self.left(x)))

"""Tokens that an indexer chooses for a query to attend to.

B: batch, T: tokens, C: `n_embd`, N: `n_head`, G: key-value heads, S: positions of the keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from litgpt.config import Config
from litgpt.model.norm import upcast
from litgpt.model.rope import apply_rope


class Indexer(nn.Module):
    """Chooses the tokens that a query attends to, by scores of small heads (DeepSeek-V3.2,
    https://arxiv.org/abs/2512.02556). The choice has no gradient.

    M: heads of the indexer, D: their size.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert config.sparse_attention is not None and config.latent_attention is not None
        sizes = config.sparse_attention
        self.n_heads, self.size, self.top_k = sizes["n_heads"], sizes["head_size"], sizes["top_k"]
        self.interleave = bool(sizes["interleave"])
        self.q = nn.Linear(config.latent_attention["q_lora_rank"], self.n_heads * self.size, bias=False)
        self.k = nn.Linear(config.n_embd, self.size, bias=False)
        self.norm = nn.LayerNorm(self.size, eps=1e-6)
        self.weights = nn.Linear(config.n_embd, self.n_heads, bias=False)
        self.interleaved_tables = config.rope_interleave

    def rotate(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """`(B, heads, T, D)`, rotated to its positions; the tables may be for the other order of dimensions."""
        cos, sin = rope
        if self.interleaved_tables and not self.interleave:
            cos, sin = (torch.cat((table[..., ::2], table[..., 1::2]), dim=-1) for table in rope)
        return apply_rope(x, cos, sin, self.interleave)

    def keys(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """`(B, T, C)` → what each token is scored by, `(B, 1, T, D)`."""
        with torch.no_grad():
            return self.rotate(self.norm(self.k(x))[:, None], rope)

    @torch.no_grad()
    def choose(
        self,
        x: Tensor,
        q_latent: Tensor,
        keys: Tensor,
        rope: tuple[Tensor, Tensor],
        seen: Tensor | None,
        lengths: Sequence[int] | None,
    ) -> list[Tensor]:
        """Masks of what each query sees, one for each document; none where the queries see everything.

        Args:
            x: `(B, T, C)`.
            q_latent: What queries are made of, `(B, T, q_lora_rank)`.
            keys: `(B, 1, S, D)`.
            rope: `cos` and `sin` of the tokens' positions.
            seen: True where a query may see a key, `(B or 1, 1, T, S)`; None: it sees all before it.
            lengths: Of packed documents.
        """
        if max(lengths or (keys.size(2),)) <= self.top_k:
            return []
        q = self.rotate(self.q(q_latent).unflatten(-1, (self.n_heads, -1)).transpose(1, 2), rope)
        weights = upcast(self.weights(x)).mT[..., None] * (self.n_heads * self.size) ** -0.5  # (B, M, T, 1)
        if lengths is None:
            return [self.mask(q, weights, keys, seen)]
        documents = zip(*(part.split(tuple(lengths), 2) for part in (q, weights, keys)), strict=True)
        return [self.mask(queries, gates, seen, None) for queries, gates, seen in documents]

    def mask(self, q: Tensor, weights: Tensor, keys: Tensor, seen: Tensor | None) -> Tensor:
        """True at the best of the keys that a query may see, `(B, 1, T, S)`."""
        T, S = q.size(2), keys.size(2)
        if seen is None:
            seen = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)[None, None]
        scores = ((upcast(q) @ upcast(keys).mT).relu() * weights).sum(dim=1, keepdim=True)  # (B, 1, T, S)
        best = scores.masked_fill(~seen, -torch.inf).topk(min(self.top_k, S), dim=-1).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True) & seen

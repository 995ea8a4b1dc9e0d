"""Blocks of tokens that an indexer chooses for a query to attend to.

B: batch, T: tokens, C: `n_embd`, N: `n_head`, G: key-value heads, S: positions of the keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from litgpt.config import Config
from litgpt.model.norm import make_norm, upcast
from litgpt.model.rope import apply_rope


class BlockIndexer(nn.Module):
    """Chooses blocks of tokens that grouped queries attend to, other ones for each of its heads, by the best score of a
    block (MiniMax M3). The choice has no gradient.

    M: heads of the indexer, D: their size.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert config.sparse_attention is not None
        sizes = config.sparse_attention
        self.n_heads, self.size, self.top_k = sizes["n_heads"], sizes["head_size"], sizes["top_k"]
        self.block, self.local = sizes["block_size"], sizes["local_blocks"]
        self.repeats = config.n_head // self.n_heads
        self.q = nn.Linear(config.n_embd, self.n_heads * self.size, bias=False)
        self.k = nn.Linear(config.n_embd, self.size, bias=False)
        self.norm_q, self.norm_k = make_norm(config, self.size), make_norm(config, self.size)
        self.interleave = config.rope_interleave

    @torch.no_grad()
    def keys(self, x: Tensor, rope: tuple[Tensor, Tensor], groups: int) -> Tensor:
        """`(B, T, C)` → what each token is scored by, shared out over key-value heads to be cached behind their keys,
        `(B, G, T, ⌈D / G⌉)`."""
        k = apply_rope(self.norm_k(self.k(x))[:, None], *rope, self.interleave)  # (B, 1, T, D)
        padded = pad(k, (0, -self.size % groups))
        return torch.cat(padded.chunk(groups, dim=-1), dim=1)

    @torch.no_grad()
    def choose(
        self,
        x: Tensor,
        keys: Tensor,
        rope: tuple[Tensor, Tensor],
        seen: Tensor | None,
        lengths: Sequence[int] | None,
    ) -> list[Tensor]:
        """Masks of what each query sees, one for each document; none where the queries see everything.

        Args:
            x: `(B, T, C)`.
            keys: As `keys` makes them, `(B, G, S, ⌈D / G⌉)`.
            rope: `cos` and `sin` of the tokens' positions.
            seen: True where a query may see a key, `(B or 1, 1, T, S)`; None: it sees all before it.
            lengths: Of packed documents.
        """
        if max(lengths or (keys.size(2),)) <= self.top_k * self.block:
            return []
        keys = keys.transpose(1, 2).flatten(2)[..., : self.size][:, None]  # (B, 1, S, D)
        q = self.norm_q(self.q(x).unflatten(-1, (self.n_heads, -1))).transpose(1, 2)
        q = apply_rope(q, *rope, self.interleave)  # (B, M, T, D)
        if lengths is None:
            return [self.mask(q, keys, seen)]
        documents = zip(*(part.split(tuple(lengths), 2) for part in (q, keys)), strict=True)
        return [self.mask(queries, own, None) for queries, own in documents]

    def mask(self, q: Tensor, keys: Tensor, seen: Tensor | None) -> Tensor:
        """True at what the query heads see of the best blocks, `(B, N, T, S)`."""
        T, S = q.size(2), keys.size(2)
        if seen is None:
            seen = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)[None, None]
        scores = (upcast(q) @ upcast(keys).mT).masked_fill(~seen, -torch.inf)
        scores = pad(scores, (0, -S % self.block), value=-torch.inf).unflatten(-1, (-1, self.block)).amax(dim=-1)
        last = (seen.sum(dim=-1, keepdim=True) - 1) // self.block  # (B or 1, 1, T, 1): the block a query stands in
        local = (last - torch.arange(self.local, device=q.device)).clamp(min=0).expand(*scores.shape[:3], -1)
        scores = scores.scatter(-1, local, torch.inf)  # (B, M, T, blocks)
        best = scores.topk(min(self.top_k, scores.size(-1)), dim=-1).indices
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, best, True)
        chosen = chosen.repeat_interleave(self.block, dim=-1)[..., :S] & seen
        return chosen.repeat_interleave(self.repeats, dim=1)

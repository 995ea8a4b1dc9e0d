"""The transformer: one decoder-only model that every family is a setting of.

B: batch, T: tokens, C: `n_embd`, N: `n_head`, G: `n_query_groups` (key-value heads), H: `head_size`,
S: positions that attention looks at, V: `padded_vocab_size`. State-dict names are LitGPT's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from litgpt.cache import KVCache, Span
from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.moe import LLaMAMoE
from litgpt.rope import RopeTable, apply_rope


@dataclass(frozen=True)
class Reach:
    """What every layer of one forward pass shares: where the tokens stand and what each of them may look at."""

    ropes: tuple[tuple[Tensor, Tensor], ...]
    """`cos` and `sin`, `(T, R/2)` or `(B, 1, T, R/2)`, for global and for local layers; none with learned positions."""
    masks: dict[int | None, Tensor | None]
    """By window size (None: no window): True where a query sees a key, `(B or 1, 1, T, S)`; None: plain causal."""
    lengths: tuple[int, ...] | None = None
    """Packed documents: attention stays inside each."""
    span: Span | None = None


class GPT(nn.Module):
    """A decoder-only language model.

    Build it under `torch.device("meta")` and load weights with `assign=True`: nothing is initialised twice.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        _refuse_unknown_parts(config)
        assert config.padded_vocab_size is not None
        self.config = config
        self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=config.lm_head_bias)
        self.transformer = Backbone(config)
        self.tie()
        bases: list[float | None] = [] if config.learned_positions else [None]
        if config.rope_local_base_freq is not None:
            bases.append(config.rope_local_base_freq)
        self.ropes = [RopeTable(config, base) for base in bases]
        self.max_seq_length = config.block_size
        self.kv_cache: KVCache | None = None

    @classmethod
    def from_name(cls, name: str, **overrides: Any) -> Self:
        """A model of a named size, with fresh weights."""
        return cls(Config.from_name(name, **overrides))

    # -- tying

    def tie(self) -> None:
        """Makes the head the embedding where the config says so; again after anything that replaces parameters."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    @property
    def tied(self) -> bool:
        """Whether head and embedding are one parameter."""
        return self.lm_head.weight is self.transformer.wte.weight

    # -- the longest sequence

    @property
    def max_seq_length(self) -> int:
        """The longest sequence accepted, in tokens."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        if not 0 < value <= self.config.block_size:
            raise LitGPTError(
                f"A sequence length of {value} does not fit this model: its context is {self.config.block_size} tokens."
            )
        self._max_seq_length = value

    # -- forward

    def forward(
        self,
        idx: Tensor,
        input_pos: Tensor | None = None,
        input_pos_maxp1: int | None = None,
        lm_head_chunk_size: int = 0,
    ) -> Tensor | list[Tensor]:
        """Token ids `(B, T)` → logits `(B, T, V)`.

        Args:
            idx: Token ids.
            input_pos: With a KV cache (`set_kv_cache`): the consecutive positions of the tokens, `(T,)` or `(B, T)`.
            input_pos_maxp1: For LitGPT's callers; attention reads the filled part of the cache without being told.
            lm_head_chunk_size: Above 0: a list of logits, this many positions each.
        """
        del input_pos_maxp1
        span = None
        if input_pos is not None:
            if self.kv_cache is None:
                raise LitGPTError("There is no KV cache for input_pos; call set_kv_cache() first.")
            firsts = input_pos.reshape(-1, input_pos.size(-1))[:, 0].tolist()
            span = Span(self.kv_cache, slice(0, idx.size(0)), firsts * idx.size(0) if len(firsts) == 1 else firsts)
        hidden = self.hidden(idx, span=span)
        if lm_head_chunk_size > 0:
            return [self.head(chunk) for chunk in hidden.split(lm_head_chunk_size, dim=1)]
        return self.head(hidden)

    def hidden(self, idx: Tensor, lengths: Sequence[int] | None = None, span: Span | None = None) -> Tensor:
        """Token ids `(B, T)` → hidden states after the last norm `(B, T, C)`; `head` makes logits of them.

        Args:
            idx: Token ids.
            lengths: Packed documents (B is 1, the lengths sum to T): positions restart and attention stays inside each.
            span: The part of a KV cache to read and extend.

        Raises:
            LitGPTError: A sequence is longer than `max_seq_length`.
        """
        if lengths is not None and len(set(lengths)) == 1:  # documents of one length are an ordinary batch
            return self.hidden(idx.view(len(lengths), lengths[0])).view(1, idx.size(1), -1)
        longest = max(lengths) if lengths is not None else span.end(idx.size(1)) if span is not None else idx.size(1)
        if longest > self.max_seq_length:
            raise LitGPTError(
                f"A sequence of {longest} tokens does not fit this model; its limit is {self.max_seq_length} tokens."
            )
        positions = self._positions(idx, lengths, span)
        x = self.transformer.wte(idx)  # (B, T, C)
        if self.config.scale_embeddings:
            x = x * torch.tensor(self.config.n_embd**0.5, dtype=x.dtype)
        elif self.config.embedding_multiplier != 1:
            x = x * self.config.embedding_multiplier
        if self.config.learned_positions:
            x = x + self.transformer.wpe(positions)
        reach = self._reach(positions, longest, lengths, span)
        for block in self.transformer.h:
            x = block(x, reach)
        return self.transformer.ln_f(x)

    def head(self, hidden: Tensor) -> Tensor:
        """Hidden states `(…, C)` → logits `(…, V)`."""
        logits = self.lm_head(hidden)
        if self.config.logits_divisor != 1:
            logits = logits / self.config.logits_divisor
        return softcap(logits, self.config.final_logit_softcapping)

    def _positions(self, idx: Tensor, lengths: Sequence[int] | None, span: Span | None) -> Tensor:
        """Where each token stands in its sequence, `(T,)`, or `(B, T)` for rows at different positions."""
        T = idx.size(1)
        if lengths is not None:
            return torch.cat([torch.arange(length, device=idx.device) for length in lengths])
        if span is not None:
            if len(set(span.starts)) > 1:
                return span.positions(T, idx.device)
            return torch.arange(span.starts[0], span.starts[0] + T, device=idx.device)
        return torch.arange(T, device=idx.device)

    def _reach(self, positions: Tensor, longest: int, lengths: Sequence[int] | None, span: Span | None) -> Reach:
        ropes = []
        for rope in self.ropes:
            cos, sin = (table[positions] for table in rope.upto(longest, positions.device))  # (T, R/2) or (B, T, R/2)
            ropes.append((cos[:, None], sin[:, None]) if positions.dim() == 2 else (cos, sin))
        windows = {self.config.window(layer) for layer in range(self.config.n_layer)}
        masks = (
            {} if lengths is not None else {window: attention_mask(positions, longest, window) for window in windows}
        )
        return Reach(tuple(ropes), masks, tuple(lengths) if lengths is not None else None, span)

    # -- the cache of LitGPT's callers; the engine keeps its own

    def set_kv_cache(
        self,
        batch_size: int,
        max_seq_length: int | None = None,
        rope_cache_length: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Makes room for `batch_size` sequences, so that `forward` takes `input_pos`; RoPE's table grows by itself."""
        del rope_cache_length
        weight = self.transformer.wte.weight
        length = max_seq_length or self.max_seq_length
        self.kv_cache = KVCache(self.config, batch_size, length, device or weight.device, dtype or weight.dtype)

    def clear_kv_cache(self) -> None:
        """Gives the cache's memory back."""
        self.kv_cache = None


class Backbone(nn.Module):
    """Everything but the head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert config.padded_vocab_size is not None
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        if config.learned_positions:
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = make_norm(config)


class Block(nn.Module):
    """Attention and MLP, one after the other or side by side (`parallel_residual`)."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.config = config
        self.norm_1 = make_norm(config) if config.norm_1 else nn.Identity()
        self.attn = CausalSelfAttention(config, layer)
        self.post_attention_norm = make_norm(config) if config.post_attention_norm else nn.Identity()
        self.norm_2: nn.Module | None = None  # shared_attention_norm: the MLP sees what attention sees
        if not config.shared_attention_norm:
            self.norm_2 = make_norm(config) if config.norm_2 else nn.Identity()
        self.mlp = MLPS[config.mlp_class_name](config)
        self.post_mlp_norm = make_norm(config) if config.post_mlp_norm else nn.Identity()

    def forward(self, x: Tensor, reach: Reach) -> Tensor:
        """`(B, T, C)` → `(B, T, C)`."""
        normed = self.norm_1(x)
        attended = self.post_attention_norm(self.attn(normed, reach))
        if self.config.parallel_residual:
            normed = normed if self.norm_2 is None else self.norm_2(x)
            return self.post_mlp_norm(self.mlp(normed)) + attended + x
        x = self.damped(attended) + x
        assert self.norm_2 is not None
        return self.damped(self.post_mlp_norm(self.mlp(self.norm_2(x)))) + x

    def damped(self, x: Tensor) -> Tensor:
        """What a half of the block adds to the residual stream."""
        return x if self.config.residual_multiplier == 1 else x * self.config.residual_multiplier


class CausalSelfAttention(nn.Module):
    """Grouped-query attention (https://arxiv.org/abs/2305.13245); multi-head and multi-query are its ends."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        assert config.head_size is not None and config.n_query_groups is not None
        self.config = config
        self.layer = layer
        self.window = config.window(layer)
        self.heads = (config.n_head, config.n_query_groups, config.n_query_groups)
        rows = sum(self.heads) * config.head_size
        self.qkv = nn.Linear(config.n_embd, rows, bias=config.bias or config.attn_bias)  # rows: [Q | K | V]
        self.proj = nn.Linear(
            config.n_head * config.head_size, config.n_embd, bias=config.bias or config.attn_proj_bias
        )
        if config.norm_qk:
            whole = config.norm_qk_type == "olmo2"  # one norm over all heads; else one that every head shares
            self.norm_q = make_norm(config, config.head_size * (config.n_head if whole else 1))
            self.norm_k = make_norm(config, config.head_size * (config.n_query_groups if whole else 1))
        self.rotates = not config.learned_positions and (config.rope_layers is None or bool(config.rope_layers[layer]))
        self.rope_kind = config.rope_indices[layer] if config.rope_indices else 0
        self.scale = (config.attention_scores_scalar or config.head_size) ** -0.5

    def forward(self, x: Tensor, reach: Reach) -> Tensor:
        """`(B, T, C)` → `(B, T, C)`."""
        B, T, _ = x.shape
        H = self.config.head_size
        qkv = self.qkv(x)
        if self.config.qkv_clip is not None:
            qkv = qkv.clamp(-self.config.qkv_clip, self.config.qkv_clip)
        qkv = qkv.view(B, T, -1, H).transpose(1, 2)  # (B, N + 2G, T, H)
        q, k, v = qkv.split(self.heads, dim=1)  # (B, N, T, H), (B, G, T, H), (B, G, T, H)
        if self.config.norm_qk:
            q, k = self.norm_heads(self.norm_q, q), self.norm_heads(self.norm_k, k)
        if self.rotates:
            cos, sin = reach.ropes[self.rope_kind]
            turn = partial(apply_rope, cos=cos, sin=sin, interleave=self.config.rope_interleave)
            q, k = turn(q), turn(k)
        if reach.span is not None:
            k, v = reach.span.extend(self.layer, k, v)  # (B, G, S, H)
        if reach.lengths is not None:
            documents = _documents(q, k, v, reach.lengths)
            y = torch.cat(
                [self.attend(*document, causal_mask(document[0], self.window)) for document in documents], dim=2
            )
        else:
            y = self.attend(q, k, v, reach.masks[self.window])
        return self.proj(y.transpose(1, 2).reshape(B, T, -1))  # (B, N, T, H) → (B, T, C)

    def norm_heads(self, norm: nn.Module, x: Tensor) -> Tensor:
        """Norms queries or keys `(B, heads, T, H)`, each head by itself or all heads of a token as one."""
        if self.config.norm_qk_type == "default":
            return norm(x)
        B, heads, T, H = x.shape
        return norm(x.transpose(1, 2).reshape(B, T, heads * H)).view(B, T, heads, H).transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Queries `(B, N, T, H)` over keys and values `(B, G, S, H)` → `(B, N, T, H)`; without a mask, causal."""
        causal = mask is None and q.size(2) > 1
        cap = self.config.attention_logit_softcapping
        if cap is None:
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale, enable_gqa=q.size(1) != k.size(1)
            )
        repeats = q.size(1) // k.size(1)
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        scores = softcap(q @ k.mT * self.scale, cap)  # (B, N, T, S)
        if causal:
            mask = attention_mask(torch.arange(q.size(2), device=q.device), k.size(2), None, always=True)
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype) @ v


def _documents(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Packed heads `(1, N or G, T, H)` cut into documents; the work grows with the square of each, not of all."""
    return list(zip(q.split(lengths, 2), k.split(lengths, 2), v.split(lengths, 2), strict=True))


def causal_mask(q: Tensor, window: int | None) -> Tensor | None:
    """The mask of a whole document seen from its start; None where plain causal attention does."""
    return None if window is None else attention_mask(torch.arange(q.size(2), device=q.device), q.size(2), window)


def attention_mask(positions: Tensor, end: int, window: int | None, always: bool = False) -> Tensor | None:
    """True where a query sees a key.

    Args:
        positions: Of the queries, `(T,)` or `(B, T)`.
        end: Keys stand at positions 0 … `end` - 1.
        window: A query sees itself and the `window` - 1 tokens before it; None: all before it.
        always: Make the mask even where SDPA's own causal one does.

    Returns:
        `(1 or B, 1, T, end)`; None where plain causal attention, or one last token that sees everything, needs no mask.
    """
    T = positions.size(-1)
    if positions.dim() == 1 and (window is None or window >= end) and not always and T in (1, end):
        return None
    keys = torch.arange(end, device=positions.device)
    distance = positions.reshape(-1, 1, T, 1) - keys
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def softcap(x: Tensor, cap: float | None) -> Tensor:
    """`cap · tanh(x / cap)` (Gemma 2, https://arxiv.org/abs/2408.00118); without `cap`, `x`."""
    return x if cap is None else torch.tanh(x / cap) * cap


class GptNeoxMLP(nn.Module):
    """Up, GELU, down."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        self.fc = nn.Linear(config.n_embd, config.intermediate_size, bias=config.bias)
        self.proj = nn.Linear(config.intermediate_size, config.n_embd, bias=config.bias)
        self.approximate = config.gelu_approximate

    def forward(self, x: Tensor) -> Tensor:
        """`(…, C)` → `(…, C)`."""
        return self.proj(F.gelu(self.fc(x), approximate=self.approximate))


class LLaMAMLP(nn.Module):
    """SwiGLU (Shazeer 2020, https://arxiv.org/abs/2002.05202): `fc_1` gates, `fc_2` carries."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        self.fc_1 = nn.Linear(config.n_embd, config.intermediate_size, bias=config.bias)
        self.fc_2 = nn.Linear(config.n_embd, config.intermediate_size, bias=config.bias)
        self.proj = nn.Linear(config.intermediate_size, config.n_embd, bias=config.bias)

    def forward(self, x: Tensor) -> Tensor:
        """`(…, C)` → `(…, C)`."""
        return self.proj(F.silu(self.fc_1(x)) * self.fc_2(x))


class GemmaMLP(LLaMAMLP):
    """GeGLU: the gate is a GELU."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.approximate = config.gelu_approximate

    def forward(self, x: Tensor) -> Tensor:
        """`(…, C)` → `(…, C)`."""
        return self.proj(F.gelu(self.fc_1(x), approximate=self.approximate) * self.fc_2(x))


MLPS: dict[str, type[nn.Module]] = {
    "GptNeoxMLP": GptNeoxMLP,
    "LLaMAMLP": LLaMAMLP,
    "GemmaMLP": GemmaMLP,
    "LLaMAMoE": LLaMAMoE,
}


class RMSNorm(nn.Module):
    """Scales by the root mean square, in float32 at least (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467)."""

    def __init__(self, size: int, eps: float, unit_offset: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size) if unit_offset else torch.ones(size))
        self.eps = eps
        self.unit_offset = unit_offset

    def forward(self, x: Tensor) -> Tensor:
        """`(…, size)` → `(…, size)`."""
        wide = x.float() if x.dtype.itemsize < 4 else x
        normed = F.rms_norm(wide, (x.size(-1),), eps=self.eps)
        if self.unit_offset:  # Gemma multiplies before rounding, Llama after
            return (normed * (1 + self.weight.to(normed.dtype))).to(x.dtype)
        return normed.to(x.dtype) * self.weight


def make_norm(config: Config, size: int | None = None) -> nn.Module:
    """The norm over `size` (`n_embd`) values that this config asks for."""
    size = config.n_embd if size is None else size
    if config.norm_class_name == "RMSNorm":
        return RMSNorm(size, config.norm_eps, unit_offset=bool(config.norm_unit_offset))
    affine = bool(config.norm_affine)
    return nn.LayerNorm(size, eps=config.norm_eps, elementwise_affine=affine, bias=affine and config.norm_bias)


def _refuse_unknown_parts(config: Config) -> None:
    """Raises a LitGPTError for a part that this model cannot compute, rather than leaving it out."""
    asked = {
        "mlp_class_name": config.mlp_class_name not in MLPS and config.mlp_class_name,
        "latent_attention": config.latent_attention,
        "n_shared_expert": config.n_shared_expert,
        "n_expert_groups": config.n_expert_groups,
        "first_k_dense_replace": config.first_k_dense_replace,
    }
    for part, value in asked.items():
        if value:
            raise LitGPTError(
                f"This version cannot compute a model with `{part}`: {value!r} ({config.name or 'unnamed model'})."
            )

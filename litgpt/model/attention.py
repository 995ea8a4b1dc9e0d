"""Attention: what a token attends to, and its two kinds (grouped queries, latent keys and values).

B: batch, T: tokens, C: `n_embd`, N: `n_head`, G: `n_query_groups` (key-value heads), H: `head_size`,
S: positions of the keys, R: dimensions of a head that rotate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from litgpt.config import Config
from litgpt.kernels import sdpa, triton, varlen
from litgpt.model.cache import Span
from litgpt.model.indexing.blocks import BlockIndexer
from litgpt.model.indexing.tokens import Indexer
from litgpt.model.norm import HeadNorm, RMSNorm, make_norm, rms_norm, upcast
from litgpt.model.positions import alibi_bias
from litgpt.model.rope import apply_rope, attention_scale


@dataclass(frozen=True)
class AttentionContext:
    """What every layer of one forward pass shares: where the tokens stand and what each of them attends to."""

    ropes: tuple[tuple[Tensor, Tensor], ...]
    """`cos` and `sin`, `(T, R)` or `(B, 1, T, R)`, for global and for local layers; none with learned positions."""
    masks: dict[int | None, Tensor | None]
    """By window size (None: no window): True where a query sees a key, `(B or 1, 1, T, S)`; None: plain causal. Where
    scores fall with distance, what is added to them, `(B or 1, N, T, S)`."""
    lengths: tuple[int, ...] | None = None
    """Packed documents: attention stays inside each."""
    span: Span | None = None
    query_factors: Tensor | None = None
    """What queries are multiplied with (`config.query_tuning`), `(T, 1)` or `(B, 1, T, 1)`, float32."""
    layer_inputs: Tensor | None = None
    """What each layer is given of each token besides (`config.layer_inputs`), `(B, T, n_layer, size)`."""
    shared_kv: dict[int | None, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """By window: the keys and values that the last layers share (`config.shared_kv_layers`)."""
    chosen: dict[int, list[Tensor]] = field(default_factory=dict)
    """By the layer whose indexer chose: a mask for each document, `(B, 1, T, S)`, of what a query sees."""

    def to(self, device: torch.device) -> AttentionContext:
        """The same on another device; the span's cache stays where it is."""
        return replace(
            self,
            ropes=tuple((cos.to(device), sin.to(device)) for cos, sin in self.ropes),
            masks={window: None if mask is None else mask.to(device) for window, mask in self.masks.items()},
            query_factors=None if self.query_factors is None else self.query_factors.to(device),
            layer_inputs=None if self.layer_inputs is None else self.layer_inputs.to(device),
        )


class Attention(nn.Module):
    """What both kinds share: scale, window, soft cap, sinks, and attending to a cache, a batch or packed documents."""

    def __init__(self, config: Config, layer: int, scale: float) -> None:
        super().__init__()
        self.config = config
        self.layer = layer
        self.window = config.window(layer)
        self.scale = scale
        self.chooser = config.indexer(layer)
        self.uses_rope = config.rotates and (config.rope_layers is None or bool(config.rope_layers[layer]))
        self.first_head = 0
        """Of those that this process has."""
        tuning = config.query_tuning
        self.scales_queries = tuning is not None and not (tuning["unturned_only"] and self.uses_rope)
        self.rope_index = config.rope_indices[layer] if config.rope_indices else 0
        sinks = config.attention_sinks and not (config.sinks_in_windows and self.window is None)
        self.sinks = nn.Parameter(torch.zeros(config.heads(layer))) if sinks else None

    def apply_rope(self, x: Tensor, context: AttentionContext) -> Tensor:
        """Rotates queries or keys `(B, heads, T, H)` to their positions."""
        cos, sin = context.ropes[self.rope_index]
        if triton.chosen(x):
            from litgpt.kernels.triton.rope import rope

            return rope(x, cos, sin, self.config.rope_interleave)
        return apply_rope(x, cos, sin, self.config.rope_interleave)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: AttentionContext) -> Tensor:
        """Queries `(B, N, T, H)` over keys and values `(B, G, S, H)` → `(B, N, T, H)`, as far as `context` allows."""
        chosen = context.chosen.get(-1 if self.chooser is None else self.chooser)
        if chosen:
            return self.attend_chosen(q, k, v, chosen, context.lengths or (q.size(2),))
        if context.lengths is None:
            return self.attend_masked(q, k, v, context.masks[self.window])
        plain = self.config.attention_logit_softcapping is None and self.config.alibi is None
        if plain and varlen.applies(q, k, v):
            lengths, window = context.lengths, self.window
            if window is not None and self.config.chunked_windows:  # whose blocks see as little of each other
                lengths, window = in_blocks(lengths, window), None
            return varlen.attend(q, k, v, lengths, self.scale, window, self.sinks)
        # Document by document: the work grows with the square of each, not of all.
        documents = zip(
            q.split(context.lengths, 2), k.split(context.lengths, 2), v.split(context.lengths, 2), strict=True
        )
        masks = (document_mask(self.config, length, self.window, q.device) for length in context.lengths)
        return torch.cat([self.attend_masked(*document, next(masks)) for document in documents], 2)

    def attend_chosen(
        self, q: Tensor, k: Tensor, v: Tensor, chosen: Sequence[Tensor], lengths: Sequence[int]
    ) -> Tensor:
        """As `attend`, to what an indexer has chosen in each document: `(B, N or 1, T, S)` of all heads, or for all."""
        first = self.first_head
        masks = [mask.to(q.device) for mask in chosen]
        masks = [mask if mask.size(1) == 1 else mask.narrow(1, first, q.size(1)) for mask in masks]
        if len(masks) == 1:
            return self.attend_masked(q, k, v, masks[0])
        documents = zip(*(part.split(tuple(lengths), 2) for part in (q, k, v)), masks, strict=True)
        return torch.cat([self.attend_masked(*document) for document in documents], 2)

    def attend_masked(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """As `attend`, with a mask, or causal without one."""
        if mask is not None and mask.is_floating_point():
            mask = mask.narrow(1, self.first_head, q.size(1)).to(q.dtype)
        causal = mask is None and q.size(2) > 1
        if self.config.attention_logit_softcapping is None and self.sinks is None:
            if trains_faster_in_float32(q, k):
                with torch.autocast("cpu", enabled=False):
                    return self.attend_masked(q.float(), k.float(), v.float(), mask).to(q.dtype)
            return sdpa.attend(q, k, v, mask, causal, self.scale)
        repeats = q.size(1) // k.size(1)
        k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
        scores = softcap(q @ k.mT * self.scale, self.config.attention_logit_softcapping)  # (B, N, T, S)
        if causal:
            mask = attention_mask(torch.arange(q.size(2), device=q.device), k.size(2), None, always=True)
        if mask is not None:
            scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -math.inf)
        dtype = torch.promote_types(scores.dtype, torch.float32)
        if self.sinks is None:
            return scores.softmax(dim=-1, dtype=dtype).to(q.dtype) @ v
        # A sink takes its share of the attention and gives nothing (https://arxiv.org/abs/2309.17453).
        sinks = self.sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        probabilities = torch.cat((scores, sinks), dim=-1).softmax(dim=-1, dtype=dtype)
        return probabilities[..., :-1].to(q.dtype) @ v


class CausalSelfAttention(Attention):
    """Grouped-query attention (https://arxiv.org/abs/2305.13245); multi-head and multi-query are its ends."""

    def __init__(self, config: Config, block_idx: int) -> None:
        n_keys, n_values, self.head_size = config.kv_heads(block_idx)
        super().__init__(config, block_idx, (config.attention_scores_scalar or self.head_size) ** -0.5)
        n_head, self.value_size = config.heads(block_idx), config.values_of(self.head_size)
        self.heads = (2 * n_head if config.attention_gate else n_head, n_keys, n_values)
        rows, width = sum(config.qkv_rows(block_idx)), n_head * self.value_size
        self.qkv = nn.Linear(config.n_embd, rows, bias=config.bias or config.attn_bias)  # rows: [Q | K | V]
        self.proj = nn.Linear(width, config.n_embd, bias=config.bias or config.attn_proj_bias)
        self.gate = nn.Linear(config.n_embd, n_head, bias=False) if config.head_gates else None
        if config.norm_inner:
            self.norm_inner = make_norm(config, width)
        self.norm_q: nn.Module
        self.norm_k: nn.Module
        if config.norm_qk and config.norm_qk_type == "by_head":
            self.norm_q = HeadNorm(n_head, self.head_size, config.norm_eps)
            self.norm_k = HeadNorm(n_keys, self.head_size, config.norm_eps)
        elif config.norm_qk:
            whole = config.norm_qk_type == "olmo2"  # one norm over all heads; else one that every head shares
            self.norm_q = make_norm(config, self.head_size * (n_head if whole else 1), "qk")
            if n_keys:
                self.norm_k = make_norm(config, self.head_size * (n_keys if whole else 1), "qk")
        self.indexer = BlockIndexer(config) if self.chooser == block_idx else None
        self.lends_kv = config.shared_kv_layers > 0 and not config.shares_kv(block_idx)

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """`(B, T, C)` → `(B, T, C)`."""
        B, T, _ = x.shape
        q, k, v, gate = self.project(x)
        if self.uses_rope:
            if triton.chosen(q, k):
                q, k = self.apply_rope(q, context), self.apply_rope(k, context)
            else:
                q, k = self.apply_rope(torch.cat((q, k), dim=1), context).split((q.size(1), k.size(1)), dim=1)
            if self.config.norm_turned:
                q, k = rms_norm(q, self.config.norm_eps), rms_norm(k, self.config.norm_eps)
        if self.config.norm_qk_rotated:
            q, k = self.norm_heads(self.norm_q, q), self.norm_heads(self.norm_k, k)
        if self.scales_queries:
            assert context.query_factors is not None
            q = (q * context.query_factors).to(q.dtype)
        if self.indexer is not None:  # whose keys are cached behind those of the heads
            k = torch.cat((k, self.indexer.keys(x, context.ropes[0], k.size(1)).to(k.dtype)), dim=-1)
        if self.heads[1] == 0:
            k, v = (part.to(q.device) for part in context.shared_kv[self.window])
        elif context.span is not None:
            k, v = context.span.extend(self.layer, k, v)  # (B, G, S, H)
        if self.indexer is not None:
            k, index = k.split((self.head_size, k.size(-1) - self.head_size), dim=-1)
            context.chosen[self.layer] = self.indexer.choose(
                x, index, context.ropes[0], context.masks.get(None), context.lengths
            )
        if self.lends_kv:
            context.shared_kv[self.window] = k, v
        y = self.attend(q, k, v, context)
        if gate is not None:
            y = y * (gate.sigmoid() if self.config.gate_activation == "sigmoid" else softplus(upcast(gate)).to(y.dtype))
        y = y.transpose(1, 2).reshape(B, T, -1)  # (B, N, T, H) → (B, T, N · H)
        return self.proj(self.norm_inner(y) if self.config.norm_inner else y)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """`(B, T, C)` → queries `(B, N, T, H)`, keys and values `(B, G, T, H)`, before they rotate to
        their positions; and the queries' gates, `(B, N, T, H or 1)`."""
        if self.value_size == self.head_size:
            qkv = self.qkv(x).view(*x.shape[:2], -1, self.head_size).transpose(1, 2)  # (B, N + 2G, T, H)
            q, k, v = qkv.split(self.heads, dim=1)
        else:
            sizes = (self.head_size, self.head_size, self.value_size)
            rows = self.qkv(x).split([count * size for count, size in zip(self.heads, sizes, strict=True)], dim=-1)
            q, k, v = (part.unflatten(-1, (-1, size)).transpose(1, 2) for part, size in zip(rows, sizes, strict=True))
        if self.heads[2] == 0:
            v = k
        if self.config.values_multiplier != 1:
            v = v * self.config.values_multiplier
        if self.config.multipliers is not None:
            k = k * self.config.multipliers["keys"]
        gate = None if self.gate is None else self.gate(x).mT[..., None]  # (B, N, T, 1)
        if self.config.attention_gate:
            q, gate = q[:, ::2], q[:, 1::2]
        if self.config.norm_qk and not self.config.norm_qk_rotated:
            q, k = self.norm_heads(self.norm_q, q), self.norm_heads(self.norm_k, k) if self.heads[1] else k
        if self.config.norm_values:
            v = rms_norm(v, self.config.norm_eps)
        if (bound := self.config.qkv_clip) is not None:
            q, k, v = (part.clamp(-bound, bound) for part in (q, k, v))
        return q, k, v, gate

    def norm_heads(self, norm: nn.Module, x: Tensor) -> Tensor:
        """Norms queries or keys `(B, heads, T, H)`, each head by itself or all heads of a token as one; their dtype
        stays that of the values, which every fast kernel of attention asks for."""
        if self.config.norm_qk_type != "olmo2":
            return norm(x).to(x.dtype)
        B, heads, T, H = x.shape
        return norm(x.transpose(1, 2).reshape(B, T, heads * H)).to(x.dtype).view(B, T, heads, H).transpose(1, 2)


class MultiheadLatentAttention(Attention):
    """Keys and values made from one small latent a token, which is all that a cache holds (DeepSeek-V2,
    https://arxiv.org/abs/2405.04434).

    L: `kv_lora_rank`, P: `qk_nope_head_dim`, R: `qk_rope_head_dim`, D: `v_head_dim`.
    """

    def __init__(self, config: Config, block_idx: int) -> None:
        assert config.latent_attention is not None
        sizes = config.latent_attention
        self.n_head = config.n_head
        self.kv_rank, self.nope_dim = sizes["kv_lora_rank"], sizes["qk_nope_head_dim"]
        self.rope_dim, self.v_dim = sizes["qk_rope_head_dim"], sizes["v_head_dim"]
        super().__init__(config, block_idx, (self.nope_dim + self.rope_dim) ** -0.5 * attention_scale(config))
        query = config.n_head * (self.nope_dim + self.rope_dim)
        if sizes["q_lora_rank"] is None:
            self.q_proj = nn.Linear(config.n_embd, query, bias=False)
        else:
            self.q_a_proj = nn.Linear(config.n_embd, sizes["q_lora_rank"], bias=config.attn_bias)
            self.q_a_norm = RMSNorm(sizes["q_lora_rank"], eps=1e-6)
            self.q_b_proj = nn.Linear(sizes["q_lora_rank"], query, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(config.n_embd, self.kv_rank + self.rope_dim, bias=config.attn_bias)
        self.kv_a_norm = RMSNorm(self.kv_rank, eps=1e-6)
        self.kv_b_proj = nn.Linear(self.kv_rank, config.n_head * (self.nope_dim + self.v_dim), bias=False)
        self.proj = nn.Linear(config.n_head * self.v_dim, config.n_embd, bias=config.attn_bias)
        self.indexer = Indexer(config) if self.chooser == block_idx else None

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """`(B, T, C)` → `(B, T, C)`."""
        B, T, _ = x.shape
        low_rank = self.config.latent_attention is not None and self.config.latent_attention["q_lora_rank"] is not None
        q_latent = self.q_a_norm(self.q_a_proj(x)) if low_rank else x
        q = self.q_b_proj(q_latent) if low_rank else self.q_proj(x)
        q = q.view(B, T, -1, self.nope_dim + self.rope_dim).transpose(1, 2)
        q_nope, q_rope = q.split((self.nope_dim, self.rope_dim), dim=-1)  # (B, N, T, P), (B, N, T, R)
        latent, k_rope = self.kv_a_proj_with_mqa(x).split((self.kv_rank, self.rope_dim), dim=-1)
        k_rope = k_rope[:, None]  # (B, 1, T, R)
        if self.uses_rope:
            q_rope, k_rope = self.apply_rope(q_rope, context), self.apply_rope(k_rope, context)
        if self.scales_queries:
            assert context.query_factors is not None
            q_nope, q_rope = ((part * context.query_factors).to(part.dtype) for part in (q_nope, q_rope))
        kv = torch.cat((self.kv_a_norm(latent)[:, None], k_rope), dim=-1)  # (B, 1, T, L + R)
        if self.indexer is not None:  # whose keys are cached behind it
            kv = torch.cat((kv, self.indexer.keys(x, context.ropes[0])), dim=-1)
        if context.span is not None:
            kv, _ = context.span.extend(self.layer, kv)  # (B, 1, S, L + R)
        if self.indexer is not None:
            kv, index_keys = kv.split((self.kv_rank + self.rope_dim, self.indexer.size), dim=-1)
            seen, lengths = context.masks.get(None), context.lengths
            context.chosen[self.layer] = self.indexer.choose(x, q_latent, index_keys, context.ropes[0], seen, lengths)
        if T == 1 and type(self.kv_b_proj) is nn.Linear:
            y = self.attend_absorbed(q_nope, q_rope, kv, context)
        else:
            y = self.attend(torch.cat((q_nope, q_rope), dim=-1), *self.expand(kv), context)
        return self.proj(y.transpose(1, 2).reshape(B, T, -1))  # (B, N, T, D) → (B, T, C)

    def expand(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """What the cache has of each token `(B, 1, S, L + R)` → keys `(B, N, S, P + R)` and values `(B, N, S, D)`."""
        latent, k_rope = kv.split((self.kv_rank, self.rope_dim), dim=-1)
        kv = self.kv_b_proj(latent[:, 0])
        kv = kv.view(*kv.shape[:2], self.n_head, -1).transpose(1, 2)  # (B, N, S, P + D)
        k_nope, v = kv.split((self.nope_dim, self.v_dim), dim=-1)
        return torch.cat((k_nope, k_rope.expand(-1, self.n_head, -1, -1)), dim=-1), v

    def attend_absorbed(self, q_nope: Tensor, q_rope: Tensor, kv: Tensor, context: AttentionContext) -> Tensor:
        """The same for one new token a row, without the keys and values of all before it: the weight that makes them of
        the latents is absorbed into the query and into the result."""
        weight = self.kv_b_proj.weight.view(self.n_head, self.nope_dim + self.v_dim, self.kv_rank)
        to_keys, to_values = weight.split((self.nope_dim, self.v_dim), dim=1)  # (N, P, L), (N, D, L)
        q = torch.cat((q_nope @ to_keys, q_rope), dim=-1)  # (B, N, 1, L + R)
        return self.attend(q, kv, kv[..., : self.kv_rank], context) @ to_values.mT  # (B, N, 1, D)


BF16_MIN_KEYS = 256
"""Keys from which on bfloat16 is as fast as float32 in a backward pass on the CPU."""


def trains_faster_in_float32(q: Tensor, k: Tensor) -> bool:
    """Whether attention's backward pass is slower than in float32: torch's own for bfloat16 on CPUs takes two to four
    times as long over short documents (16 to 160 tokens, on one with AMX), the casts included."""
    bf16_on_cpu = q.device.type == "cpu" and q.dtype == torch.bfloat16
    return bf16_on_cpu and k.size(2) < BF16_MIN_KEYS and q.requires_grad and torch.is_grad_enabled()


def in_blocks(lengths: Sequence[int], size: int) -> tuple[int, ...]:
    """Documents of these lengths cut into pieces of `size` tokens each, and what is left."""
    return tuple(min(size, length - start) for length in lengths for start in range(0, length, size))


def query_factors(config: Config, positions: Tensor) -> Tensor | None:
    """What queries at `positions`, `(T,)` or `(B, T)`, are multiplied with (`config.query_tuning`), so that attention
    stays as sharp over many tokens (https://arxiv.org/abs/2501.19399): `(T, 1)` or `(B, 1, T, 1)`."""
    tuning = config.query_tuning
    if tuning is None:
        return None
    blocks = ((positions + tuning["offset"]).float() / tuning["floor"]).floor()
    factors = (1 + tuning["scale"] * blocks.log1p())[..., None]
    return factors if positions.dim() == 1 else factors[:, None]


def document_mask(config: Config, length: int, window: int | None, device: torch.device) -> Tensor | None:
    """The mask of a whole document seen from its start; None where plain causal attention does."""
    if window is None and config.alibi is None:
        return None
    return model_mask(config, torch.arange(length, device=device), length, window)


def model_mask(
    config: Config, positions: Tensor, end: int, window: int | None, key_positions: Tensor | None = None
) -> Tensor | None:
    """What `AttentionContext.masks` holds; the arguments are those of `attention_mask`."""
    alibi = config.alibi is not None
    seen = attention_mask(positions, end, window, alibi, config.chunked_windows, key_positions)
    if seen is None or not alibi:
        return seen
    keys = torch.arange(end, device=positions.device) if key_positions is None else key_positions
    return alibi_bias(config, positions, keys, seen)


def attention_mask(
    positions: Tensor,
    end: int,
    window: int | None,
    always: bool = False,
    chunked: bool = False,
    key_positions: Tensor | None = None,
) -> Tensor | None:
    """True where a query sees a key.

    Args:
        positions: Of the queries, `(T,)` or `(B, T)`.
        end: Keys stand at positions 0 … `end` - 1.
        window: A query sees itself and the `window` - 1 tokens before it; None: all before it.
        always: Make the mask even where SDPA's own causal one does.
        chunked: The window doesn't slide: a query sees what is in its own block of `window` positions.
        key_positions: `(1 or B, S)`, where they are others; below 0: no key.

    Returns:
        `(1 or B, 1, T, S)`; None where plain causal attention, or one last token that sees everything, needs no mask.
    """
    T = positions.size(-1)
    if (
        key_positions is None
        and positions.dim() == 1
        and (window is None or window >= end)
        and not always
        and T in (1, end)
    ):
        return None
    keys = torch.arange(end, device=positions.device) if key_positions is None else key_positions[:, None, None]
    distance = positions.reshape(-1, 1, T, 1) - keys
    seen = distance >= 0 if key_positions is None else (distance >= 0) & (keys >= 0)
    if window is None:
        return seen
    if chunked:
        return seen & (keys >= positions.reshape(-1, 1, T, 1) // window * window)
    return seen & (distance < window)


def softcap(x: Tensor, cap: float | None) -> Tensor:
    """`cap · tanh(x / cap)` (Gemma 2, https://arxiv.org/abs/2408.00118); without `cap`, `x`."""
    return x if cap is None else torch.tanh(x / cap) * cap

"""The transformer: one decoder-only model that every family is a setting of.

B: batch, T: tokens, C: `n_embd`, R: dimensions of a head that rotate, V: `padded_vocab_size`. State-dict names are
LitGPT's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from litgpt.config import Config
from litgpt.errors import LitGPTError, MissingCacheError
from litgpt.model.attention import (
    AttentionContext,
    CausalSelfAttention,
    MultiheadLatentAttention,
    model_mask,
    query_factors,
    softcap,
)
from litgpt.model.cache import KVCache, Span
from litgpt.model.delta_net import ChannelDeltaNet, GatedDeltaNet
from litgpt.model.mamba import Mamba2, ShortConv
from litgpt.model.mlp import GemmaMLP, GptNeoxMLP, LLaMAMLP
from litgpt.model.moe import Experts, LLaMAMoE, MixtureBesideMLP
from litgpt.model.norm import looked_up, make_norm
from litgpt.model.positions import sinusoids
from litgpt.model.rope import RopeTable
from litgpt.model.streams import GatheringNorm, LowRankPath, Spread, Streams
from litgpt.reading import reading


class GPT(nn.Module):
    """A decoder-only language model.

    `GPT.skeleton` builds it without memory; load weights into that with `assign=True`: nothing is initialised in vain.
    """

    config_class: ClassVar[type[Config]] = Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert config.padded_vocab_size is not None
        self.config = config
        self.lm_head = nn.Linear(config.n_embd, config.padded_vocab_size, bias=config.lm_head_bias)
        self.transformer = Backbone(config)
        self.tie()
        bases: list[float | None] = [None] if config.rotates else []
        if config.rope_local_base_freq is not None:
            bases.append(config.rope_local_base_freq)
        self.ropes = [RopeTable(config, base) for base in bases]
        self.max_seq_length = config.block_size
        self.kv_cache: KVCache | None = None
        self.ranks = 1
        """Processes that share every layer of this model (tensor parallel)."""

    @classmethod
    def from_name(cls, name: str, **overrides: Any) -> Self:
        """A model of a named size, with fresh weights."""
        return cls(cls.config_class.from_name(name, **overrides))

    @classmethod
    def skeleton(cls, config: Config) -> Self:
        """A model on `meta`: names and shapes, but neither memory nor time for values.

        (To initialise on `meta` would do nothing, at the price of torch's symbolic machinery: a CPU second to import.)
        """
        with reading(config.name or "The configuration", "no shape of a model"), torch.device("meta"), _Uninitialised():
            return cls(config)

    def n_parameters(self, active: bool = False) -> int:
        """How many numbers the model has learned, a tied head once; `active`: those that one token is computed with."""
        count = sum(parameter.numel() for parameter in self.parameters())
        if active:
            idle = self.config.n_expert - self.config.n_expert_per_token
            for module in self.modules():
                if isinstance(module, Experts):
                    count -= sum(part.numel() for part in module.parameters()) * idle // self.config.n_expert
        return count

    def computes_in(self, dtype: torch.dtype) -> bool:
        """Whether it computes in `dtype` without autocast. A model that trains under it has wide norms beside frozen
        layers in 16 bits."""
        first = self.transformer.h[0]
        assert isinstance(first, Block)
        parts = self.transformer.wte, first.norm_1, self.transformer.ln_f
        return all(parameter.dtype == dtype for part in parts for parameter in part.parameters())

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
                raise MissingCacheError("There is no KV cache for input_pos; call set_kv_cache() first.")
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
        x, context = self.enter(idx, lengths, span)
        if span is not None:
            span.begin()
        for block in self.transformer.h:
            x = block(x, context)
        if span is not None:
            span.finish(idx.size(1))
        hidden: Tensor = self.transformer.ln_f(x)
        return hidden.view(*idx.shape, -1)

    def enter(
        self, idx: Tensor, lengths: Sequence[int] | None = None, span: Span | None = None
    ) -> tuple[Tensor, AttentionContext]:
        """What the first block gets of token ids `(B, T)`, as `hidden` has them: `(B, T, C)`, and its attention's
        context."""
        if lengths is not None and len(set(lengths)) == 1:  # documents of one length are an ordinary batch
            idx, lengths = idx.view(len(lengths), lengths[0]), None
        longest = max(lengths) if lengths is not None else span.end(idx.size(1)) if span is not None else idx.size(1)
        if longest > self.max_seq_length:
            raise LitGPTError(
                f"A sequence of {longest} tokens does not fit this model; its limit is {self.max_seq_length} tokens."
            )
        positions = self._positions(idx, lengths, span)
        x = self.embed(idx, positions)
        return x, replace(self.context(positions, longest, lengths, span), layer_inputs=self.layer_inputs(idx, x))

    def hidden_apart(self, rows: Sequence[Tensor], spans: Sequence[Span]) -> list[Tensor]:
        """`hidden` of several sequences, `(1, T)` each, to the bit what it is of each alone.

        They go through the model together, layer by layer, so that a processor reads a layer that fits into its cache
        once.

        Args:
            rows: Token ids of each.
            spans: The part of a KV cache of each.
        """
        positions = [self._positions(idx, None, span) for idx, span in zip(rows, spans, strict=True)]
        xs = [self.embed(idx, at) for idx, at in zip(rows, positions, strict=True)]
        contexts = [
            replace(self.context(at, span.end(at.size(0)), span=span), layer_inputs=self.layer_inputs(idx, x))
            for idx, x, at, span in zip(rows, xs, positions, spans, strict=True)
        ]
        for span in spans:
            span.begin()
        for block in self.transformer.h:
            xs = [block(x, context) for x, context in zip(xs, contexts, strict=True)]
        for idx, span in zip(rows, spans, strict=True):
            span.finish(idx.size(1))
        return [self.transformer.ln_f(x) for x in xs]

    def embed(self, idx: Tensor, positions: Tensor) -> Tensor:
        """Token ids `(B, T)` at `positions`, `(T,)` or `(B, T)` → what the first block works on `(B, T, C)`; several
        streams of it are stacked before that."""
        x = looked_up(self.transformer.wte(idx))  # (B, T, C)
        if self.config.scale_embeddings:
            x = x * torch.tensor(self.config.n_embd**0.5, dtype=x.dtype)
        elif self.config.embedding_multiplier != 1:
            x = x * self.config.embedding_multiplier
        if self.config.learned_positions:
            x = x + self.transformer.wpe(positions + self.config.positions_offset)
        if self.config.sinusoidal_span is not None:
            x = x + sinusoids(self.config, positions).to(x.dtype)
        x = self.transformer.ln_e(x) if self.config.norm_embeddings else x
        return x if self.transformer.spread is None else self.transformer.spread(x)

    def layer_inputs(self, idx: Tensor, x: Tensor) -> Tensor | None:
        """Token ids `(B, T)`, embedded `(B, T, C)` → what each layer is given besides `(B, T, n_layer, size)`."""
        inputs = self.transformer.layer_inputs
        return None if inputs is None else inputs(idx, x if self.config.streams is None else x[0])

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
            places = torch.cat([torch.arange(length) for length in lengths])  # on the host, then one copy
            return places.to(idx.device, non_blocking=True)
        if span is not None:
            if len(set(span.starts)) > 1:
                return span.positions(T, idx.device)
            return torch.arange(span.starts[0], span.starts[0] + T, device=idx.device)
        return torch.arange(T, device=idx.device)

    def context(
        self,
        positions: Tensor,
        longest: int,
        lengths: Sequence[int] | None = None,
        span: Span | None = None,
        ropes: Sequence[RopeTable] | None = None,
    ) -> AttentionContext:
        """What the blocks share: tokens at `positions`, `(T,)` or `(B, T)`, attend to keys at 0 … `longest` - 1.

        `ropes`: other tables than the model's own, which grow as sequences do.
        """
        tables_of, ropes_at = self.ropes if ropes is None else ropes, []
        extent = longest if span is None else span.cache.length
        for rope in tables_of:
            tables = rope.cos_sin(longest, positions.device, extent)
            cos, sin = (table[positions] for table in tables)  # (T, R) or (B, T, R)
            ropes_at.append((cos[:, None], sin[:, None]) if positions.dim() == 2 else (cos, sin))
        masks = {}
        if lengths is None:
            for window in {self.config.window(layer) for layer in range(self.config.n_layer)}:
                keys = None if span is None else span.key_positions(window, positions.size(-1))
                masks[window] = model_mask(self.config, positions, longest, window, keys)
        factors = query_factors(self.config, positions)
        return AttentionContext(tuple(ropes_at), masks, tuple(lengths) if lengths is not None else None, span, factors)

    # -- the cache of LitGPT's callers; the engine keeps its own

    @property
    def layer_devices(self) -> list[torch.device]:
        """The device of each layer."""
        return [next(block.parameters()).device for block in self.transformer.h]

    def new_cache(
        self, slots: int, length: int, dtype: torch.dtype | None = None, max_chunk: int | None = None
    ) -> KVCache:
        """Room for `slots` sequences of `length` tokens, `max_chunk` at most in one pass, each layer's where it is."""
        dtype = dtype or self.transformer.wte.weight.dtype
        return KVCache(self.config, slots, length, self.layer_devices, dtype, self.ranks, max_chunk)

    def cache_nbytes(self, slots: int, length: int, dtype: torch.dtype, max_chunk: int | None = None) -> int:
        """Bytes that `new_cache` takes in this process."""
        return KVCache.nbytes(self.config, slots, length, dtype, self.ranks, max_chunk)

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


MLPS: dict[str, type[nn.Module]] = {
    "GptNeoxMLP": GptNeoxMLP,
    "LLaMAMLP": LLaMAMLP,
    "GemmaMLP": GemmaMLP,
    "LLaMAMoE": LLaMAMoE,
}


class _Uninitialised(TorchFunctionMode):
    """Leaves out what the functions of `torch.nn.init` do."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


class Backbone(nn.Module):
    """Everything but the head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert config.padded_vocab_size is not None
        self.wte = nn.Embedding(config.padded_vocab_size, config.n_embd)
        if config.learned_positions:
            self.wpe = nn.Embedding(config.block_size + config.positions_offset, config.n_embd)
        if config.norm_embeddings:
            self.ln_e = make_norm(config, place="embeddings")
        self.layer_inputs = None if config.layer_inputs is None else LayerInputs(config)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = make_norm(config, place="last") if config.final_norm else nn.Identity()
        self.spread = None if config.streams is None else Spread(config)
        if config.streams is not None:
            self.ln_f = GatheringNorm(config)


def recurrent_class(config: Config) -> type[nn.Module]:
    """The class of layers that keep a state in the place of keys and values."""
    if config.linear_attention is not None:
        return ChannelDeltaNet if config.linear_attention.get("by_channel") else GatedDeltaNet
    return Mamba2 if config.state_space is not None else ShortConv


class LayerInputs(nn.Module):
    """What each layer is given of each token besides: an embedding of its own, and a share of the common one.

    P: `layer_inputs.size`, L: `n_layer`.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert config.layer_inputs is not None
        self.shape = config.n_layer, config.layer_inputs["size"]
        width = self.shape[0] * self.shape[1]
        self.wte = nn.Embedding(config.layer_inputs["vocab_size"], width)
        self.projection = nn.Linear(config.n_embd, width, bias=False)
        self.norm = make_norm(config, self.shape[1])

    def forward(self, idx: Tensor, x: Tensor) -> Tensor:
        """Token ids `(B, T)`, embedded `(B, T, C)` → `(B, T, L, P)`."""
        own = looked_up(self.wte(torch.where(idx < self.wte.num_embeddings, idx, 0)))
        own = own * torch.tensor(self.shape[1] ** 0.5, dtype=own.dtype)
        common = self.projection(x) * x.size(-1) ** -0.5
        return (self.norm(common.unflatten(-1, self.shape)) + own.unflatten(-1, self.shape)) * 2**-0.5


class LayerInput(nn.Module):
    """Lets a block's output choose from what the layer is given."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        assert config.layer_inputs is not None
        self.gate = nn.Linear(config.n_embd, config.layer_inputs["size"], bias=False)
        self.projection = nn.Linear(config.layer_inputs["size"], config.n_embd, bias=False)
        self.norm = make_norm(config)
        self.approximate = config.gelu_approximate

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        """`(B, T, C)`, and what the layer is given `(B, T, P)` → `(B, T, C)`."""
        return self.norm(self.projection(F.gelu(self.gate(x), approximate=self.approximate) * given))


class Block(nn.Module):
    """Attention and MLP, one after the other or side by side (`parallel_residual`)."""

    layer_scalar: Tensor

    def __init__(self, config: Config, block_idx: int) -> None:
        super().__init__()
        self.config = config
        self.mixes, self.has_mlp = config.mixes(block_idx), config.has_mlp(block_idx)
        self.norm_1 = make_norm(config) if config.norm_1 and self.mixes else nn.Identity()
        attention = CausalSelfAttention if config.latent_attention is None else MultiheadLatentAttention
        mixer = recurrent_class(config) if config.linear(block_idx) else attention
        self.attn = mixer(config, block_idx) if self.mixes else nn.Identity()
        self.state = recurrent_class(config)(config, block_idx) if config.state_beside_attention else None
        self.post_attention_norm = make_norm(config, place="post") if config.post_attention_norm else nn.Identity()
        self.norm_2: nn.Module | None = None  # shared_attention_norm: the MLP sees what attention sees
        if not config.shared_attention_norm:
            self.norm_2 = make_norm(config) if config.norm_2 and self.has_mlp else nn.Identity()
        plain = GptNeoxMLP if config.ungated_mlps else LLaMAMLP
        kind: Any = plain if config.dense(block_idx) else MLPS[config.mlp_class_name]
        wide = config.wide_sharing_mlp and config.shares_kv(block_idx)
        width = (2 * (config.intermediate_size or 0),) if wide else ()
        self.mlp = kind(config, *width) if self.has_mlp else nn.Identity()
        self.post_mlp_norm = make_norm(config, place="post") if config.post_mlp_norm else nn.Identity()
        self.mixture = MixtureBesideMLP(config) if config.mixture_beside_mlp else None
        self.layer = block_idx
        self.streams = None if config.streams is None else Streams(config)
        self.low_rank = None if config.residual_rank is None else LowRankPath(config)
        if config.mlp_sparsity is not None and config.mlp_sparsity[block_idx] > 0:
            self.mlp.cutoff = NormalDist().inv_cdf(config.mlp_sparsity[block_idx])
        self.layer_input = None if config.layer_inputs is None else LayerInput(config)
        if config.layer_scalars:
            self.register_buffer("layer_scalar", torch.ones(1))

    def forward(self, x: Tensor, context: AttentionContext) -> Tensor:
        """`(B, T, C)` → `(B, T, C)`."""
        if self.config.norm_after_residual:
            assert self.norm_2 is not None
            x = self.norm_1(self.attn(x, context) + x)
            return self.norm_2(self.mlp(x) + x)
        if self.streams is not None:
            return self.forward_streams(x, self.streams, context)
        if not self.mixes:
            return x + self.scale_residual(self.post_mlp_norm(self.mlp(self.norm_2(x))))  # type: ignore[misc]
        normed = self.norm_1(x)
        attended = self.attn(normed, context) if self.state is None else self.attend_beside(normed, context)
        attended = self.post_attention_norm(attended)
        if self.config.parallel_residual:
            normed = normed if self.norm_2 is None else self.norm_2(x)
            return self.post_mlp_norm(self.mlp(normed)) + attended + x
        x = self.scale_residual(attended) + x
        if not self.has_mlp:
            return x
        assert self.norm_2 is not None
        y = self.mlp(self.norm_2(x))
        if self.mixture is not None:
            y = self.mixture(x, y)
        x = self.scale_residual(self.post_mlp_norm(y)) + x
        if self.layer_input is not None:
            assert context.layer_inputs is not None
            x = x + self.layer_input(x, context.layer_inputs[:, :, self.layer])
        return x * self.layer_scalar if self.config.layer_scalars else x

    def forward_streams(self, x: Tensor, streams: Streams, context: AttentionContext) -> Tensor:
        """`(M, B, T, C)` → `(M, B, T, C)`: computes with one stream and corrects the others."""
        assert self.low_rank is not None and self.layer_input is not None and context.layer_inputs is not None
        assert self.norm_2 is not None
        predicted = streams.predict(x)
        active = predicted[streams.active]
        normed = self.norm_1(active)
        attended = self.post_attention_norm(self.attn(normed, context))
        y = (active + attended + self.low_rank(normed)) * 2**-0.5
        y = y + self.post_mlp_norm(self.mlp(self.norm_2(y)))
        corrected = streams.correct(predicted, y)
        return streams.add(corrected, self.layer_input, context.layer_inputs[:, :, self.layer])

    def attend_beside(self, normed: Tensor, context: AttentionContext) -> Tensor:
        """What attention and the state beside it make of the same tokens, `(B, T, C)` → `(B, T, C)`."""
        assert self.state is not None
        by = self.config.multipliers or dict.fromkeys(("attention_in", "attention_out", "state_out"), 1.0)
        attended = self.attn(normed * by["attention_in"], context) * by["attention_out"]
        return self.state(normed, context) * by["state_out"] + attended

    def scale_residual(self, x: Tensor) -> Tensor:
        """What a half of the block adds to the residual stream."""
        return x if self.config.residual_multiplier == 1 else x * self.config.residual_multiplier

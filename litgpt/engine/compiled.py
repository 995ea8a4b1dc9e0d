"""The decode step compiled: shapes are rounded up to a few, each block is compiled once for each, and on CUDA the whole
step is captured as a graph.

n: rows (running requests, rounded up), S: positions that attention looks at (rounded up), C: `n_embd`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor

from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.model.attention import AttentionContext
from litgpt.model.cache import KVCache, Span
from litgpt.model.rope import RopeTable
from litgpt.runtime import check_compiler

LEAST_POSITIONS = 256
"""Attention looks at this many positions, or twice, four times … as many."""
MOST_SHAPES = 64
"""Shapes of one model that are compiled; torch's own limit is for shapes that change by mistake."""


class CompiledStep:
    """Feeds every running request its last token, as `GPT.hidden` does, with fixed shapes.

    Raises:
        LitGPTError: There is no compiler, or the model is of a kind that can't be compiled.
    """

    def __init__(self, model: GPT, cache: KVCache, device: torch.device) -> None:
        check_compiler(device)
        if cache.states:
            raise LitGPTError("--compile true is not for models with linear attention; leave it out.")
        if model.config.shared_kv_layers:
            raise LitGPTError("--compile true is not for models whose layers share keys and values; leave it out.")
        if len({keys.device for keys in cache.keys}) > 1:
            raise LitGPTError("--compile true is for one device; leave it out.")
        self._model = model
        self._cache = cache
        self._device = device
        # A code object of its own: torch counts compiled shapes by it, and other engines have theirs.
        own = FunctionType(_run_block.__code__.replace(), globals(), "_run_block")
        self._block = torch.compile(own, dynamic=False)
        # Graphs read these by their address, and the model replaces its own when a longer sequence comes.
        self._ropes = [RopeTable(model.config, rope.base) for rope in model.ropes]
        for rope in self._ropes:
            rope.cos_sin(cache.length, cache.keys[0].device, cache.length)
        self._graphs: dict[tuple[int, int], CudaGraph] = {}
        self._pool: Any = None
        self._captures = device.type == "cuda" and model.config.n_expert == 0  # experts are chosen on the host

    def __call__(self, tokens: Sequence[int], starts: Sequence[int], headroom: Sequence[int]) -> Tensor:
        """The hidden states `(n, C)` of one more token in each of the first slots.

        Args:
            tokens: One a row.
            starts: The position of each.
            headroom: Of further slots: a position where a row without a request may write.
        """
        n, longest = len(tokens), max(starts) + 1
        rows = min(_rounded(n), n + len(headroom))
        fill = rows - n
        idx = torch.tensor([*tokens, *[0] * fill], device=self._device)[:, None]  # (rows, 1)
        places = torch.tensor([*starts, *headroom[:fill]], device=self._device)
        end = min(_rounded(max(longest, LEAST_POSITIONS)), self._cache.length)
        with torch._dynamo.config.patch(recompile_limit=MOST_SHAPES):
            hidden = self._graph(rows, end)(idx, places) if self._captures else self._run(idx, places, end)
        span = Span(self._cache, slice(0, n), starts)
        span.finish(1)
        return hidden[:n, 0]

    def _run(self, idx: Tensor, places: Tensor, end: int) -> Tensor:
        positions = places[:, None]  # (n, 1)
        x = self._model.embed(idx, positions)
        span = _Columns(self._cache, slice(0, idx.size(0)), [0] * idx.size(0), places, end)
        context = self._model.context(positions, end, span=span, ropes=self._ropes)
        context = replace(context, layer_inputs=self._model.layer_inputs(idx, x))
        for number, block in enumerate(self._model.transformer.h):
            keys, values = self._cache.keys[number], self._cache.values[number]
            x = self._block(block, x, replace(context, span=cast(Span, _Layer(keys, values, places, end))))
        hidden: Tensor = self._model.transformer.ln_f(x)
        return hidden

    def _graph(self, rows: int, end: int) -> CudaGraph:
        if (rows, end) not in self._graphs:
            if self._pool is None:  # one for all: they run one after the other, and results are copied out
                self._pool = torch.cuda.graph_pool_handle()
            run = partial(self._run, end=end)
            self._graphs[rows, end] = CudaGraph(run, rows, self._device, self._pool)
        return self._graphs[rows, end]


def _run_block(block: Callable[[Tensor, AttentionContext], Tensor], x: Tensor, context: AttentionContext) -> Tensor:
    return block(x, context)


def _rounded(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()


@dataclass(frozen=True)
class _Columns(Span):
    """A span whose positions are a tensor, so that masks of rings are made without asking for them."""

    places: Tensor | None = None
    upto: int = 0

    def key_positions(self, window: int | None, n_tokens: int) -> Tensor | None:
        """As `Span.key_positions`, for every row by itself."""
        size = None if window is None else self.cache.ring_sizes.get(window)
        if size is None or self.places is None:
            return None
        last = self.places[:, None]
        return last - (last - torch.arange(min(size, self.upto), device=last.device)) % size


class _Layer:
    """What a block needs of the cache: its own layer, without Python numbers that change."""

    def __init__(self, keys: Tensor, values: Tensor, places: Tensor, end: int) -> None:
        self.keys, self.values, self.places, self.end = keys, values, places, end

    def extend(self, layer: int, k: Tensor, v: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As `Span.extend`, for one token a row."""
        n, size = k.size(0), self.keys.size(2)
        rows = torch.arange(n, device=k.device)
        at = self.places % size  # the same place where the layer keeps all
        self.keys[rows, :, at] = k[:, :, 0]
        if v is not None:
            self.values[rows, :, at] = v[:, :, 0]
        end = min(self.end, size)
        return self.keys[:n, :, :end], self.values[:n, :, :end]


class CudaGraph:
    """One shape of the step as a CUDA graph."""

    def __init__(self, run: Callable[[Tensor, Tensor], Tensor], rows: int, device: torch.device, pool: Any) -> None:
        self._pool = pool
        self._idx = torch.zeros((rows, 1), dtype=torch.long, device=device)
        self._places = torch.zeros(rows, dtype=torch.long, device=device)
        self._run = run
        self._graph: Any = None
        self._hidden: Tensor | None = None

    def __call__(self, idx: Tensor, places: Tensor) -> Tensor:
        self._idx.copy_(idx)
        self._places.copy_(places)
        if self._graph is None:
            self._capture()
        self._graph.replay()
        assert self._hidden is not None
        return self._hidden.clone()

    def _capture(self) -> None:
        """Runs once on the real inputs (which a replay repeats), so that everything is compiled and allocated, then
        records."""
        stream = torch.cuda.Stream(self._idx.device)
        stream.wait_stream(torch.cuda.current_stream(self._idx.device))
        with torch.cuda.stream(stream):
            self._run(self._idx, self._places)
        torch.cuda.current_stream(self._idx.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=self._pool):
            self._hidden = self._run(self._idx, self._places)

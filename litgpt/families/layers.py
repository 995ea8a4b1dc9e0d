"""What a model's settings say of one of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any


@dataclass
class Layers:
    """The part of a `Config` that answers for each layer by its number."""

    if TYPE_CHECKING:  # fields of the `Config`; here they would stand before its others
        n_layer: int
        n_head: int
        head_size: int | None
        n_query_groups: int | None
        heads_by_layer: list[int] | None
        value_size: int | None
        sliding_window_size: int | None
        sliding_window_indices: list[int] | None
        attention_gate: bool
        linear_attention: dict[str, Any] | None
        state_space: dict[str, Any] | None
        short_conv: dict[str, Any] | None
        linear_attention_indices: list[int] | None
        sparse_attention: dict[str, Any] | None
        sparse_layers: list[int] | None
        indexer_layers: list[int] | None
        mixer_layers: list[int] | None
        state_beside_attention: bool
        global_heads: dict[str, Any] | None
        shared_kv_layers: int
        moe_layers: list[int] | None
        first_k_dense_replace: int | None

    def window(self, layer: int) -> int | None:
        """How many tokens back (itself included) layer number `layer` sees; None: all."""
        return self.sliding_window_size if self.sliding_window_indices and self.sliding_window_indices[layer] else None

    @property
    def recurrent(self) -> dict[str, Any] | None:
        """The settings of layers that keep a state in the place of keys and values, of whatever kind."""
        return self.linear_attention or self.state_space or self.short_conv

    def mixes(self, layer: int) -> bool:
        """Whether layer number `layer` has attention, or a state in its place."""
        return self.mixer_layers is None or bool(self.mixer_layers[layer])

    def has_mlp(self, layer: int) -> bool:
        """Whether layer number `layer` has an MLP, or experts in its place."""
        return self.mixer_layers is None or not self.mixer_layers[layer]

    def linear(self, layer: int) -> bool:
        """Whether layer number `layer` keeps a state in the place of keys and values."""
        if self.recurrent is None or self.state_beside_attention or not self.mixes(layer):
            return False
        return bool((self.linear_attention_indices or [1] * self.n_layer)[layer])

    def has_state(self, layer: int) -> bool:
        """Whether layer number `layer` keeps a state, beside keys and values or in their place."""
        return self.linear(layer) or self.state_beside_attention

    def shares_kv(self, layer: int) -> bool:
        """Whether layer number `layer` attends to the keys and values of one before it."""
        return layer >= self.n_layer - self.shared_kv_layers

    def heads(self, layer: int) -> int:
        """Query heads of layer number `layer`."""
        return self.n_head if self.heads_by_layer is None else self.heads_by_layer[layer]

    def values_of(self, size: int) -> int:
        """The size of a head's values, whose keys are of `size`."""
        return size if self.value_size is None else self.value_size

    def kv_heads(self, layer: int) -> tuple[int, int, int]:
        """Heads of keys and of values that layer number `layer` makes, and the size of its heads."""
        assert self.head_size is not None and self.n_query_groups is not None
        groups, size, values = self.n_query_groups, self.head_size, self.n_query_groups
        if self.global_heads is not None and self.window(layer) is None:
            groups, size = self.global_heads["n_query_groups"], self.global_heads["head_size"]
            values = 0 if self.global_heads["keys_are_values"] else groups
        return (0, 0, size) if self.shares_kv(layer) else (groups, values, size)

    def qkv_rows(self, layer: int | None = None) -> tuple[int, int, int]:
        """Rows of queries (with their gates), keys and values in `attn.qkv` of a layer, or of those that hold keys."""
        if layer is not None and self.linear(layer):
            sizes = self.linear_attention
            if sizes is None:
                return 0, 0, 0
            keys = sizes["n_key_heads"] * sizes["key_size"]
            return keys, keys, sizes["n_value_heads"] * sizes["value_size"]
        keys, values, size = self.kv_heads(layer or 0)
        queries = (2 if self.attention_gate else 1) * self.heads(layer or 0)
        return queries * size, keys * size, values * self.values_of(size)

    def indexer(self, layer: int) -> int | None:
        """The layer that chooses the tokens which layer number `layer` attends to; None: it attends to all."""
        if self.sparse_attention is None or (self.sparse_layers and not self.sparse_layers[layer]):
            return None
        own = self.indexer_layers or [1] * self.n_layer
        return max(earlier for earlier in range(layer + 1) if own[earlier])

    def dense(self, layer: int) -> bool:
        """Whether layer number `layer` of a mixture has an MLP in the place of experts."""
        if self.moe_layers is not None:
            return not self.moe_layers[layer]
        return layer < (self.first_k_dense_replace or 0)

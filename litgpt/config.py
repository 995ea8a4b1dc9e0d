"""A model's shape and computation: `Config`, its named sizes, and where it is read from and written to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Self, get_type_hints

import yaml

from litgpt import families
from litgpt.errors import LitGPTError, MissingFileError, closest, quoted
from litgpt.families.base import Family
from litgpt.families.field_types import BY_LAYER, as_number, check_heads, check_values, fits
from litgpt.families.hf_config import check_layers
from litgpt.families.layers import Layers
from litgpt.hub_client import HF_CONFIG_FILE, hf_config_file
from litgpt.reading import read_json, read_yaml, reading

CONFIG_FILE = "model_config.yaml"
MODEL_SETTINGS = "not a YAML file of model settings"


def find_multiple(n: int, k: int) -> int:
    """The smallest multiple of `k` that is at least `n`."""
    return n + -n % k


@dataclass
class Config(Layers):
    """What a model is made of, by LitGPT's field names and defaults: its `model_config.yaml` means the same here."""

    name: str = ""
    hf_config: dict[str, Any] = field(default_factory=dict)
    """`{"org": …, "name": …}` of the checkpoint on the hub."""
    # -- sizes
    block_size: int = 4096
    """Longest sequence, in tokens."""
    n_layer: int = 16
    n_embd: int = 4096
    vocab_size: int = 50254
    padding_multiple: int = 512
    padded_vocab_size: int | None = None
    """Rows of the embedding; unset: `vocab_size` rounded up to `padding_multiple`."""
    # -- norms and residuals
    norm_class_name: Literal["LayerNorm", "RMSNorm"] = "LayerNorm"
    norm_eps: float = 1e-5
    norm_qk: bool = False
    norm_qk_type: Literal["default", "olmo2", "by_head"] = "default"
    """One norm that every head shares; one over all heads; one a head, without biases."""
    post_attention_norm: bool = False
    post_mlp_norm: bool = False
    parallel_residual: bool = True
    shared_attention_norm: bool = False
    # -- attention
    n_head: int = 32
    head_size: int | None = None
    n_query_groups: int | None = None
    """Key-value heads: `n_head` is multi-head, 1 multi-query, between them grouped-query attention."""
    attn_bias: bool = False
    """A bias on `attn.qkv` even where `bias` is off."""
    attention_scores_scalar: float | None = None
    """Scores are divided by the root of this; unset: `head_size`."""
    sliding_window_size: int | None = None
    sliding_window_indices: list[int] | None = None
    """Per layer: 1 where attention sees the last `sliding_window_size` tokens only. Unset: every layer."""
    attention_logit_softcapping: float | None = None
    # -- rotary positions
    rope_base: int | float = 10000
    rotary_percentage: float = 0.25
    """Share of a head's dimensions that rotate."""
    rope_condense_ratio: int = 1
    rope_adjustments: dict[str, Any] | None = None
    """`{factor}`: linear; `{factor, low_freq_factor, high_freq_factor, original_max_seq_len}`: Llama 3; `{factor,
    beta_fast, beta_slow, original_max_seq_len[, mscale, mscale_all_dim, attention_factor, truncate]}`: YaRN;
    `{factor, dynamic_beyond}`: a base that grows with sequences longer than that."""
    rope_interleave: bool = False
    """Neighbouring dimensions rotate together, rather than those half a head apart."""
    # -- MLP
    intermediate_size: int | None = None
    moe_intermediate_size: int | None = None
    bias: bool = True
    mlp_class_name: Literal["GptNeoxMLP", "LLaMAMLP", "GemmaMLP", "LLaMAMoE"] = "GptNeoxMLP"
    gelu_approximate: Literal["none", "tanh"] = "none"
    # -- mixture of experts
    n_expert: int = 0
    n_shared_expert: int | None = None
    n_expert_groups: int | None = None
    n_topk_groups: int | None = None
    n_topk_scores_per_group: int | None = None
    n_expert_per_token: int = 0
    first_k_dense_replace: int | None = None
    routed_scaling_factor: float = 1.0
    norm_topk_prob: bool = False
    # -- embedding and head
    scale_embeddings: bool = False
    lm_head_bias: bool = False
    final_logit_softcapping: float | None = None
    norm_1: bool = True
    norm_2: bool = True
    # -- latent attention, local rotary positions
    latent_attention: dict[str, Any] | None = None
    rope_local_base_freq: float | None = None
    rope_indices: list[int] | None = None

    # -- Fields LitGPT doesn't have; each default is what LitGPT computes.
    tie_embeddings: bool | None = None
    """The head is the embedding. Unset: as the named size says, else not. Not written: the weights tell."""
    learned_positions: bool = False
    """`transformer.wpe` instead of rotary positions."""
    positions_offset: int = 0
    """The row of `transformer.wpe`, or of the sinusoids, that the first position has."""
    sinusoidal_span: float | None = None
    """Instead of rotary positions, sines and cosines of position · 10000^(-i / this) are added to the embeddings."""
    alibi: dict[str, Any] | None = None
    """`{max_bias[, in_bfloat16]}`: instead of rotary positions, scores fall with distance, down to 2^-max_bias a token
    (https://arxiv.org/abs/2108.12409); `in_bfloat16`: by values rounded so, and scaled as queries and keys are."""
    padding_row: int | None = None
    """Of the embedding: zero whatever a file says, as it is in transformers' class."""
    norm_embeddings: bool = False
    """`transformer.ln_e` norms what the first block gets."""
    norm_after_residual: bool = False
    """A block's norms come after each half is added to the residual stream, not before it."""
    final_norm: bool = True
    """There is `transformer.ln_f`."""
    norm_inner: bool = False
    """RMSNorms before `attn.proj` and `mlp.proj`, over all heads and over the hidden units."""
    norm_bias: bool = True
    """LayerNorm has a bias."""
    norm_affine: bool | None = None
    """The norms have weights. Unset: as the family says, else they do."""
    norm_unit_offset: bool | None = None
    """A norm scales by `1 + weight`. Unset: as the family says, else by `weight`."""
    attn_proj_bias: bool = False
    """A bias on `attn.proj` even where `bias` is off."""
    mlp_bias: bool = False
    """Biases in the MLP even where `bias` is off."""
    activation: str | None = None
    """Of the MLP, one of `litgpt.families.hf_config.ACTIVATIONS`. Unset: SiLU in a LLaMAMLP, else GELU."""
    expert_bias: bool = False
    """The router and the experts have biases."""
    swiglu_limit: float | None = None
    """Experts, and gated MLPs, clamp gate and carrier to this, and carry one more than the carrier (gpt-oss)."""
    attention_sinks: bool = False
    """Each head has a learned share of attention that goes nowhere."""
    sinks_in_windows: bool = False
    """Only in layers with a window."""
    router_scores: Literal["softmax", "sigmoid"] | None = None
    """How a router scores experts. Unset: sigmoid where they are in groups, else softmax."""
    router_softmax_over_all: bool = False
    """The chosen experts' weights are their shares among all experts, rather than among the chosen."""
    router_scales_inputs: bool = False
    """The chosen experts' weights scale what the experts get, rather than what they give."""
    moe_layers: list[int] | None = None
    """Per layer: 0 where an MLP of `intermediate_size` stands in the place of experts. Unset: as
    `first_k_dense_replace` says."""
    qkv_clip: float | None = None
    """Queries, keys and values are clamped to ± this."""
    rope_layers: list[int] | None = None
    """Per layer: 0 where nothing rotates (NoPE). Unset: every layer rotates."""
    rope_local_percentage: float | None = None
    """Share of a head's dimensions that rotate in layers with local rotary positions. Unset: `rotary_percentage`."""
    rope_reversed: bool = False
    """Dimensions rotate the other way round."""
    norm_qk_rotated: bool = False
    """The norms of queries and keys come after they rotate."""
    norm_exceptions: dict[str, Any] | None = None
    """`{qk, embeddings, post, last}`, of each `{affine, unit_offset, eps}` as far as these norms are unlike the others:
    those of queries and keys, of embeddings, after each half of a block, and after all blocks."""
    norm_turned: bool = False
    """Where queries and keys rotate, they are normed afterwards, without weights."""
    query_tuning: dict[str, Any] | None = None
    """`{scale, floor, offset, unturned_only}`: queries at position p are multiplied with
    1 + scale · log(1 + ⌊(p + offset) / floor⌋), in every layer or only where nothing rotates."""
    chunked_windows: bool = False
    """A window doesn't slide: a token sees what is in its own block of `sliding_window_size` positions."""
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    """What attention and MLP add to the residual stream is multiplied with this."""
    logits_divisor: float = 1.0
    attention_gate: bool = False
    """`attn.qkv` gives each query head as many values again, whose sigmoid scales what the head has found."""
    head_gates: bool = False
    """`attn.gate` gives each query head one value, whose sigmoid scales what the head has found."""
    gate_activation: Literal["sigmoid", "softplus"] = "sigmoid"
    """In the place of the sigmoid of either."""
    router_eps: float = 1e-20
    """Added to the sum that the chosen experts' weights are divided by."""
    router_margin: float | None = None
    """Experts are chosen one after the other; each counts by its share among those not further below it than twice
    this, relatively (SparseMixer)."""
    mixture_beside_mlp: bool = False
    """Every layer has experts beside its MLP, on the same tokens; a router of normed tokens chooses among them."""
    router_bias: bool | None = None
    """A bias has a say in the choice of experts (in groups). Unset: where sigmoids score them."""
    shared_intermediate_size: int | None = None
    """Width of what all tokens share. Unset: `n_shared_expert` times an expert's."""
    shared_expert_gate: bool = False
    """What the shared expert adds is scaled by the sigmoid of one more score of the token."""
    ungated_mlps: bool = False
    """Experts, and MLPs in their place or for all tokens, have no gates: up, `activation`, down."""
    expert_embd: int | None = None
    """Experts work on so many values, which `mlp.latent_in` makes of a token's and `mlp.latent_out` puts back."""
    mixer_layers: list[int] | None = None
    """Per layer: 1 where a block is attention or a state alone, 0 where it is an MLP alone. Unset: each is both."""
    mixture_divisor: float = 1.0
    """What the experts of a layer give together with those for all tokens is divided by this."""
    sparse_attention: dict[str, Any] | None = None
    """`{n_heads, head_size, top_k, interleave}`: a query of latent attention sees the `top_k` tokens that such an
    indexer scores highest (https://arxiv.org/abs/2512.02556). `{n_heads, head_size, top_k, block_size, local_blocks}`:
    grouped queries see as many blocks of tokens, other ones for each head of the indexer, the last blocks always."""
    sparse_layers: list[int] | None = None
    """Per layer: 0 where attention is to all tokens all the same. Unset: nowhere."""
    indexer_layers: list[int] | None = None
    """Per layer: 0 where the tokens are those that the layer before it has chosen. Unset: each chooses."""
    linear_attention: dict[str, Any] | None = None
    """`{n_key_heads, n_value_heads, key_size, value_size, kernel_size[, by_channel]}` of layers that keep one matrix a
    head in the place of keys and values (gated delta rule); `by_channel`: which forgets channel by channel
    (https://arxiv.org/abs/2510.26692)."""
    state_space: dict[str, Any] | None = None
    """`{n_heads, head_size, n_groups, state_size, kernel_size, bias, conv_bias[, least_time, most_time, norm,
    gate_last, out_bias]}` of layers of Mamba 2. `norm`: False where they are not normed, `gate_last`: they are
    gated after it, `out_bias`: of `proj`."""
    state_beside_attention: bool = False
    """Every layer has attention and a state beside each other, on the same tokens; what they give is added."""
    multipliers: dict[str, Any] | None = None
    """`{keys, attention_in, attention_out, state_in, state_out, state_parts, gate, mlp_out}`: what these are multiplied
    with; `state_parts` are five, of the gate, x, B, C and d (https://arxiv.org/abs/2507.22448)."""
    short_conv: dict[str, Any] | None = None
    """`{kernel_size, bias}` of layers that mix by a gated convolution over a few tokens."""
    linear_attention_indices: list[int] | None = None
    """Per layer: 0 where attention is over keys and values all the same. Unset: nowhere."""
    heads_by_layer: list[int] | None = None
    """Per layer: query heads. Unset: `n_head`."""
    value_size: int | None = None
    """Of a head's values. Unset: `head_size`."""
    values_multiplier: float = 1.0
    global_heads: dict[str, Any] | None = None
    """`{head_size, n_query_groups, keys_are_values}` of layers without a window, where they are others."""
    shared_kv_layers: int = 0
    """So many last layers attend to the keys and values of the last layer of their kind before them."""
    wide_sharing_mlp: bool = False
    """These layers have MLPs twice as wide."""
    norm_values: bool = False
    """Values are normed, without weights."""
    layer_inputs: dict[str, Any] | None = None
    """`{size, vocab_size}` of what each layer is given of each token besides (per-layer embeddings)."""
    streams: dict[str, Any] | None = None
    """`{count, active, scaled}`: the residual stream is several, of which a block computes with one and corrects the
    others by what it gives (AltUp, https://arxiv.org/abs/2301.13310); `scaled`: by a weight for each value besides."""
    residual_rank: int | None = None
    """A path of this rank beside attention adds to the residual stream (LAuReL, https://arxiv.org/abs/2411.07501)."""
    mlp_sparsity: list[float] | None = None
    """Per layer: the share of hidden units of a gated MLP that are cut off, as if they were normally distributed."""
    layer_scalars: bool = False
    """What a layer gives is multiplied with one number of its own."""
    family_name: str | None = None
    """Which file of `litgpt.families` holds its tables. Unset: by name, else by structure."""

    def __post_init__(self) -> None:
        check_values(self, _types())
        self.name = self.name or str(self.hf_config.get("name", ""))
        for own, value in self._derived().items():
            if getattr(self, own) is None:
                setattr(self, own, value)
        if self.n_embd % self.n_head and self.head_size is None:
            if self.latent_attention is None:
                raise LitGPTError(f"n_embd ({self.n_embd}) is no multiple of n_head ({self.n_head}); set head_size.")
            self.head_size = self.latent_attention["qk_nope_head_dim"] + self.latent_attention["qk_rope_head_dim"]
        self.head_size = self.head_size or self.n_embd // self.n_head
        if self.padded_vocab_size is None:
            self.padded_vocab_size = find_multiple(self.vocab_size, self.padding_multiple)
        else:
            self.vocab_size = min(self.vocab_size, self.padded_vocab_size)
        self.n_query_groups = self.n_query_groups or self.n_head
        check_heads(self)
        if self.intermediate_size is None:
            if self.mlp_class_name == "LLaMAMLP":
                raise LitGPTError(
                    f"intermediate_size must be given for a {self.mlp_class_name} ({self.name or 'unnamed model'})."
                )
            self.intermediate_size = 4 * self.n_embd
        if self.sliding_window_size is not None:
            self.sliding_window_indices = self.sliding_window_indices or [1] * self.n_layer
        if self.recurrent is not None:
            self.linear_attention_indices = self.linear_attention_indices or [1] * self.n_layer
        sizes = self.linear_attention
        if sizes is not None and sizes["n_value_heads"] % sizes["n_key_heads"]:
            raise LitGPTError("linear_attention has a number of value heads that is no multiple of its key heads.")
        for name in (*BY_LAYER, "heads_by_layer"):
            values = getattr(self, name)
            if values is not None and len(values) < self.n_layer:
                raise LitGPTError(f"{name} has {len(values)} entries for {self.n_layer} layers.")
            setattr(self, name, values and values[: self.n_layer])

    # -- derived values

    @property
    def rope_n_elem(self) -> int:
        """Dimensions of a head that rotate."""
        if self.latent_attention is not None:
            return int(self.latent_attention["qk_rope_head_dim"])
        assert self.head_size is not None
        return int(self.rotary_percentage * self.head_size)

    @property
    def rotates(self) -> bool:
        """Whether positions are rotary."""
        return not self.learned_positions and self.sinusoidal_span is None and self.alibi is None

    @property
    def mlp_class(self) -> type[Any]:
        """The class in `litgpt.model` that `mlp_class_name` names; this needs torch, as `norm_class` does."""
        found: type[Any] = getattr(import_module("litgpt.model"), self.mlp_class_name)
        return found

    @property
    def norm_class(self) -> Callable[..., Any]:
        """What makes a norm of this model: `norm_class(size, eps=…)`."""
        found: Callable[..., Any] = import_module("litgpt.model.norm").norm_class(self)
        return found

    @cached_property
    def family(self) -> Family:
        """The family whose tables this model is read and written by."""
        assert self.family_name is not None
        if self.family_name not in families.BY_NAME:
            raise LitGPTError(
                f"No model family {quoted(self.family_name)}.{closest(self.family_name, families.BY_NAME)}"
            )
        return families.BY_NAME[self.family_name]

    # -- reading

    @classmethod
    def from_name(cls, name: str, **overrides: Any) -> Self:
        """A named size; `name` may carry its organisation (`meta-llama/Llama-3.2-1B`) or be the name on the hub.

        Raises:
            LitGPTError: The name is not known.
        """
        row = named_row(name)
        if row is None:
            raise LitGPTError(
                f"{quoted(name)} is not a known model name.{closest(name, name_to_config)} "
                "`litgpt download list` shows all."
            )
        return cls(**{**deepcopy(row), **_checked(overrides, cls)})

    @classmethod
    def from_file(cls, path: str | Path, **overrides: Any) -> Self:
        """A `model_config.yaml`.

        Raises:
            LitGPTError: No such file, not YAML, or keys that are not fields of `Config`.
        """
        path = Path(path)
        if not path.exists():
            raise MissingFileError(f"There is no model configuration at {path}.")
        content = read_yaml(path, MODEL_SETTINGS)
        if not isinstance(content, dict):
            raise LitGPTError(f"{path} is empty or not a YAML mapping of model settings.")
        numbers = {key: as_number(content[key]) for key, hint in _types().items() if key in content and fits(0.5, hint)}
        with reading(path, MODEL_SETTINGS):
            try:
                return cls(**{**_checked(content, cls), **numbers, **_checked(overrides, cls)})
            except LitGPTError as error:
                raise LitGPTError(f"{path} can't be used: {error}") from None

    @classmethod
    def from_hf(cls, hf_config: Mapping[str, Any] | str | Path, name: str = "", **overrides: Any) -> Self:
        """What a Hugging Face `config.json` says, by its architecture, whatever the checkpoint's name.

        A known `name` is kept in LitGPT's spelling; where the named size computes the same, it is that size.

        Args:
            hf_config: Its content; or the folder it is in; or `ORG/NAME` on the hub, which it is fetched from.
            name: Of the checkpoint; of a folder or repository: its own unless given.
            overrides: Other fields.

        Raises:
            LitGPTError: Unknown architecture, or a key that changes the computation in a way not known here; or there
                is no such folder or repository.
        """
        if isinstance(hf_config, str | Path):
            file, found_name = hf_config_file(hf_config, _by_hub_name())
            hf_config, name = read_json(file), name or found_name
        with reading(HF_CONFIG_FILE, "no configuration of a model"):
            check_layers(hf_config)
            family = families.by_architecture(hf_config)
            found = family.read_hf(hf_config)
            rows = found.get("padded_vocab_size")
            found = {"vocab_size": rows, **found, "name": name, "family_name": family.name}
            config = cls(**{**found, **_checked(overrides, cls)})
        known = named_row(name)
        if known is None or overrides:
            return config
        row = cls(**deepcopy(known))
        if row.computation() == config.computation():
            return row
        return replace(config, name=row.name, hf_config=row.hf_config)

    @classmethod
    def from_checkpoint(cls, path: str | Path, **overrides: Any) -> Self:
        """The configuration of a checkpoint folder: of `model_config.yaml`, else of `config.json`, else by its name.

        Raises:
            LitGPTError: The folder tells of no model.
        """
        path = Path(path)
        hf_config = read_json(path / HF_CONFIG_FILE) if (path / HF_CONFIG_FILE).is_file() else None
        if (path / CONFIG_FILE).is_file():
            config = cls.from_file(path / CONFIG_FILE, **overrides)
            if config.name not in name_to_config and hf_config and hf_config.get("architectures"):
                with suppress(LitGPTError):  # one that is not known here, or none, tells nothing
                    config.family_name = families.by_architecture(hf_config).name
            return config
        if hf_config is not None:
            return cls.from_hf(hf_config, name=path.resolve().name, **overrides)
        if named_row(path.name) is not None:
            return cls.from_name(path.name, **overrides)
        raise MissingFileError(
            f"{path} has neither {CONFIG_FILE} nor {HF_CONFIG_FILE}, so it is not known which model it holds."
        )

    # -- writing

    def to_dict(self) -> dict[str, Any]:
        """LitGPT's 51 keys, and of ours those that a reader of the others could not derive."""
        values = asdict(self)
        values = {entry.name: values[entry.name] for entry in fields(Config)}  # without those that a subclass adds
        derived = {**OWN_DEFAULTS, **self._derived()}
        own = {key for key in OWN_DEFAULTS if values[key] != derived[key]} - {"tie_embeddings"}
        if own == {"family_name"}:
            own = set()  # it computes like the derived family; its config.json lies beside where that is to be kept
        return {key: value for key, value in values.items() if key not in OWN_DEFAULTS or key in own}

    def save(self, folder: str | Path) -> None:
        """Writes `model_config.yaml` into `folder`."""
        (Path(folder) / CONFIG_FILE).write_text(yaml.dump(self.to_dict()), encoding="utf-8")

    def _derived(self) -> dict[str, Any]:
        """What a `model_config.yaml` without our own fields means: the named size says it, else the structure."""
        row = name_to_config.get(self.name, {})
        values = {"tie_embeddings": False, "norm_affine": True, "norm_unit_offset": False}
        family_name = row.get("family_name") or families.by_structure(self.mlp_class_name, self.learned_positions).name
        scores = "softmax" if self.n_expert_groups is None else "sigmoid"
        return {own: row.get(own, value) for own, value in values.items()} | {
            "family_name": family_name,
            "router_scores": scores,
            "router_bias": (self.router_scores or scores) == "sigmoid",
        }

    def computation(self) -> dict[str, Any]:
        """The fields that decide what is computed: all but names and the size of the vocabulary before padding."""
        values = {**asdict(self), "rope_base": float(self.rope_base)}
        for label in ("name", "hf_config", "vocab_size", "padding_multiple"):
            del values[label]
        return values


OWN_DEFAULTS: dict[str, Any] = {
    own.name: own.default for own in fields(Config)[[entry.name for entry in fields(Config)].index("tie_embeddings") :]
}
"""The fields LitGPT doesn't have."""


@cache
def _types() -> dict[str, Any]:
    return get_type_hints(Config)


def _checked(values: dict[str, Any], cls: type[Config]) -> dict[str, Any]:
    known = [entry.name for entry in fields(cls)]
    for key in values:
        if key not in known:
            raise LitGPTError(f"{quoted(key)} is not a model setting.{closest(str(key), known)}")
    return values


def named_row(name: str) -> dict[str, Any] | None:
    """The row of a named size, by its name here or on the hub; None: there is none."""
    return name_to_config.get(name) or _by_hub_name().get(name)


def _by_hub_name() -> dict[str, dict[str, Any]]:
    found = {}
    for row in name_to_config.values():
        hub = row["hf_config"]
        found[hub["name"]] = found[f"{hub['org']}/{hub['name']}"] = found[f"{hub['org']}/{row['name']}"] = row
    return found


name_to_config: dict[str, dict[str, Any]] = families.named_rows()
configs: list[dict[str, Any]] = list(name_to_config.values())

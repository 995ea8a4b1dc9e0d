"""What GGUF, llama.cpp's file format, calls a family's settings and tensors: one row a family, read in both directions.

Keys and tensors: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; `checkpoint.gguf.reader` opens the files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from litgpt.errors import LitGPTError, escaped, quoted
from litgpt.families.base import Drop, Join, Rule, Same, Split

Metadata = dict[str, Any]
"""The file's key-value pairs, read into plain Python values."""

REAL = frozenset(
    """
    norm_eps rope_local_base_freq attention_logit_softcapping final_logit_softcapping qkv_clip embedding_multiplier
    residual_multiplier logits_divisor routed_scaling_factor rope_base query_tuning.scale
    """.split()
)
"""Fields that are written as floating-point numbers even where they are whole."""
IGNORED = frozenset(
    {"vocab_size", "tensor_data_layout", "rope.scaling.original_context_length", "rope.scaling.finetuned"}
)
"""Keys that change nothing, or only together with others that are refused."""

COMMON = (
    Same("token_embd", "transformer.wte"),
    Same("blk.{i}.attn_norm", "transformer.h.{i}.norm_1"),
    Same("blk.{i}.attn_output", "transformer.h.{i}.attn.proj"),
    Same("blk.{i}.ffn_norm", "transformer.h.{i}.norm_2"),
    Same("blk.{i}.ffn_down", "transformer.h.{i}.mlp.proj"),
    Same("output_norm", "transformer.ln_f"),
    Same("output", "lm_head"),
)
FUSED_QKV = (Same("blk.{i}.attn_qkv", "transformer.h.{i}.attn.qkv"),)
SPLIT_QKV = (Join(("blk.{i}.attn_q", "blk.{i}.attn_k", "blk.{i}.attn_v"), "transformer.h.{i}.attn.qkv"),)
PLAIN_MLP = (Same("blk.{i}.ffn_up", "transformer.h.{i}.mlp.fc"),)
GATED_MLP = (
    Same("blk.{i}.ffn_gate", "transformer.h.{i}.mlp.fc_1"),
    Same("blk.{i}.ffn_up", "transformer.h.{i}.mlp.fc_2"),
)
FUSED_GATE = (Split("blk.{i}.ffn_up", ("transformer.h.{i}.mlp.fc_1", "transformer.h.{i}.mlp.fc_2")),)
EXPERTS = (
    Same("blk.{i}.ffn_gate_inp", "transformer.h.{i}.mlp.gate"),
    Same("blk.{i}.ffn_gate_exps.{e}", "transformer.h.{i}.mlp.experts.{e}.fc_1"),
    Same("blk.{i}.ffn_up_exps.{e}", "transformer.h.{i}.mlp.experts.{e}.fc_2"),
    Same("blk.{i}.ffn_down_exps.{e}", "transformer.h.{i}.mlp.experts.{e}.proj"),
)
"""Files hold all experts of a layer in one tensor, `blk.{i}.ffn_gate_exps.weight`; its parts are numbered here."""
SHARED_EXPERTS = (
    Same("blk.{i}.ffn_gate_shexp", "transformer.h.{i}.mlp.shared_experts.fc_1"),
    Same("blk.{i}.ffn_up_shexp", "transformer.h.{i}.mlp.shared_experts.fc_2"),
    Same("blk.{i}.ffn_down_shexp", "transformer.h.{i}.mlp.shared_experts.proj"),
)
NORMED_HEADS = (
    Same("blk.{i}.attn_q_norm", "transformer.h.{i}.attn.norm_q"),
    Same("blk.{i}.attn_k_norm", "transformer.h.{i}.attn.norm_k"),
)
NORMED_OUTPUTS = (
    Same("blk.{i}.post_attention_norm", "transformer.h.{i}.post_attention_norm"),
    Same("blk.{i}.post_ffw_norm", "transformer.h.{i}.post_mlp_norm"),
)
PAIRED_HEADS = (("blk.{i}.attn_q", "n_head"), ("blk.{i}.attn_k", "n_query_groups"))
YARN = {
    "factor": ("factor", None),
    "original_context_length": ("original_max_seq_len", None),
    "yarn_beta_fast": ("beta_fast", 32.0),
    "yarn_beta_slow": ("beta_slow", 1.0),
    "yarn_attn_factor": ("attention_factor", None),
}
"""Key after `rope.scaling.` ↔ key of `rope_adjustments`, and what it is where a file leaves it out."""
ROPE_FREQUENCIES = "rope_freqs.weight"
"""What each frequency is divided by, in models whose RoPE is stretched; it becomes a part of the config."""
STRETCHED = (Drop(ROPE_FREQUENCIES),)


REQUIRED: Any = object()
"""In the place of a default: a file without the key is refused."""
UNSET: Any = object()
"""In the place of a default: a file without the key means what the family's, or `Config`'s own, default is."""


@dataclass(frozen=True)
class Key:
    """A metadata key, without the architecture before it, and what it says of a `Config`; read in both directions."""

    name: str
    field: str = ""
    """Of `Config`, or an entry of one: `latent_attention.v_head_dim`; empty: the key says nothing that others don't,
    and may be left out."""
    default: Any = REQUIRED
    """The value in a file that leaves the key out."""
    read: Callable[[Any, Metadata], Any] | None = None
    """A file's value → the field's, given the fields that were read before; None: the same for all layers."""
    write: Callable[[Any, Any], Any] = lambda value, config: value
    """A field's value → the file's, given the `Config`; None is not written."""
    known: tuple[Any, ...] | None = None
    """The values that are understood; None: all."""

    def take(self, arch: str, left: Metadata, found: Metadata) -> None:
        """Moves the key's value from what is left of a file to the fields that were found.

        Raises:
            LitGPTError: The file hasn't got it, or has a value for each layer where only one for all is understood.
        """
        if self.known is not None and left.get(self.name, self.known[0]) not in self.known:
            return
        value = left.pop(self.name, self.default if self.field else None)
        if value is REQUIRED:
            raise LitGPTError(f"The GGUF file has no `{arch}.{self.name}`, which a model of its architecture needs.")
        if value is UNSET or not (self.field or self.read):
            return
        value = self.read(value, found) if self.read else _same_in_all_layers(f"{arch}.{self.name}", value)
        field, _, entry = self.field.partition(".")
        if field:
            found[field] = {**found.get(field, {}), entry: value} if entry else value

    def written(self, config: Any) -> Any:
        """The key's value in a file; None: the file leaves it out."""
        field, _, entry = self.field.partition(".")
        value: Any = getattr(config, field) if field else None
        value = self.write(value[entry] if entry else value, config)
        return value if value is None or self.field not in REAL else float(value)


def head_size(found: Mapping[str, Any]) -> int:
    """The dimensions of a head, given the fields that were read."""
    return int(found.get("head_size") or found["n_embd"] // found["n_head"])


def check_value_length(size: int | None, found: Mapping[str, Any]) -> None:
    """Raises a LitGPTError where values are of another size than keys."""
    if size not in (None, head_size(found)):
        raise LitGPTError("The GGUF file has values of another size than its keys, which no model here has.")


FIELDS = (
    Key("context_length", "block_size"),
    Key("embedding_length", "n_embd"),
    Key("block_count", "n_layer"),
    Key("feed_forward_length", "intermediate_size"),
    Key("attention.head_count", "n_head"),
)
"""Every file has them."""
HEADS = (Key("attention.head_count_kv", "n_query_groups"), Key("attention.key_length", "head_size"))
"""A file may leave them out."""
VALUE_LENGTH = Key("attention.value_length", read=check_value_length, write=lambda _, config: config.head_size)
ROPE = (
    Key(
        *("rope.dimension_count", "rotary_percentage", None),
        read=lambda size, found: share(head_size(found) if size is None else size, head_size(found)),
        write=lambda _, config: config.rope_n_elem,
    ),
    Key("rope.freq_base", "rope_base", 10000.0, read=lambda base, _: int(base) if base == int(base) else base),
)
EXPERT_FIELDS = (Key("expert_count", "n_expert"), Key("expert_used_count", "n_expert_per_token"))
WINDOW = Key("attention.sliding_window", "sliding_window_size")


def windowed_layers(every: int) -> Key:
    """Which layers have a window; where it is not said, one in `every` has none."""

    def read(pattern: Any, found: Metadata) -> list[int]:
        pattern = pattern or [(layer + 1) % every for layer in range(found["n_layer"])]
        return [int(bool(windowed)) for windowed in pattern]

    def write(indices: Any, config: Any) -> list[bool] | None:
        return [bool(index) for index in indices or ()] or None

    return Key("attention.sliding_window_pattern", "sliding_window_indices", None, read, write)


@dataclass(frozen=True)
class GGUF:
    """A family as GGUF files hold it."""

    arch: str
    """`general.architecture`, and what the family's own keys begin with."""
    eps: str
    """The key of the norms' epsilon."""
    weights: tuple[Rule, ...]
    """Tensor names, theirs on the left."""
    fields: tuple[Key, ...] = ()
    """Further keys that every file of the family has."""
    optional: tuple[Key, ...] = ()
    """Further keys that a file may have."""
    more: tuple[Key, ...] = ()
    """Further keys, at a file's end, or in the place of those that other families have by their names."""
    implied: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda found: {}
    """`Config` fields that the architecture settles without a key, from those that were read."""
    by_tensors: Callable[[Collection[str]], Metadata] = lambda names: {}
    """`Config` fields that only the tensors there are tell."""
    yarn_log: float | None = None
    """What YaRN's `mscale_all_dim` is multiplied with in `rope.scaling.yarn_log_multiplier`, where that counts."""
    yarn_mscale: float | None = 1.0
    """`mscale` beside it; None: the same."""
    special: Callable[[Any], tuple[Rule, ...]] = lambda config: ()
    """Those of them that are not the same for all sizes, of a `Config` or its fields."""
    paired: tuple[tuple[str, str], ...] = ()
    """Tensors whose rows hold dimension `d` of a head next to `d + H/2`, as llama.cpp's plain RoPE wants them, and the
    `Config` field that counts their heads."""
    has_rope: bool = True
    always_biased: bool = False
    """llama.cpp opens no such model without biases."""
    head_may_be_left_out: bool = True
    """Without `output.weight`, the embedding is the head."""
    only_with: str | None = None
    """The key that tells this family from others of the same `arch`."""
    pre_tokenizer: str | None = None
    """How text is cut into words where a file doesn't say (`tokenizer.ggml.pre`); None: such a file is refused."""

    def rules(self, config: Any) -> tuple[Rule, ...]:
        """The tensor names of a model of this family."""
        return (*self.weights, *self.special(config))

    # -- theirs → ours

    def read(
        self, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], base: Mapping[str, Any]
    ) -> Metadata:
        """A file's metadata → `Config` fields.

        Args:
            metadata: All its keys.
            shapes: Its tensors' shapes; which biases there are is told by nothing else.
            base: The `Config` fields that all of the family share.

        Raises:
            LitGPTError: A key that changes the computation is not known here, or a needed one is missing.
        """
        start = f"{self.arch}."
        left = {key.removeprefix(start): value for key, value in metadata.items() if key.startswith(start)}
        found = dict(base)
        for key in {key.name: key for key in (*self._keys(), *self.more)}.values():
            key.take(self.arch, left, found)
        if self.has_rope:
            found.update(self._read_scaling(left))
        size = head_size(found)
        if self.paired and (rotated := int(found["rotary_percentage"] * size)) != size:
            raise LitGPTError(f"The GGUF file rotates {rotated} of {size} dimensions, which its family here doesn't.")
        if not left.pop("attention.causal", True):
            raise LitGPTError("The GGUF file holds a model that is not causal, which none here is.")
        unknown = [key for key, value in left.items() if key not in IGNORED and value not in (None, False, 0, "", [])]
        if unknown:
            raise LitGPTError(
                f"The GGUF file has `{escaped(start + unknown[0])}`: {quoted(left[unknown[0]])}, which is not known "
                "here and may change what the model computes."
            )
        rows = shapes.get("token_embd.weight", (0,))[0]
        found |= {**self.by_tensors(shapes), "vocab_size": rows, "padded_vocab_size": rows}
        found |= self._biases(shapes, found)
        return {**found, **self.implied(found)}

    def _keys(self) -> tuple[Key, ...]:
        """Those that are much the same in all families."""
        rope = ROPE if self.has_rope else ()
        optional = [replace(key, default=UNSET) for key in (*HEADS, *self.optional)]
        return (*FIELDS, Key(self.eps, "norm_eps"), *self.fields, *optional, VALUE_LENGTH, *rope)

    def _read_scaling(self, left: Metadata) -> Metadata:
        found: Metadata = {}
        factor = left.pop("rope.scale_linear", 1.0)  # how older files say it
        kind = left.pop("rope.scaling.type", "none")
        if kind == "linear":
            factor = left.pop("rope.scaling.factor", factor)
        elif kind == "yarn":
            found["rope_adjustments"] = self._read_yarn(left)
        elif kind != "none":
            raise LitGPTError(
                f"The GGUF file asks for RoPE scaling of kind {quoted(kind)}; known here: none, linear, yarn."
            )
        if left.pop("rope.scaling.factor", 1.0) not in (0.0, 1.0):
            raise LitGPTError(f"The GGUF file has `{self.arch}.rope.scaling.factor` but doesn't say of what kind.")
        if left.pop("rope.scaling.attn_factor", 1.0) != 1.0:
            raise LitGPTError(f"The GGUF file has `{self.arch}.rope.scaling.attn_factor`, which is not known here.")
        if factor != 1.0:
            found["rope_adjustments"] = {"factor": float(factor)}
        return found

    def _read_yarn(self, left: Metadata) -> Metadata:
        found = {ours: left.pop(f"rope.scaling.{theirs}", default) for theirs, (ours, default) in YARN.items()}
        for theirs, value in zip(YARN, found.values(), strict=True):
            if value is None and theirs != "yarn_attn_factor":
                raise LitGPTError(f"The GGUF file has no `{self.arch}.rope.scaling.{theirs}`, which YaRN needs.")
        log = left.pop("rope.scaling.yarn_log_multiplier", None) if self.yarn_log else None
        if log:
            scale = round(log / (self.yarn_log or 1), 6)
            found |= {"mscale": scale if self.yarn_mscale is None else self.yarn_mscale, "mscale_all_dim": scale}
        return {key: value for key, value in found.items() if value is not None}

    def _biases(self, shapes: Collection[str], found: Mapping[str, Any]) -> Metadata:
        """Which parts have a bias, by the first layer's tensors."""
        rules = self.rules(SimpleNamespace(**found))
        theirs = {rule.ours: rule.theirs for rule in rules if not isinstance(rule, Drop)}

        def has(ours: str) -> bool:
            names = theirs.get(ours, ())
            first = names if isinstance(names, str) else "".join(names[:1])
            return first.replace("{i}", "0") + ".bias" in shapes

        layer = "transformer.h.{i}"
        mlp = has(f"{layer}.mlp.proj")
        qkv, proj = has(f"{layer}.attn.qkv"), has(f"{layer}.attn.proj")
        everywhere = mlp and qkv and proj
        biases = {
            "bias": everywhere,
            "mlp_bias": mlp and not everywhere,
            "attn_bias": qkv and not everywhere,
            "attn_proj_bias": proj and not everywhere,
            "lm_head_bias": has("lm_head"),
        }
        if found.get("norm_class_name", "LayerNorm") == "LayerNorm":
            biases["norm_bias"] = has("transformer.ln_f")
        return biases

    # -- ours → theirs

    def write(self, config: Any) -> Metadata:
        """A `Config` → the keys that are the architecture's own; what GGUF can't say shows when they are read again.

        Raises:
            LitGPTError: A model without biases, of a family that llama.cpp opens with biases only.
        """
        if self.always_biased and not (config.bias and config.norm_bias):
            raise LitGPTError(
                f"llama.cpp opens models of the architecture {quoted(self.arch)} with biases only, and "
                "this one has none."
            )
        written = {key.name: key.written(config) for key in self._keys()}
        if self.has_rope:
            written |= self._write_scaling(config)
        written["vocab_size"] = config.padded_vocab_size
        written |= {key.name: key.written(config) for key in self.more}
        return {f"{self.arch}.{name}": value for name, value in written.items() if value is not None}

    def _write_scaling(self, config: Any) -> Metadata:
        factor = linear_factor(config)
        linear = {"rope.scaling.type": "linear", "rope.scaling.factor": factor} if factor != 1.0 else {}
        return linear | self._write_yarn(config.rope_adjustments or {})

    def _write_yarn(self, adjust: Mapping[str, Any]) -> Metadata:
        if "beta_fast" not in adjust:
            return {}
        numbers = {theirs: float(adjust[ours]) for theirs, (ours, _) in YARN.items() if adjust.get(ours)}
        if self.yarn_log and adjust.get("mscale_all_dim"):
            numbers["yarn_log_multiplier"] = self.yarn_log * adjust["mscale_all_dim"]
        written = {**numbers, "type": "yarn", "original_context_length": adjust["original_max_seq_len"]}
        return {f"rope.scaling.{key}": value for key, value in written.items()}


def linear_factor(config: Any) -> float:
    """What a config divides all positions by."""
    adjust = config.rope_adjustments or {}
    return float(config.rope_condense_ratio) * (float(adjust["factor"]) if set(adjust) == {"factor"} else 1.0)


def share(part: int, whole: int) -> float:
    """`part / whole`, such that `int(share * whole)` is `part` again."""
    quotient = part / whole
    return quotient if int(quotient * whole) == part else math.nextafter(quotient, 2.0)


def _same_in_all_layers(key: str, value: Any) -> Any:
    """A setting that some files give layer by layer.

    Raises:
        LitGPTError: It differs between layers.
    """
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise LitGPTError(f"The GGUF file's `{key}` differs between layers, which no model here has.")
    return value[0]

"""What GGUF, llama.cpp's file format, calls a family's settings and tensors: one row a family, read in both directions.

Keys and tensors: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; `checkpoint.gguf.reader` opens the files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from litgpt.errors import LitGPTError
from litgpt.families.base import Drop, Join, Rule, Same, Split

Metadata = dict[str, Any]
"""The file's key-value pairs, read into plain Python values."""

FIELDS = (
    ("context_length", "block_size"),
    ("embedding_length", "n_embd"),
    ("block_count", "n_layer"),
    ("feed_forward_length", "intermediate_size"),
    ("attention.head_count", "n_head"),
)
"""Metadata key, without the architecture before it ↔ `Config` field; every file has them."""
OPTIONAL_FIELDS = (
    ("attention.head_count_kv", "n_query_groups"),
    ("attention.key_length", "head_size"),
)
"""Where a file leaves them out, `Config`'s own default is what it means."""
REAL = frozenset(
    """
    norm_eps rope_local_base_freq attention_logit_softcapping final_logit_softcapping qkv_clip embedding_multiplier
    residual_multiplier logits_divisor routed_scaling_factor
    """.split()
)
"""Fields that are written as floating-point numbers even where they are whole."""
HARMLESS = frozenset(
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
EXPERT_FIELDS = (("expert_count", "n_expert"), ("expert_used_count", "n_expert_per_token"))
WINDOW_PATTERN = "attention.sliding_window_pattern"
"""By layer: whether it has a window."""
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


@dataclass(frozen=True)
class GGUF:
    """A family as GGUF files hold it."""

    arch: str
    """`general.architecture`, and what the family's own keys begin with."""
    eps: str
    """The key of the norms' epsilon."""
    weights: tuple[Rule, ...]
    """Tensor names, theirs on the left."""
    fields: tuple[tuple[str, str], ...] = ()
    """Further keys that every file of the family has."""
    optional: tuple[tuple[str, str], ...] = ()
    """Further keys that a file may have."""
    implied: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda found: {}
    """`Config` fields that the architecture settles without a key, from those that were read."""
    more_from: Callable[[Metadata, Collection[str], Metadata], Metadata] = lambda left, tensors, found: {}
    """`Config` fields that need more than a rename: of keys, which it takes out of `left`, of the tensors there are,
    and of the fields that all families share."""
    more_to: Callable[[Any], Metadata] = lambda config: {}
    """And back, from a `Config`; None for a key that the family doesn't have."""
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
            LitGPTError: A key that changes the computation is not known here, a needed one is missing, or one has a
                value that makes no sense.
        """
        try:
            return self._read(metadata, shapes, base)
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise LitGPTError(f"The GGUF file has a value that no {self.arch} model can have ({error}).") from None

    def _read(
        self, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], base: Mapping[str, Any]
    ) -> Metadata:
        start = f"{self.arch}."
        left = {key.removeprefix(start): value for key, value in metadata.items() if key.startswith(start)}
        found = dict(base)
        try:
            for key, field in (*FIELDS, (self.eps, "norm_eps"), *self.fields):
                found[field] = _one_for_all(start + key, left.pop(key))
            more = self.more_from(left, shapes, found)
        except KeyError as missing:
            key = start + missing.args[0]
            raise LitGPTError(f"The GGUF file has no `{key}`, which a model of its architecture needs.") from None
        for key, field in (*OPTIONAL_FIELDS, *self.optional):
            if left.get(key) is not None:
                found[field] = _one_for_all(start + key, left.pop(key))
        head_size = found.get("head_size") or found["n_embd"] // found["n_head"]
        if left.pop("attention.value_length", head_size) != head_size:
            raise LitGPTError("The GGUF file has values of another size than its keys, which no model here has.")
        if self.has_rope:
            found.update(self._read_rope(left, head_size))
        if not left.pop("attention.causal", True):
            raise LitGPTError("The GGUF file holds a model that is not causal, which none here is.")
        unknown = [key for key, value in left.items() if key not in HARMLESS and value not in (None, False, 0, "", [])]
        if unknown:
            raise LitGPTError(
                f"The GGUF file has `{start}{unknown[0]}`: {left[unknown[0]]!r}, which is not known here and may "
                "change what the model computes."
            )
        rows = shapes.get("token_embd.weight", (0,))[0]
        found |= more | {"vocab_size": rows, "padded_vocab_size": rows}
        found |= self._biases(shapes, found)
        return {**found, **self.implied(found)}

    def _read_rope(self, left: Metadata, head_size: int) -> Metadata:
        base = left.pop("rope.freq_base", 10000.0)
        dimensions = left.pop("rope.dimension_count", head_size)
        if self.paired and dimensions != head_size:
            raise LitGPTError(
                f"The GGUF file rotates {dimensions} of {head_size} dimensions, which its family here doesn't."
            )
        found = {
            "rope_base": int(base) if base == int(base) else base,
            "rotary_percentage": share(dimensions, head_size),
        }
        factor = left.pop("rope.scale_linear", 1.0)  # how older files say it
        kind = left.pop("rope.scaling.type", "none")
        if kind == "linear":
            factor = left.pop("rope.scaling.factor", factor)
        elif kind == "yarn":
            found["rope_adjustments"] = self._read_yarn(left)
        elif kind != "none":
            raise LitGPTError(f"The GGUF file asks for RoPE scaling of kind {kind!r}; known here: none, linear, yarn.")
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
        biases = {
            "bias": mlp,
            "attn_bias": has(f"{layer}.attn.qkv") and not mlp,
            "attn_proj_bias": has(f"{layer}.attn.proj") and not mlp,
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
                f"llama.cpp opens models of the architecture {self.arch!r} with biases only, and this one has none."
            )
        names = (*FIELDS, (self.eps, "norm_eps"), *self.fields, *OPTIONAL_FIELDS, *self.optional)
        values = {key: (field, getattr(config, field)) for key, field in names}
        written = {key: float(v) if field in REAL else v for key, (field, v) in values.items() if v is not None}
        written["attention.value_length"] = config.head_size
        if self.has_rope:
            written |= {"rope.dimension_count": config.rope_n_elem, "rope.freq_base": float(config.rope_base)}
            factor = linear_factor(config)
            if factor != 1.0:
                written |= {"rope.scaling.type": "linear", "rope.scaling.factor": factor}
            written |= self._write_yarn(config.rope_adjustments or {})
        written |= {"vocab_size": config.padded_vocab_size, **self.more_to(config)}
        return {f"{self.arch}.{key}": value for key, value in written.items() if value is not None}

    def _write_yarn(self, adjust: Mapping[str, Any]) -> Metadata:
        if "beta_fast" not in adjust:
            return {}
        numbers = {theirs: float(adjust[ours]) for theirs, (ours, _) in YARN.items() if adjust.get(ours)}
        if self.yarn_log and adjust.get("mscale_all_dim"):
            numbers["yarn_log_multiplier"] = self.yarn_log * adjust["mscale_all_dim"]
        written = {**numbers, "type": "yarn", "original_context_length": adjust["original_max_seq_len"]}
        return {f"rope.scaling.{key}": value for key, value in written.items()}


def pop_window_pattern(left: Metadata, n_layer: int, every: int) -> Metadata:
    """Takes out which layers have a window; where it is not said, one in `every` has none."""
    pattern = left.pop(WINDOW_PATTERN, None) or [(layer + 1) % every for layer in range(n_layer)]
    return {"sliding_window_indices": [int(bool(windowed)) for windowed in pattern]}


def push_window_pattern(config: Any) -> Metadata:
    """And back."""
    return {WINDOW_PATTERN: [bool(index) for index in config.sliding_window_indices or ()] or None}


def linear_factor(config: Any) -> float:
    """What a config divides all positions by."""
    adjust = config.rope_adjustments or {}
    return float(config.rope_condense_ratio) * (float(adjust["factor"]) if set(adjust) == {"factor"} else 1.0)


def share(part: int, whole: int) -> float:
    """`part / whole`, such that `int(share * whole)` is `part` again."""
    quotient = part / whole
    return quotient if int(quotient * whole) == part else math.nextafter(quotient, 2.0)


def _one_for_all(key: str, value: Any) -> Any:
    """A setting that some files give layer by layer.

    Raises:
        LitGPTError: It differs between layers.
    """
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise LitGPTError(f"The GGUF file's `{key}` differs between layers, which no model here has.")
    return value[0]

"""What a model family is: named sizes, two-way tables to Hugging Face's `config.json` and tensors, prompt styles.

Everything here is plain data; `litgpt.checkpoint.weights` reads the tensor tables, `litgpt.config` the field tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from litgpt.errors import LitGPTError, escaped, quoted
from litgpt.families.composites import NOT_TEXT, RENAMES, is_composite, text_settings
from litgpt.families.hf_config import pop_quantization

# -- Tensor names: theirs (Hugging Face) on the left, ours on the right. `{i}` is a layer, `{e}` an expert.
# -- A name is a module's: one rule serves its `.weight` and its `.bias`.


@dataclass(frozen=True)
class Same:
    """One tensor under two names; `transpose` where theirs is stored `(in, out)` (GPT-2's Conv1D), `row` where theirs
    is `(1, n)` and ours `(n,)`."""

    theirs: str
    ours: str
    transpose: bool = False
    row: bool = False


@dataclass(frozen=True)
class Join:
    """Several of their tensors are the row blocks of one of ours: q, k, v → `attn.qkv` (`[Q | K | V]`)."""

    theirs: tuple[str, ...]
    ours: str


@dataclass(frozen=True)
class Split:
    """One tensor of theirs is several of ours, one below the other: `gate_up_proj` → `fc_1`, `fc_2`."""

    theirs: str
    ours: tuple[str, ...]


@dataclass(frozen=True)
class Stacked:
    """One tensor of theirs holds all experts, `(E, in, n·out)` or `(E, n·out)`, the columns of n tensors of ours by
    turns, or one after the other: `gate_up_proj` → `experts.{e}.fc_1.weight`, `experts.{e}.fc_2.weight`. These are
    names of parameters. With `rows` it is `(E, n·out, in)`, one after the other; read either way round."""

    theirs: str
    ours: tuple[str, ...]
    by_turns: bool = True
    expert: int = 0
    rows: bool = False


@dataclass(frozen=True)
class Interleaved:
    """Their fused query-key-value rows run head by head (`q0 k0 v0 q1 k1 v1 …`); ours run `[Q | K | V]`."""

    theirs: str
    ours: str
    groups: int = 0
    """Groups of heads, where they are others than those that share keys and values."""
    order: str = "qkv"
    """Of the parts in a group."""


@dataclass(frozen=True)
class Rows:
    """Several of their vectors are the rows of one of ours: the norms of each head."""

    theirs: tuple[str, ...]
    ours: str


@dataclass(frozen=True)
class GatedJoin:
    """As `Join`, of gates, queries, keys, values: the gates of a query head stand after it, `[q0 g0 q1 g1 … K V]`."""

    theirs: tuple[str, str, str, str]
    ours: str


@dataclass(frozen=True)
class Dealt:
    """One tensor of theirs is several of ours, its rows dealt out by `groups`: of each group first the rows of the
    first of ours, in the parts it consists of, then those of the next."""

    theirs: str
    ours: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    """Of each of ours, the rows that a group has of each of its parts."""
    groups: int


@dataclass(frozen=True)
class Absorbed:
    """Their keys' half `(N, L, P)`, transposed, and values' half `(N, D, L)` of what latent attention makes of a
    latent; ours has them head by head, `(N · (P + D), L)`."""

    theirs: tuple[str, str]
    ours: str


@dataclass(frozen=True)
class Drop:
    """A tensor of theirs that is recomputed or not needed here; with `*` at its end, all that begin so. `{n}` is the
    number of layers, that is the one after the last."""

    theirs: str


Rule = Same | Join | GatedJoin | Split | Stacked | Interleaved | Rows | Dealt | Absorbed | Drop


def spelled(rule: Rule, layer: int, expert: int = 0) -> Rule:
    """A rule with its layer and expert filled in."""

    def fill(names: str | tuple[str, ...]) -> Any:
        if isinstance(names, tuple):
            return tuple(map(fill, names))
        return names.replace("{i}", str(layer)).replace("{e}", str(expert))

    if isinstance(rule, Drop):
        return Drop(fill(rule.theirs))
    if isinstance(rule, Stacked):
        rule = replace(rule, expert=expert)
    return replace(rule, theirs=fill(rule.theirs), ours=fill(rule.ours))


# -- config.json keys that don't change what the model computes: how it was saved or trained, and how texts are made.
IGNORED_HF_FIELDS = frozenset(
    """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path _num_labels architectures
    attention_dropout attn_implementation attn_pdrop auto_map cache_implementation chunk_size_feed_forward
    classifier_dropout cross_attention_hidden_size dtype embd_pdrop finetuning_task gradient_checkpointing
    hidden_dropout id2label initializer_range is_decoder is_encoder_decoder is_llama_config
    keys_to_ignore_at_inference label2id max_sequence_length model_max_length model_type n_ctx n_special num_labels
    aux_loss_alpha ep_size output_router_logits router_aux_loss_coef router_jitter_noise seq_aux
    output_attentions output_hidden_states output_past predict_special_tokens prefix pretraining_tp problem_type
    resid_pdrop return_dict rope_interleaved summary_activation summary_first_dropout summary_proj_to_labels
    summary_type summary_use_proj task_specific_params tokenizer_class torch_dtype torchscript
    transformers.js_config transformers_version unsloth_fixed unsloth_version use_bfloat16 use_cache
    use_flash_attention

    bad_words_ids begin_suppress_tokens bos_token_id decoder_start_token_id diversity_penalty do_sample
    early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty forced_bos_token_id
    forced_eos_token_id length_penalty max_length min_length no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_scores pad_token_id remove_invalid_values repetition_penalty
    return_dict_in_generate sep_token_id suppress_tokens temperature top_k top_p typical_p unk_token_id
    """.split()
)

OFF_HF_FIELDS = frozenset(
    """
    add_bos_token add_cross_attention add_eos_token for_llm_compressor is_composition pruned_heads tie_encoder_decoder
    use_flash_attn use_mrope use_sliding_window
    """.split()
)
"""config.json keys that may say that something is off which no model has whose family doesn't read them."""


@dataclass(frozen=True)
class Family:
    """One model family, whole: nothing about it stands in any other file."""

    name: str
    architectures: tuple[str, ...]
    """`architectures` entries of `config.json` that this family reads; the first one is written on export."""
    model_type: str
    base: Mapping[str, Any]
    """The `Config` fields that all its sizes share."""
    rows: Mapping[str, Mapping[str, Any]]
    """Named sizes: only what differs from `base`."""
    hf_fields: tuple[tuple[str, str], ...]
    """`config.json` key ↔ `Config` field, read left to right and right to left."""
    from_hf: Callable[[dict[str, Any]], dict[str, Any]]
    """The `Config` fields that need more than a rename; takes used keys out of the mapping it is given."""
    to_hf: Callable[[Any], dict[str, Any]]
    """And back: from a `Config` to the `config.json` keys that need more than a rename."""
    weights: tuple[Rule, ...] | Callable[[Any], tuple[Rule, ...]]
    """The weight table; a function of the `Config` where it is not the same for all sizes. Of two rules for one tensor
    of ours, the later counts."""
    published: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """More named sizes, by `ORG/NAME` with braces: what their `config.json` says beyond `hf_defaults`."""
    prefix: str = ""
    """What every tensor name but the head's begins with, and some checkpoints leave out."""
    prompt_styles: tuple[tuple[str, str], ...] = ()
    """`(pattern, style name)`; the first pattern found in a model's name decides."""
    init: str = "neox"
    """How `pretrain` starts: `neox` (GPT-NeoX: small initial embeddings, scaled outputs) or `gpt2` (N(0, 0.02))."""
    hf_defaults: Mapping[str, Any] = field(default_factory=dict)
    """What an absent `config.json` key means: what transformers' class of this `model_type` has there, where that is
    not nothing. Sizes that every file gives have no default here."""
    hf_spellings: Mapping[str, str] = field(default_factory=dict)
    """Other names of `config.json` keys, and the names they are read by."""
    rotates_part: bool = False
    """Its class acts on `partial_rotary_factor`; others rotate whole heads whatever it says."""
    hf_constants: Mapping[str, Any] = field(default_factory=dict)
    """`config.json` keys that have one value only (or one of several names of it) in the models that are known here."""
    inside: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Other `model_type`s that are this one inside a model of several kinds of input, each with its `hf_defaults`."""
    alternatives: tuple[Rule, ...] = ()
    """Rules that count in the place of the table's where a checkpoint has their tensors; never written."""
    renames: tuple[tuple[str, str], ...] = RENAMES
    """Other beginnings of tensor names, and what the weight table calls them."""
    not_text: tuple[str, ...] = NOT_TEXT
    """Beginnings of the names of tensors that serve other inputs than text; they are left alone."""

    def rules(self, config: Any) -> tuple[Rule, ...]:
        """The weight table of a model of this family."""
        return self.weights(config) if callable(self.weights) else self.weights

    def named_sizes(self) -> dict[str, dict[str, Any]]:
        """All named sizes as `Config` fields, and what each is called on the hub (`hf`)."""
        found = {name: {**self.base, **row} for name, row in self.rows.items()}
        for pattern, said in self.published.items():
            fields = self.read_hf({"model_type": self.model_type, **said})
            for hub in expand(pattern):
                found[hub.split("/", 1)[1]] = {"vocab_size": fields["padded_vocab_size"], **deepcopy(fields), "hf": hub}
        return found

    def prompt_style(self, name: str) -> str | None:
        """The name of the prompt style that models called `name` were trained with, if this family knows."""
        return next((style for pattern, style in self.prompt_styles if re.search(pattern, name)), None)

    def read_hf(self, hf_config: Mapping[str, Any]) -> dict[str, Any]:
        """`config.json` → `Config` fields.

        Raises:
            LitGPTError: A key that changes the computation is not known here, or a needed one is missing.
        """
        top = text_settings(hf_config) if is_composite(hf_config) else dict(hf_config)
        for key in ("rope_parameters", "rope_theta"):  # where null is what is left out
            if top.get(key) is None:
                top.pop(key, None)
        spelled = {self.hf_spellings[key]: top.pop(key) for key in self.hf_spellings if key in top}
        left = {**self.inside.get(str(top.get("model_type")), self.hf_defaults), **spelled, **top}
        kwargs = dict(self.base)
        for theirs, ours in self.hf_fields:
            kwargs[ours] = self._number(left, theirs)
        for key, value in self.hf_constants.items():
            found = left.pop(key, None)
            values = value if isinstance(value, tuple) else (value,)
            if found not in (None, *values):
                raise LitGPTError(
                    f"config.json has `{key}`: {quoted(found)}; {self.name} models here have {quoted(values[0])} only."
                )
        try:
            pop_quantization(left)
            kwargs.update(self._whole_heads(self.from_hf(left)))
            if self.base.get("mlp_class_name") == "LLaMAMoE" and kwargs["mlp_class_name"] == "GemmaMLP":
                raise LitGPTError("config.json has `hidden_act`: GELU, which no mixture of experts here has.")
        except LitGPTError:
            raise
        except KeyError as missing:
            what = f"config.json has no `{missing.args[0]}`, which a {self.architectures[0]} needs."
            raise LitGPTError(what) from None
        except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise LitGPTError(f"config.json has a value that no {self.architectures[0]} can have ({error}).") from None
        renamed = {theirs for theirs, _ in self.hf_fields}
        unknown = [
            key
            for key, value in left.items()
            if key not in IGNORED_HF_FIELDS | renamed and value is not None and (value or key not in OFF_HF_FIELDS)
        ]
        if unknown:
            raise LitGPTError(
                f"config.json has `{escaped(unknown[0])}`: {quoted(left[unknown[0]])}, which {self.name} models here "
                "don't know and which may change what they compute."
            )
        return kwargs

    def _whole_heads(self, found: dict[str, Any]) -> dict[str, Any]:
        """What `from_hf` found, without a share of heads that the class doesn't act on."""
        if self.rotates_part or found.pop("rotary_percentage", 1) == 1 or found.get("rope_adjustments") is None:
            return found
        raise LitGPTError(
            f"config.json has `partial_rotary_factor` beside a RoPE scaling; {self.name} models rotate whole heads."
        )

    def _number(self, left: Mapping[str, Any], key: str) -> Any:
        value = left.get(key)
        if value is None:
            raise LitGPTError(f"config.json has no `{key}`, which a {self.architectures[0]} needs.")
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise LitGPTError(
                f"config.json has `{key}`: {quoted(value)}, which is no number that a model can have there."
            )
        return value

    def write_hf(self, config: Any) -> dict[str, Any]:
        """A `Config` → the whole `config.json` of this family's first (or the config's own) architecture."""
        renamed = {theirs: getattr(config, ours) for theirs, ours in self.hf_fields}
        return {
            "architectures": [self.architectures[0]],
            "model_type": self.model_type,
            **renamed,
            **self.to_hf(config),
        }


def expand(pattern: str) -> list[str]:
    """`"a{,-b}c"` → `["ac", "a-bc"]`: every choice of every brace."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    return [
        name
        for choice in found[1].split(",")
        for name in expand(pattern[: found.start()] + choice + pattern[found.end() :])
    ]


def named(
    org: str,
    rows: Mapping[str, Mapping[str, Any]],
    *shared: Mapping[str, Any],
    hf: Callable[[str], str] = str,
) -> dict[str, dict[str, Any]]:
    """A size table: each key is a name with braces, each value a row on top of what they share.

    `hf` makes the name on the hub of the name here, where a row doesn't say it.
    """
    base = {key: value for part in shared for key, value in part.items()}
    return {
        name: {**base, **row, "hf": f"{org}/{row.get('hf') or hf(name)}"}
        for pattern, row in rows.items()
        for name in expand(pattern)
    }


def size(
    n_layer: int, n_head: int, n_embd: int, intermediate_size: int, n_query_groups: int | None = None, **other: Any
) -> dict[str, Any]:
    """A row of a size table; `n_query_groups` is written when it differs from `n_head`."""
    row = dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd, intermediate_size=intermediate_size, **other)
    return row if n_query_groups is None else {**row, "n_query_groups": n_query_groups}


def said(
    hidden_size: int, layers: int, heads: int, intermediate_size: int, vocab_size: int, **other: Any
) -> dict[str, Any]:
    """A published size by the keys of `config.json`."""
    return dict(
        hidden_size=hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=intermediate_size,
        vocab_size=vocab_size,
        **other,
    )


def without(settings: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The settings but for some."""
    return {key: value for key, value in settings.items() if key not in keys}


def changed(rules: Sequence[Rule], *new: Rule, without: Sequence[str] = ()) -> tuple[Rule, ...]:
    """A weight table like another, except: a new rule takes the place of the one for the same tensor of ours."""
    gone = {str(rule.ours) for rule in new if not isinstance(rule, Drop)} | set(without)
    kept = [rule for rule in rules if isinstance(rule, Drop) or str(rule.ours) not in gone]
    return (*kept, *new)

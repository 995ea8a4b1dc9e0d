"""What values the fields of `Config` can have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

from litgpt.errors import LitGPTError, UnsupportedError, closest, quoted
from litgpt.families.hf_config import ACTIVATIONS, MAX_LAYERS

MAX_SIZE = 2**31
"""Of every size but the number of layers."""
MAX_EXPERTS = 2**17
"""In all layers together."""
SIZES = frozenset(
    """
    block_size n_layer n_embd n_head head_size n_query_groups vocab_size padding_multiple padded_vocab_size
    intermediate_size moe_intermediate_size shared_intermediate_size sliding_window_size rope_condense_ratio
    expert_embd residual_rank value_size
    """.split()
)
"""Fields that are at least 1 where they are set."""
COUNTS = frozenset(
    """
    n_expert n_expert_per_token n_shared_expert n_expert_groups n_topk_groups n_topk_scores_per_group
    first_k_dense_replace positions_offset shared_kv_layers
    """.split()
)
"""Fields that are at least 0 where they are set."""
POSITIVE = frozenset(
    """
    norm_eps rope_base rope_local_base_freq attention_scores_scalar attention_logit_softcapping
    final_logit_softcapping logits_divisor sinusoidal_span mixture_divisor
    """.split()
)
"""Fields that are above 0 where they are set."""
BY_LAYER = (
    *("sliding_window_indices", "rope_indices", "rope_layers", "moe_layers", "linear_attention_indices"),
    *("indexer_layers", "mixer_layers", "sparse_layers"),
)
"""Fields with an entry for each layer, 0 or 1."""
PARTS: dict[str, dict[str, Any]] = {
    "latent_attention": {
        "q_lora_rank": int | None,
        **dict.fromkeys(("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), int),
    },
    "linear_attention": dict.fromkeys(("n_key_heads", "n_value_heads", "key_size", "value_size", "kernel_size"), int),
    "state_space": dict.fromkeys(("n_heads", "head_size", "n_groups", "state_size", "kernel_size"), int),
    "short_conv": {"kernel_size": int},
    "sparse_attention": dict.fromkeys(("n_heads", "head_size", "top_k"), int),
    "query_tuning": {"floor": float},
    "global_heads": dict.fromkeys(("head_size", "n_query_groups"), int),
    "streams": {"count": int},
    "layer_inputs": dict.fromkeys(("size", "vocab_size"), int),
    "rope_adjustments": {"factor": float},
    "alibi": {"max_bias": float},
}
"""What a field consists of that is above 0."""
MULTIPLIERS = {*"keys attention_in attention_out state_in state_out state_parts gate mlp_out".split()}
NORM_PLACES = {"qk", "embeddings", "post", "last"}
QUERY_TUNING = {"scale", "floor", "offset", "unturned_only"}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind that a field's annotation says; no bool is a number."""
    origin, choices = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in choices
    if origin is list:
        return isinstance(value, list) and all(fits(entry, choices[0]) for entry in value)
    if origin is dict:
        return isinstance(value, dict)
    if choices:
        return any(fits(value, choice) for choice in choices)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


def as_number(value: Any) -> Any:
    """`1e-5` is a text to YAML, which wants a point in it."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def check_values(config: Any, types: Mapping[str, Any]) -> None:
    """Refuses what no model can have, by the name of the setting."""
    for name, hint in types.items():
        value = getattr(config, name)
        if not fits(value, hint):
            wanted = str(hint).removeprefix("typing.").removesuffix(" | None") if get_args(hint) else hint.__name__
            raise LitGPTError(f"The model setting {name} is {quoted(value)}; it must be of the kind {wanted}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise LitGPTError(f"The model setting {name} is {value}; it must be a finite number.")
        if name in POSITIVE and value is not None and value <= 0:
            raise LitGPTError(f"The model setting {name} is {quoted(value)}; it must be above 0.")
        if name in BY_LAYER and not {*(value or ())} <= {0, 1}:
            raise LitGPTError(f"The model setting {name} is {quoted(value)}; it must be 0 or 1 for each layer.")
        if value is not None and name in SIZES | COUNTS:
            least, most = int(name in SIZES), MAX_LAYERS if name == "n_layer" else MAX_SIZE
            if not least <= value <= most:
                bound = f"least {least}" if value < least else f"most {most}"
                raise LitGPTError(f"The model setting {name} is {quoted(value)}; it must be at {bound}.")
        for part, kind in PARTS.get(name, {}).items() if value is not None else ():
            size = value.get(part)
            if not fits(size, kind) or (size is not None and not 0 < size <= MAX_SIZE):
                raise LitGPTError(f"The model setting {name} needs a size as its {part}, and has {quoted(size)}.")
    _check_mixture(config)
    _check_blocks(config)
    if not 0 <= config.rotary_percentage <= 1:
        raise LitGPTError(f"The model setting rotary_percentage is {config.rotary_percentage}, but it is a share.")
    if config.rope_local_percentage is not None and not 0 <= config.rope_local_percentage <= 1:
        raise LitGPTError(f"The model setting rope_local_percentage is {config.rope_local_percentage}, no share.")
    for place, said in (config.norm_exceptions or {}).items():
        if place not in NORM_PLACES or not isinstance(said, dict) or {*said} - {"affine", "unit_offset", "eps"}:
            raise LitGPTError(f"The model setting norm_exceptions has {quoted(place)}: {quoted(said)}, which is none.")
        if not isinstance(said.get("eps", 1.0), int | float) or said.get("eps", 1.0) <= 0:
            raise LitGPTError(f"The model setting norm_exceptions has an eps of {quoted(said['eps'])}.")
    if not all(0 < heads <= MAX_SIZE for heads in config.heads_by_layer or ()):
        raise LitGPTError("The model setting heads_by_layer has a number of heads below 1.")
    if config.heads_by_layer is not None and (config.latent_attention or config.alibi or config.sparse_attention):
        raise UnsupportedError("heads_by_layer goes with none of latent_attention, alibi and sparse_attention here.")
    if config.value_size is not None and (config.attention_gate or config.latent_attention or config.norm_values):
        raise UnsupportedError("value_size goes with none of attention_gate, latent_attention and norm_values here.")
    if config.query_tuning is not None and {*config.query_tuning} != QUERY_TUNING:
        raise LitGPTError(f"The model setting query_tuning needs {', '.join(sorted(QUERY_TUNING))}, and nothing else.")
    if any(config.rope_indices or ()) and config.rope_local_base_freq is None:
        raise LitGPTError(
            "Layers with local rotary positions (rope_indices) need rope_local_base_freq, which is unset."
        )
    if config.activation not in (None, *ACTIVATIONS):
        raise LitGPTError(
            f"The model setting activation is {quoted(config.activation)}.{closest(config.activation, ACTIVATIONS)}"
        )
    if config.activation is not None and config.mlp_class_name == "LLaMAMoE" and not config.ungated_mlps:
        raise UnsupportedError(f"Experts have SiLU here; the model's activation is {config.activation}.")
    if sum((config.learned_positions, config.sinusoidal_span is not None, config.alibi is not None)) > 1:
        raise LitGPTError("A model has one of learned_positions, sinusoidal_span and alibi.")
    if config.shared_kv_layers:
        own, kinds = config.n_layer - config.shared_kv_layers, [config.window(layer) for layer in range(config.n_layer)]
        if own < 1 or not {*kinds[own:]} <= {*kinds[:own]}:
            raise LitGPTError("shared_kv_layers leaves no layer of their kind whose keys the last layers could share.")
    if config.shared_attention_norm and not config.parallel_residual:
        raise UnsupportedError("shared_attention_norm needs parallel_residual: one norm, before both.")


def check_heads(config: Any) -> None:
    """Refuses heads that can't be turned, or shared out over key-value groups; all sizes of them are set."""
    pairs_in = config.head_size if config.latent_attention is None else config.rope_n_elem
    turned = max(config.rope_n_elem, int((config.rope_local_percentage or 0) * config.head_size))
    if config.rotates and turned + turned % 2 > pairs_in:
        raise LitGPTError(f"Dimensions of a head rotate in pairs, and there are {pairs_in}: it must be even.")
    chooser = config.sparse_attention or {}
    if "block_size" in chooser and chooser["head_size"] < turned + turned % 2:
        raise LitGPTError("sparse_attention has smaller heads than what rotates of the model's.")
    for heads in {config.n_head, *(config.heads_by_layer or ())}:
        if heads % config.n_query_groups:
            raise LitGPTError(f"n_head ({heads}) is no multiple of n_query_groups ({config.n_query_groups}).")


def _check_blocks(config: Any) -> None:
    if config.norm_after_residual and config.parallel_residual:
        raise UnsupportedError("norm_after_residual needs parallel_residual to be off.")
    if (config.streams is None) != (config.residual_rank is None):
        raise UnsupportedError("streams and residual_rank go together here.")
    if config.streams is not None and (
        config.layer_inputs is None or not 0 <= config.streams["active"] < config.streams["count"]
    ):
        raise UnsupportedError("streams need layer_inputs, and an active one among them.")
    if (shares := config.mlp_sparsity) is not None and (
        len(shares) < config.n_layer or not all(0 <= share < 1 for share in shares)
    ):
        raise LitGPTError(
            f"mlp_sparsity has {len(shares)} entries for {config.n_layer} layers, or one that is no share below 1."
        )
    if config.state_beside_attention and config.state_space is None:
        raise LitGPTError("state_beside_attention needs state_space, which is unset.")
    if config.multipliers is not None and {*config.multipliers} != MULTIPLIERS:
        raise LitGPTError(f"The model setting multipliers needs {', '.join(sorted(MULTIPLIERS))}, and nothing else.")
    if config.state_space is not None and config.state_space["n_heads"] % config.state_space["n_groups"]:
        raise LitGPTError("state_space has a number of heads that is no multiple of its groups.")
    if config.mixer_layers is not None and (config.parallel_residual or config.norm_after_residual):
        raise UnsupportedError("mixer_layers needs parallel_residual and norm_after_residual to be off.")
    if config.ungated_mlps and (config.expert_bias or config.swiglu_limit is not None):
        raise UnsupportedError("Experts without gates have neither biases nor a swiglu_limit here.")
    if config.sparse_attention is not None and "block_size" in config.sparse_attention:
        sizes = config.sparse_attention
        local = sizes.get("local_blocks")
        if config.latent_attention is not None or config.n_head % sizes["n_heads"] or config.alibi is not None:
            raise UnsupportedError("sparse_attention in blocks needs grouped queries, and heads that divide theirs.")
        if not fits(sizes["block_size"], int) or sizes["block_size"] < 1 or not fits(local, int) or local < 0:
            raise LitGPTError("sparse_attention needs a block_size from 1 and local_blocks from 0 on.")
    elif config.sparse_attention is not None:
        latent = config.latent_attention or {}
        if latent.get("q_lora_rank") is None:
            raise UnsupportedError("sparse_attention needs latent_attention with a q_lora_rank.")
        if config.indexer_layers is not None and not config.indexer_layers[:1] == [1]:
            raise LitGPTError("The first of indexer_layers must be 1: there is no layer before it to choose for it.")
        if config.sparse_attention["head_size"] < latent["qk_rope_head_dim"]:
            raise LitGPTError("sparse_attention has smaller heads than what rotates of them (qk_rope_head_dim).")


def _check_mixture(config: Any) -> None:
    experts, used, groups = config.n_expert, config.n_expert_per_token, config.n_expert_groups
    if config.n_layer * experts > MAX_EXPERTS:
        raise LitGPTError(f"The model has {config.n_layer * experts} experts, more than any has.")
    if (config.mlp_class_name == "LLaMAMoE" or config.mixture_beside_mlp) and not 0 < used <= experts:
        raise LitGPTError(f"A mixture needs n_expert_per_token from 1 to n_expert, and has {used} and {experts}.")
    if config.n_shared_expert and config.moe_intermediate_size is config.shared_intermediate_size is None:
        raise LitGPTError("Experts that all tokens share need moe_intermediate_size, which is not set.")
    if groups is None:
        return
    if not groups or experts % groups or not 0 < (config.n_topk_groups or 0) <= groups:
        raise LitGPTError(
            f"A mixture's n_expert ({experts}) is a multiple of n_expert_groups ({groups}), and n_topk_groups "
            f"({config.n_topk_groups}) is from 1 to that."
        )
    if (config.n_topk_scores_per_group or 1) > experts // groups:
        raise LitGPTError(
            f"n_topk_scores_per_group is {config.n_topk_scores_per_group}, and a group has {experts // groups} experts."
        )

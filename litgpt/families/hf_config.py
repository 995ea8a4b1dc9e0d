"""Settings of `config.json` that many families share: taken out of a file (`pop_…`) and written back (`push_…`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from litgpt.errors import LitGPTError, closest, escaped, quoted
from litgpt.families.quantization_config import stored_quantization

MAX_LAYERS = 4096


def check_layers(hf_config: Mapping[str, Any]) -> None:
    """Raises a LitGPTError where a `config.json` has more layers or experts than a list of them may have."""
    for key, value in hf_config.items():
        if isinstance(value, Mapping):
            check_layers(value)
        elif isinstance(value, int) and value > MAX_LAYERS and re.fullmatch(r"n(um)?_.*(layers?|experts)", key):
            raise LitGPTError(f"config.json has `{escaped(key)}`: {quoted(value)}, more than any model has.")


def pop_windows(left: dict[str, Any], every: int | None = None) -> dict[str, Any]:
    """Takes the settings of sliding-window attention out of a `config.json`.

    Args:
        left: What is left of it.
        every: Without a list of layer types: every this many layers, the last one has no window.

    Returns:
        `sliding_window_size` and `sliding_window_indices`, both None where no layer has a window.
    """
    window, used = left.pop("sliding_window", None), left.pop("use_sliding_window", True)
    kinds, first = left.pop("layer_types", None), left.pop("max_window_layers", None)
    every = left.pop("_sliding_window_pattern", None) or every
    every = left.pop("sliding_window_pattern", None) or every
    layers = range(left["num_hidden_layers"])
    if kinds is not None:
        indices = [int(kind == "sliding_attention") for kind in kinds]
    elif every is not None:
        indices = [int((layer + 1) % every != 0) for layer in layers]
    else:
        indices = [int(first is None or layer >= first) for layer in layers]
    if window is None or not used or not any(indices):
        return {"sliding_window_size": None, "sliding_window_indices": None}
    return {"sliding_window_size": window, "sliding_window_indices": indices}


def push_windows(config: Any) -> dict[str, Any]:
    """And back, as `sliding_window` and `layer_types`."""
    indices = config.sliding_window_indices or [0] * config.n_layer
    kinds = ["sliding_attention" if index else "full_attention" for index in indices]
    return {"sliding_window": config.sliding_window_size, "layer_types": kinds}


def pop_quantization(left: dict[str, Any]) -> None:
    """Takes `quantization_config` out of a `config.json`.

    Raises:
        LitGPTError: The weights are stored in a way that is not read here.
    """
    stored_quantization({"quantization_config": left.pop("quantization_config", None)})


def pop_choice(left: dict[str, Any], key: str, choices: Mapping[str, Any], default: str) -> Any:
    """Takes `key` out of a `config.json` and translates its value.

    Raises:
        LitGPTError: The value is none of `choices`.
    """
    value = left.pop(key, None) or default
    if value not in choices:
        raise LitGPTError(
            f"config.json has `{key}`: {quoted(value)}, which is not known here.{closest(value, choices)}"
        )
    return choices[value]


def pop_needed(left: dict[str, Any], key: str) -> Any:
    """Takes a size out of a `config.json` that has no default; null is none.

    Raises:
        KeyError: It isn't there.
    """
    if left.get(key) is None:
        raise KeyError(key)
    return left.pop(key)


def pop_silu(left: dict[str, Any]) -> None:
    """Takes the activation out of a `config.json` of a model that has SiLU, which swish is another name of."""
    pop_choice(left, "hidden_act", {"silu": None, "swish": None}, "silu")


GELU = {
    **dict.fromkeys(("gelu", "gelu_python"), "none"),
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh"), "tanh"),
}
"""`hidden_act` ↔ `gelu_approximate`."""

ACTIVATIONS: dict[str, str] = {
    **{kind: kind for kind in "silu gelu gelu_tanh gelu_10 quick_gelu relu relu2 relu6 leaky_relu".split()},
    **{kind: kind for kind in "hardswish laplace linear mish sigmoid sqrtsoftplus tanh xielu".split()},
}
"""`Config.activation` ↔ the `hidden_act` it is written as."""
ACTIVATIONS["gelu_tanh"] = "gelu_pytorch_tanh"
ACTIVATION_NAMES = {
    **{theirs: ours for ours, theirs in ACTIVATIONS.items()},
    **{name: "gelu" if kind == "none" else "gelu_tanh" for name, kind in GELU.items()},
    "swish": "silu",
}
"""And back, with other names of the same."""


def pop_activation(left: dict[str, Any], default: str, key: str = "hidden_act", gated: bool = False) -> dict[str, Any]:
    """Takes the activation of the MLP out of a `config.json`.

    Returns:
        `mlp_class_name` where it is another, `gelu_approximate` and `activation`, as far as they are needed.

    Raises:
        LitGPTError: It is not known here.
    """
    kind = pop_choice(left, key, ACTIVATION_NAMES, default)
    if kind in ("gelu", "gelu_tanh"):
        found = {"activation": None, "gelu_approximate": "tanh" if kind == "gelu_tanh" else "none"}
        return {**found, "mlp_class_name": "GemmaMLP"} if gated else found
    return {"activation": None if gated and kind == "silu" else kind}


def push_activation(config: Any, tanh: str = "gelu_pytorch_tanh") -> str:
    """And back: the name of what a `Config` has; `tanh`: that of the GELU with one, which has several."""
    if config.activation is not None:
        return ACTIVATIONS[config.activation]
    if config.mlp_class_name in ("LLaMAMLP", "LLaMAMoE"):
        return "silu"
    return "gelu" if config.gelu_approximate == "none" else tanh


FACTOR = ("factor", "factor")
ORIGINAL = ("original_max_position_embeddings", "original_max_seq_len")
ROPE_KEYS: dict[str, tuple[tuple[str, str], ...]] = {
    "default": (),
    "linear": (FACTOR,),
    "llama3": (FACTOR, ("low_freq_factor",) * 2, ("high_freq_factor",) * 2, ORIGINAL),
    "yarn": (
        FACTOR,
        ("beta_fast",) * 2,
        ("beta_slow",) * 2,
        ORIGINAL,
        ("mscale",) * 2,
        ("mscale_all_dim",) * 2,
        ("attention_factor",) * 2,
        ("truncate",) * 2,
    ),
    "dynamic": (FACTOR, ("original_max_position_embeddings", "dynamic_beyond")),
    "longrope": (FACTOR, ("short_factor",) * 2, ("long_factor",) * 2, ORIGINAL, ("attention_factor",) * 2),
}
"""By kind of RoPE scaling: keys of `config.json` ↔ keys of `rope_adjustments`."""


PICTURE_POSITIONS = ("mrope_section", "mrope_interleaved")
"""Keys of RoPE that tell the rows and columns of a picture apart; a text has one position a token."""


def pop_rope_settings(left: dict[str, Any]) -> dict[str, Any]:
    """Takes RoPE's settings out of a `config.json` as they are."""
    older, newer = left.pop("rope_scaling", None), left.pop("rope_parameters", None)
    rope = {key: value for key, value in (older or newer or {}).items() if key not in PICTURE_POSITIONS}
    return {key: "default" if value == "mrope" else value for key, value in rope.items()}


def pop_rope(left: dict[str, Any]) -> dict[str, Any]:
    """Takes RoPE's settings out of a `config.json`, as transformers 4 (`rope_scaling`) or 5 (`rope_parameters`) writes
    them.

    Returns `rope_base`, `rope_adjustments` and, where it is set, `rotary_percentage`.

    Raises:
        LitGPTError: A kind of RoPE scaling that is not known here.
    """
    rope = pop_rope_settings(left)
    flat = {key: left.pop(key, None) for key in ("rotary_emb_base", "rope_theta", "partial_rotary_factor")}
    base = rope.pop("rope_theta", None) or flat["rotary_emb_base"] or flat["rope_theta"] or 10000
    found: dict[str, Any] = {"rope_base": int(base) if base == int(base) else base}
    partial = rope.pop("partial_rotary_factor", flat["partial_rotary_factor"])
    if partial is not None:
        found["rotary_percentage"] = partial
    kind = rope.get("rope_type") or rope.get("type") or "default"
    kind = "longrope" if kind == "su" else kind
    if kind == "dynamic":  # the context is what it is stretched to
        original = rope[ORIGINAL[0]] = rope.get(ORIGINAL[0]) or left["max_position_embeddings"]
        found["block_size"] = int(original * rope["factor"])
    if ORIGINAL in ROPE_KEYS.get(kind, ()):
        outside = left.pop(ORIGINAL[0], None)  # which counts, where a file has both
        rope[ORIGINAL[0]] = outside or rope.get(ORIGINAL[0]) or left["max_position_embeddings"]
    if kind == "longrope":
        rope.setdefault("factor", left["max_position_embeddings"] / rope[ORIGINAL[0]])
    if kind not in ROPE_KEYS:
        raise LitGPTError(
            f"config.json asks for RoPE scaling of kind {quoted(kind)}; known here: {', '.join(sorted(ROPE_KEYS))}."
        )
    if kind != "default":
        given = {ours: rope[theirs] for theirs, ours in ROPE_KEYS[kind] if rope.get(theirs) is not None}
        for key, value in {"factor": None, **given}.items():
            if not isinstance(value, list if key in ("short_factor", "long_factor") else int | float):
                raise LitGPTError(
                    f"config.json has `{key}`: {quoted(value)} in its RoPE settings, which {kind} can't have."
                )
        found["rope_adjustments"] = {**({"beta_fast": 32.0, "beta_slow": 1.0} if kind == "yarn" else {}), **given}
    known = {"rope_type", "type", "finetuned", "max_position_embeddings", *(theirs for theirs, _ in ROPE_KEYS[kind])}
    for key, value in rope.items():
        if key not in known and value not in (None, False):
            raise LitGPTError(f"config.json has `{escaped(key)}` in its RoPE settings, which is not known here.")
    return found


def pop_rope_by_window(left: dict[str, Any], part: bool = False) -> dict[str, Any]:
    """Takes out the settings of RoPE that layers with and without a window have each of their own.

    Args:
        left: What is left of a `config.json`.
        part: The class acts on a share of a head that rotates, without a scaling too.

    Raises:
        LitGPTError: As `pop_rope`; or layers with a window have a scaling.
    """
    rope = left.pop("rope_parameters")
    local = {"rope_type": "default", **rope.get("sliding_attention", {})}
    full, adjust = {"rope_type": "default", **rope.get("full_attention", local)}, None
    if local["rope_type"] != "default":
        raise LitGPTError(f"config.json has a `rope_type` {quoted(local['rope_type'])} in windows; it's default here.")
    if full["rope_type"] == "proportional":
        share = full.pop("partial_rotary_factor", 1.0)
        adjust = {"factor": float(full.pop("factor", 1.0)), "share": share}
        full["rope_type"] = "default"
    elif full["rope_type"] == "default" and not part:
        full.pop("partial_rotary_factor", None)
    found = pop_rope(left | {"rope_parameters": full})
    base, share = local.get("rope_theta", 10000.0), local.get("partial_rotary_factor", 1.0) if part else 1.0
    return {
        **found,
        **({"rope_adjustments": adjust} if adjust else {}),
        "rope_local_base_freq": int(base) if base == int(base) else base,
        "rope_local_percentage": share if share != found.get("rotary_percentage", 1.0) else None,
    }


def push_rope_by_window(config: Any, part: bool = False) -> dict[str, Any]:
    """And back, as `rope_parameters`; as much as the config says of them."""
    rope, adjust = push_rope(config), config.rope_adjustments or {}
    full = {"rope_type": "default", **(rope["rope_scaling"] or {}), "rope_theta": rope["rope_theta"]}
    if "share" in adjust:
        full = {"rope_type": "proportional", "rope_theta": rope["rope_theta"], "factor": adjust["factor"]}
        full["partial_rotary_factor"] = adjust["share"]
    local = {"rope_type": "default", "rope_theta": float(config.rope_local_base_freq)}
    if part:
        share = config.rope_local_percentage
        full["partial_rotary_factor"] = config.rotary_percentage
        local["partial_rotary_factor"] = config.rotary_percentage if share is None else share
    return {"rope_parameters": {"full_attention": full, "sliding_attention": local}}


def push_adjustments(kind: str, adjust: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_adjustments` of a kind by the keys of `config.json`."""
    return {"rope_type": kind, **{theirs: adjust[ours] for theirs, ours in ROPE_KEYS[kind] if ours in adjust}}


def push_rope(config: Any) -> dict[str, Any]:
    """A `Config`'s RoPE settings as the two `config.json` keys that transformers 4 and 5 both read."""
    adjust = config.rope_adjustments or {}
    if config.rope_condense_ratio != 1:
        adjust = {"factor": float(config.rope_condense_ratio)}
    said = {}
    if "dynamic_beyond" in adjust:
        said["max_position_embeddings"] = adjust["dynamic_beyond"]
    telling = {"dynamic_beyond": "dynamic", "low_freq_factor": "llama3", "beta_fast": "yarn", "long_factor": "longrope"}
    kind = next((kind for key, kind in telling.items() if key in adjust), "linear")
    return {
        **said,
        "rope_theta": float(config.rope_base),
        "rope_scaling": push_adjustments(kind, adjust) if adjust else None,
    }

"""Folders of updates as PEFT writes them (`adapter_config.json`, `adapter_model.safetensors`), read;
`litgpt.checkpoint.peft_folder.writer` writes them.

What is one layer here may be several there (`attn.qkv` is q_proj, k_proj and v_proj), or the other way round (`fc_1`
and `fc_2` are gate_up_proj). Several updates of rank r in one layer there are one of rank n r, whose B is
block-diagonal; one update there of several layers here is one of each, with the same A. Our files carry our settings in
the header of the safetensors file, which PEFT skips, so that they come back as they were.

Legend: *ours* are names here, *theirs* names in the Hugging Face model.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from litgpt.checkpoint.layout import Checkpoint
from litgpt.checkpoint.peft_folder.embeddings import (
    TokenChanges,
    base_tensor,
    complete_vocabulary,
    fold_head,
    is_token_change,
)
from litgpt.checkpoint.peft_folder.header import restore, saved_settings
from litgpt.checkpoint.reader import EMBEDDING, HEAD, read_files
from litgpt.checkpoint.weights import Tensors, WeightTable, deinterleave_qkv
from litgpt.config import Config
from litgpt.errors import LitGPTError, MissingFileError, escaped
from litgpt.families.base import Interleaved, Join, Rule, Same, Split
from litgpt.model import GPT
from litgpt.peft.lora import QKV_PARTS, SWITCHES, LoRA, matches, matrix_shape, target_names
from litgpt.peft.lora_layers import UPDATES
from litgpt.reading import check_pattern, read_json, reading

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
HEAD_BIAS = "lm_head.bias"
PREFIX = "base_model.model."
"""What PEFT puts before the names of the model it wraps."""

IGNORED_KEYS = frozenset(
    """
    auto_mapping base_model_name_or_path corda_config eva_config exclude_modules fan_in_fan_out inference_mode
    layers_pattern layers_to_transform loftq_config lora_ga_config megatron_core peft_type peft_version
    qalora_group_size revision runtime_config target_modules target_parameters
    task_type
    """.split()
)
"""Keys of `adapter_config.json` that don't change what the saved tensors mean; which layers there are, these tell."""
KNOWN_KEYS = frozenset(
    """
    r lora_alpha lora_dropout rank_pattern alpha_pattern use_rslora use_dora modules_to_save init_lora_weights
    trainable_token_indices ensure_weight_tying
    """.split()
)
MAX_NAME = 200
"""Characters of a module's name that patterns are compared with."""
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Values of `init_lora_weights` with which PEFT changes the model that the updates stand beside."""


@dataclass(frozen=True)
class LowRank:
    """The update of one layer, or of one part of it."""

    a: Tensor
    """`(r, in)`."""
    b: Tensor
    """`(out, r)`."""
    scaling: float
    magnitude: Tensor | None = None
    """`(out,)`."""
    experts: int = 1
    """Above 1: of so many experts, as PEFT has them; `a` is `(experts r, in)`, `b` `(out, r experts)`."""

    @property
    def r(self) -> int:
        """Its rank."""
        return self.a.size(0) // self.experts

    def rows(self, rows: slice) -> LowRank:
        """The update of some rows of the layer."""
        magnitude = None if self.magnitude is None else self.magnitude[rows]
        return replace(self, b=self.b[rows], magnitude=magnitude)


def is_peft(folder: Path) -> bool:
    """Whether PEFT's settings are in a folder."""
    return (folder / ADAPTER_CONFIG).exists()


def peft_weights(folder: Path) -> Path:
    """The file of weights of a PEFT folder.

    Raises:
        LitGPTError: It has none.
    """
    for name in ADAPTER_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise MissingFileError(
        f"{folder} has {ADAPTER_CONFIG} and no {ADAPTER_WEIGHTS[0]} (or .bin) beside it; download it again."
    )


def base_of_peft(folder: Path) -> Path:
    """The model that the updates of a PEFT folder stand beside: a folder, or a name under `checkpoints/`.

    Raises:
        LitGPTError: The folder doesn't say.
    """
    said = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(said, str) or not said or "\0" in said:
        raise LitGPTError(
            f"{folder / ADAPTER_CONFIG} has no base_model_name_or_path; write into it where the model is that the "
            "updates were trained on."
        )
    with reading(str(folder / ADAPTER_CONFIG), "no file of PEFT's settings"):
        return folder / said if not Path(said).exists() and (folder / said).is_dir() else Path(said)


def read_peft(folder: Path, base: Checkpoint) -> tuple[LoRA, dict[str, Tensor]]:
    """What a PEFT folder holds: the method, and its tensors by our names.

    Raises:
        LitGPTError: It uses what has no counterpart here, or doesn't fit the model.
    """
    with reading(folder / ADAPTER_CONFIG, "no file of PEFT's settings"):
        settings = _check_settings(read_json(folder / ADAPTER_CONFIG), folder)
    file = peft_weights(folder)
    model = GPT.skeleton(base.config)
    theirs = read_files([file])
    with reading(folder, "no folder of PEFT's updates"):
        try:
            found, saved, tokens = _import_updates(theirs, settings, WeightTable(base.config), base)
            vocabulary = complete_vocabulary(saved, base.config)
            scalings = {at: _scaling(at, r, settings) for at, r in tokens.ranks().items()}
            tokens.fold(saved, settings, scalings, WeightTable(replace(base.config, tie_embeddings=False)), base)
            fold_head(found, saved)
            state, ranks, alphas = _to_state_dict(found or _no_update(model))
            lora = replace(_method(settings, model, state, saved, ranks, alphas), vocabulary=vocabulary)
            ours = saved_settings(file)
            if ours is not None:
                lora, state = restore(ours, lora, model, state)
            return lora, {**state, **saved}
        except LitGPTError as error:
            raise LitGPTError(f"{folder}: {error}") from None


def _check_settings(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """PEFT's settings, none of which says something that is not understood here."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise LitGPTError(
            f"{folder} holds updates of the kind {escaped(str(kind))}; of PEFT's kinds LORA can be used here."
        )
    if settings.get("task_type") not in (None, "CAUSAL_LM"):
        raise LitGPTError(
            f"{folder} was trained for {escaped(str(settings['task_type']))}, not to continue text (CAUSAL_LM)."
        )
    start = str(settings.get("init_lora_weights", True))
    if start.startswith(CHANGES_BASE):
        raise LitGPTError(
            f"{folder} has init_lora_weights {escaped(start)}, so its updates stand beside a changed model; save it in "
            "PEFT with path_initial_model_for_weight_conversion, which makes plain LoRA of it."
        )
    for pattern in (*(settings.get("rank_pattern") or ()), *(settings.get("alpha_pattern") or ())):
        check_pattern(pattern)
    for key, value in settings.items():
        if key not in IGNORED_KEYS | KNOWN_KEYS and value not in (None, False, "none", [], {}, ""):
            where = f"{folder} has {escaped(key)}: {escaped(json.dumps(value))} in {ADAPTER_CONFIG}"
            raise LitGPTError(f"{where}, which is not known here.")
    return settings


def _import_updates(
    theirs: Tensors, settings: Mapping[str, Any], table: WeightTable, base: Checkpoint
) -> tuple[dict[str, LowRank], dict[str, Tensor], TokenChanges]:
    """The updates by what patterns call our layers, the tensors of modules that were trained whole, and of tokens."""
    updates: dict[str, dict[str, Tensor]] = {}
    tokens = TokenChanges()
    whole: dict[str, str] = {}
    for name in theirs.names:
        plain = name.removeprefix(PREFIX).replace(".default", "")
        match = re.fullmatch(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(\.weight)?", plain)
        if match:
            kind = "lora_magnitude" if match[2].endswith("vector") else match[2]
            updates.setdefault(match[1], {})[kind] = theirs.fetch(name)
        elif is_token_change(plain):
            tokens.take(plain, theirs.fetch(name))
        elif ".lora_" in plain:
            raise LitGPTError(f"it holds {plain}, which has no counterpart here: only linear layers get updates.")
        else:
            plain = re.sub(r"\.(base_layer|token_adapter|modules_to_save)(?=\.)", "", plain)
            if ".original_module." not in plain:
                whole[plain] = name
    places = {name: (rule, part, ours) for ours, rule in table.rules.items() for part, name in source_names(rule)}
    names = _table_names([*(f"{module}.weight" for module in updates), *whole], table)
    found: dict[str, LowRank] = {}
    for module, tensors in updates.items():
        experts = _import_experts(module, tensors, settings, table.config)
        if experts is not None:
            found.update(experts)
            continue
        known = names[f"{module}.weight"].removesuffix(".weight")
        if known not in places:
            known = _router(known, places)
        if known not in places:
            raise LitGPTError(f"it updates {module}, which is no linear layer of this model's architecture.")
        rule, part, ours = places[known]
        found.update(_import_delta(rule, part, ours, _read_delta(module, tensors, settings), table.config))
    modules = tuple(settings.get("modules_to_save") or ())
    asked = {names[plain] for plain in whole if plain.rpartition(".")[0].endswith(modules)}
    present = {names[plain]: name for plain, name in whole.items()}
    return found, _import_saved(present, theirs, asked, table, base), tokens


def _table_names(names: list[str], table: WeightTable) -> dict[str, str]:
    """Names of parameters as PEFT has them → as the weight table has them; the head is `lm_head` to transformers."""
    head = table.head_name().removesuffix("weight")
    plain = {name: re.sub(r"^lm_head\.", head, name) for name in names}
    present = table.present([name for name in plain.values() if not name.startswith(head)])
    known = {theirs: ours for ours, theirs in present.items()}
    return {name: known.get(other, other) for name, other in plain.items()}


def _router(module: str, places: Mapping[str, Any]) -> str:
    """The table's name of a mixture's router, which transformers calls `mlp.gate` whatever a checkpoint does."""
    layer, _, rest = module.rpartition(".mlp.")
    ours = f"transformer.h.{layer.rpartition('.')[2]}.mlp.gate"
    return next((name for name, (_, _, at) in places.items() if rest == "gate" and at == ours), module)


def _import_experts(
    module: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], config: Config
) -> dict[str, LowRank] | None:
    """The updates of one part of all experts, which transformers keeps in one tensor; None: `module` is none.

    A is `(E r, in)`, B `(out, r E)`, experts within ranks. gate_up_proj, `fc_1` over `fc_2`, is told from down_proj by
    its shape.
    """
    match = re.fullmatch(r"(.+\.layers\.(\d+)\..+\.experts)(\.base_layer)*", module)
    if match is None or not config.n_expert:
        return None
    a, b = _of_kinds(module, tensors, UPDATES[:2])
    rows, wide = b.size(0), config.moe_intermediate_size or config.intermediate_size
    up = (rows, a.size(1)) == (2 * int(wide or 0), config.n_embd)
    if not up and (rows, a.size(1)) != (config.n_embd, wide):
        raise LitGPTError(f"its {module} has the shapes {tuple(a.shape)} and {tuple(b.shape)}, no part of the experts.")
    E, name = config.n_expert, f"{match[1]}.{'gate_up_proj' if up else 'down_proj'}"
    stacked_a, stacked_b = a.unflatten(0, (E, -1)), b.unflatten(1, (-1, E)).permute(2, 0, 1)  # (E, r, in), (E, out, r)
    scaling = _scaling(name, a.size(0) // E, settings)
    found = {}
    for expert, (of_a, of_b) in enumerate(zip(stacked_a, stacked_b, strict=True)):
        own = f"transformer.h.{match[2]}.mlp.experts.{expert}"
        piece = LowRank(of_a.contiguous(), of_b.contiguous(), scaling)
        halves = {"fc_1": piece.rows(slice(rows // 2)), "fc_2": piece.rows(slice(rows // 2, rows))}
        found.update({f"{own}.{part}": half for part, half in (halves if up else {"proj": piece}).items()})
    return found


def source_names(rule: Rule) -> Iterable[tuple[int, str]]:
    names = getattr(rule, "theirs", ())
    return enumerate(names if isinstance(rule, Join) else (names,))


def _read_delta(module: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> LowRank:
    """An update as PEFT computes it."""
    a, b, *magnitude = _of_kinds(module, tensors, UPDATES if settings.get("use_dora") else UPDATES[:2])
    r = int(_by_pattern("rank", module, settings, settings.get("r", 8)))
    if a.dim() != 2 or b.dim() != 2 or not a.size(0) == b.size(1) == r:
        raise LitGPTError(f"its {module} has the shapes {tuple(a.shape)} and {tuple(b.shape)}, and rank {r} is said.")
    return LowRank(a, b, _scaling(module, r, settings), magnitude[0] if magnitude else None)


def _of_kinds(module: str, tensors: Mapping[str, Tensor], kinds: tuple[str, ...]) -> list[Tensor]:
    """The tensors of an update, which are of these kinds and no others."""
    if set(tensors) != set(kinds):
        raise LitGPTError(f"of {module} it holds {', '.join(sorted(tensors))}, not {', '.join(kinds)}.")
    return [tensors[kind] for kind in kinds]


def _scaling(module: str, r: int, settings: Mapping[str, Any]) -> float:
    alpha = float(_by_pattern("alpha", module, settings, settings.get("lora_alpha", 8)))
    return alpha / (math.sqrt(r) if settings.get("use_rslora") else r)


def _by_pattern(kind: str, module: str, settings: Mapping[str, Any], default: Any) -> Any:
    """PEFT's `rank_pattern` or `alpha_pattern`: the first that is the end of a name, from a dot on, counts."""
    for pattern, value in (settings.get(f"{kind}_pattern") or {}).items():
        if len(module) <= MAX_NAME and re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _import_delta(rule: Rule, part: int, ours: str, piece: LowRank, config: Config) -> dict[str, LowRank]:
    """An update of one of their layers, as updates of ours."""
    if isinstance(rule, Join):
        return {f"{ours.rpartition('.')[0]}.{QKV_PARTS[part]}": piece}
    if isinstance(rule, Split):
        size = piece.b.size(0) // len(rule.ours)
        return {name: piece.rows(slice(i * size, (i + 1) * size)) for i, name in enumerate(rule.ours)}
    if isinstance(rule, Interleaved):
        order = rule.groups, rule.order
        magnitude = None if piece.magnitude is None else deinterleave_qkv(piece.magnitude, config, *order)
        return {ours: replace(piece, b=deinterleave_qkv(piece.b, config, *order), magnitude=magnitude)}
    if isinstance(rule, Same):
        return {ours: piece}
    raise LitGPTError(f"it updates the layer that holds {ours} among others, which is not known here.")


def _import_saved(
    present: Mapping[str, str], theirs: Tensors, asked: set[str], table: WeightTable, base: Checkpoint
) -> dict[str, Tensor]:
    """The tensors of `modules_to_save` by our names, without those that PEFT only saved along and are as in the base.

    Args:
        present: The names they have in the weight table, and in the file.
        theirs: The file.
        asked: Names, as in the table, of those that are in `modules_to_save`.
        table: Of the model.
        base: The model.
    """
    if not present:
        return {}
    untied = WeightTable(replace(table.config, tie_embeddings=False), table.family)
    expected = GPT.skeleton(untied.config).state_dict()
    sources = {ours: untied.sources(ours) for ours in expected if _has_rule(untied, ours)}
    wanted = [ours for ours, names in sources.items() if all(name in present for name in names)]
    left = set(present) - {name for ours in wanted for name in sources[ours]}
    if left:
        raise LitGPTError(f"it holds {min(left)}, which this model has no place for by itself.")
    read = untied.import_from(Tensors(tuple(present), lambda name: theirs.fetch(present[name])), wanted)
    found = {}
    for ours, tensor in read:
        resized = ours in (EMBEDDING, HEAD, HEAD_BIAS) and tensor.shape[1:] == expected[ours].shape[1:]
        if tensor.shape != expected[ours].shape and not resized:
            raise LitGPTError(
                f"its {ours} has the shape {tuple(tensor.shape)}, not {tuple(expected[ours].shape)}: it belongs to "
                "another model."
            )
        along = asked.isdisjoint(sources[ours])
        if not (along and torch.equal(tensor, base_tensor(base, ours).to(tensor.dtype))):
            found[ours] = tensor
    return found


def _has_rule(table: WeightTable, ours: str) -> bool:
    return ours in table.rules or ours.rpartition(".")[0] in table.rules


def _no_update(model: GPT) -> dict[str, LowRank]:
    """An update that does nothing, for what was trained whole alone: LoRA has one at least."""
    name = "transformer.h.0.attn.proj"
    rows, columns = matrix_shape(model.get_submodule(name))
    return {name: LowRank(torch.zeros(1, columns), torch.zeros(rows, 1), 1.0)}


def _with_equal_parts(found: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """The updates, those of the parts of one layer here with one rank and scaling: A and B are padded with zeros to the
    highest rank, and what else the scaling was is in B."""
    layers: dict[str, list[str]] = {}
    for name in found:
        layers.setdefault(_part_of(name), []).append(name)
    equal = {}
    for names in layers.values():
        widest = max((found[name] for name in names), key=lambda piece: piece.r)
        for name in names:
            piece = found[name]
            if (missing := widest.r - piece.r) or piece.scaling != widest.scaling:
                a, b = F.pad(piece.a, (0, 0, 0, missing)), F.pad(piece.b, (0, missing))
                piece = replace(piece, a=a, b=b * (piece.scaling / widest.scaling), scaling=widest.scaling)
            equal[name] = piece
    return equal


def _to_state_dict(found: Mapping[str, LowRank]) -> tuple[dict[str, Tensor], dict[str, int], dict[str, float]]:
    """Tensors by their names in a state dict, and rank and scaling by what patterns call the layers."""
    found = _with_equal_parts(found)
    layers: dict[str, dict[str, LowRank]] = {}
    for name, piece in found.items():
        layers.setdefault(_layer_of(name), {})[name] = piece
    state: dict[str, Tensor] = {}
    for layer, pieces in layers.items():
        if layer.endswith(".attn.qkv") and layer not in pieces:
            order = [pieces[name] for part in QKV_PARTS if (name := f"{layer[:-3]}{part}") in pieces]
            magnitudes = [piece.magnitude for piece in order if piece.magnitude is not None]
            a, b = torch.cat([piece.a for piece in order]), torch.cat([piece.b for piece in order])
            pieces = {layer: LowRank(a, b, order[0].scaling, torch.cat(magnitudes) if magnitudes else None)}
        for name, piece in pieces.items():
            tensors = {"lora_A": piece.a, "lora_B": piece.b, "lora_magnitude": piece.magnitude}
            state.update({f"{name}.{kind}": tensor for kind, tensor in tensors.items() if tensor is not None})
    names = {re.sub(r"\.experts\.\d+\.", ".experts.", name): piece for name, piece in found.items()}
    return state, {n: piece.r for n, piece in names.items()}, {n: piece.scaling for n, piece in names.items()}


def _part_of(name: str) -> str:
    """What must have one rank and scaling: a layer, or a part of experts."""
    layer = _layer_of(name)
    return f"{layer}.{name.rpartition('.')[2]}" if layer.endswith(".experts") and layer != name else layer


def _layer_of(name: str) -> str:
    """The module here that has an update of that name as a part: all experts are one, and so are query, key, value."""
    stem, _, last = name.rpartition(".")
    if last in QKV_PARTS and stem.endswith(".attn"):
        return f"{stem}.qkv"
    return re.sub(r"\.experts\..+", ".experts", name)


def _method(
    settings: Mapping[str, Any],
    model: GPT,
    state: Mapping[str, Tensor],
    saved: Mapping[str, Tensor],
    ranks: Mapping[str, int],
    scalings: Mapping[str, float],
) -> LoRA:
    """The method whose files hold such tensors; with switches alone, as LitGPT has them, where these can say it."""
    rslora = bool(settings.get("use_rslora"))
    alphas = {name: alpha_of(scaling, ranks[name], rslora) for name, scaling in scalings.items()}
    names = [at for name, module in model.named_modules() for at in target_names(name, module)]
    r = Counter(ranks.values()).most_common(1)[0][0] if ranks else int(settings.get("r", 8))
    alpha = Counter(alphas.values()).most_common(1)[0][0] if alphas else settings.get("lora_alpha", 8)
    layers = sorted({_part_of(name) for name in names})
    other_ranks = {_part_of(name): other for name, other in ranks.items() if other != r}
    other_alphas = {_part_of(name): other for name, other in alphas.items() if other != alpha}
    modules = [name for name, module in model.named_modules() if name]
    kept = sorted({name.rpartition(".")[0] for name in saved})
    return LoRA(
        r=r,
        alpha=alpha,
        dropout=float(settings.get("lora_dropout", 0.0)),
        **_layers(set(ranks), names),
        rank_pattern=_shorten_values(other_ranks, layers) or None,
        alpha_pattern=_shorten_values(other_alphas, layers) or None,
        rslora=rslora,
        dora=bool(settings.get("use_dora")),
        modules_to_save=_shorten_patterns(kept, modules) or None,
    )


def _layers(targets: set[str], names: list[str]) -> dict[str, Any]:
    """The settings that mean these layers."""
    if not targets:
        raise LitGPTError("it holds no update.")
    stands_for = {
        switch: {
            at for at in names if any(matches(at, pattern) for pattern in patterns) and not at.endswith(".experts")
        }
        for switch, patterns in SWITCHES.items()
    }
    on = {switch for switch, covered in stands_for.items() if covered and covered <= targets}
    if set().union(*(stands_for[switch] for switch in on)) == targets:
        return {switch: switch in on for switch in SWITCHES}
    return {"target": _shorten_patterns(sorted(targets), names)}


def _shorten_patterns(chosen: Iterable[str], names: Iterable[str]) -> list[str]:
    """Names as patterns: one for all layers where all of them are meant."""
    chosen, found = set(chosen), []
    for name in sorted(chosen):
        pattern = re.sub(r"\.h\.\d+\.", ".h.*.", name)
        all_meant = {other for other in names if matches(other, pattern)} <= chosen
        found.append(pattern if all_meant else name)
    return list(dict.fromkeys(found))


def _shorten_values(values: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    names = list(names)
    return {
        pattern: value
        for value in dict.fromkeys(values.values())
        for pattern in _shorten_patterns([name for name, other in values.items() if other == value], names)
    }


def alpha_of(scaling: float, r: int, rslora: bool) -> float:
    """`lora_alpha`, without the last digit's noise; whole numbers as such."""
    value = round(scaling * (math.sqrt(r) if rslora else r), 9)
    return int(value) if value == int(value) else value

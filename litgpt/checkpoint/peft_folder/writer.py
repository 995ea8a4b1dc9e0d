"""Writes updates as PEFT's folder, which `peft.PeftModel.from_pretrained` opens over the Hugging Face model.

What has several updates in one of their layers, or one where they have several layers: see
`litgpt.checkpoint.peft_folder.reader`, which reads all this back as it was.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from litgpt.checkpoint.atomic import atomic_folder
from litgpt.checkpoint.finetuned import Finetuned, find_update
from litgpt.checkpoint.fingerprint import BASE, saved_base
from litgpt.checkpoint.layout import CHECKPOINTS, Checkpoint, existing_folder, other_folder
from litgpt.checkpoint.peft_folder.embeddings import base_tensor
from litgpt.checkpoint.peft_folder.header import HEADER
from litgpt.checkpoint.peft_folder.reader import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    PREFIX,
    LowRank,
    alpha_of,
    source_names,
)
from litgpt.checkpoint.weights import WeightTable, interleave_qkv, lazy
from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.families.base import Interleaved, Join, Same, Split
from litgpt.hub_client import HF_CONFIG_FILE
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.peft.lora_layers import LoRAExperts, LoRALinear, row_norms, scatter_rows
from litgpt.prompts.files import PROMPT_STYLE_FILE


def to_peft(path: str | Path, output: str | Path) -> Path:
    """Writes the updates in the folder at `path` (of a LoRA run, or PEFT's) as a PEFT folder, and returns that.

    Raises:
        LitGPTError: The folder holds no updates, PEFT has no counterpart of them, or they can't be written.
    """
    source = existing_folder(path)
    update = find_update(source) if source.is_dir() else None
    if update is None or not isinstance(update.method, LoRA):
        raise LitGPTError(f"{source} holds no LoRA updates; give the folder of a finetune_lora run (…/final).")
    return write_peft(update, other_folder(output, source))


def write_peft(update: Finetuned, output: Path) -> Path:
    """Writes what LoRA learned as a PEFT folder, and returns it.

    Raises:
        LitGPTError: PEFT has no counterpart of it, or the folder can't be written.
    """
    lora, base, learned = update.method, update.base, update.learned()
    assert isinstance(lora, LoRA)
    model = update.skeleton(learned)
    table = WeightTable(model.config)
    pieces: dict[str, LowRank] = {}
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear):
            pieces.update(_export_linear(name, module, model, table, base))
        elif isinstance(module, LoRAExperts):
            pieces.update(_export_experts(name, module, table))
    pieces = {_as_transformers(name, table): piece for name, piece in pieces.items()}
    whole = {_as_transformers(name, table): tensor for name, tensor in _export_saved(lora, learned, table).items()}
    tensors = {
        f"{_peft_name(name, pieces)}{kind}": tensor
        for name, piece in pieces.items()
        for kind, tensor in _tensors_of(piece)
    }
    kept = sorted({name.rpartition(".")[0] for name in whole})
    settings = _adapter_config(lora, pieces, kept, table, base)
    if any(isinstance(module, LoRAExperts) for module in model.modules()):
        settings["lora_dropout"] = 0.0  # which is all that PEFT has for experts
    said = {"format": "pt", HEADER: json.dumps(lora.settings()), BASE: saved_base(update.file)}
    # A safetensors file holds no tensor twice, so those that share memory become copies.
    content = {
        PREFIX + name: t.detach().clone(memory_format=torch.contiguous_format)
        for name, t in {**tensors, **whole}.items()
    }
    with atomic_folder(output) as folder:
        (folder / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        save_file(content, folder / ADAPTER_WEIGHTS[0], metadata=said)
        style = update.file.parent / PROMPT_STYLE_FILE
        if style.is_file():
            (folder / PROMPT_STYLE_FILE).write_bytes(style.read_bytes())
    return output


def _as_transformers(name: str, table: WeightTable) -> str:
    """A name of the weight table, which is of checkpoints, as transformers' model has it: `lm_head`, `mlp.gate`."""
    head, router = table.head_name().removesuffix(".weight"), re.fullmatch(r"(.+\.layers\.\d+)\.\w+\.gate", name)
    if router:
        return f"{router[1]}.mlp.gate"
    return f"lm_head{name.removeprefix(head)}" if name == head or name.startswith(f"{head}.") else name


def _peft_name(name: str, pieces: Mapping[str, LowRank]) -> str:
    """Where the state dict of a PEFT model has the update of a layer, or of a tensor of experts.

    Those of one module are wrapped one in the other, in the order of the tensors there: down_proj is the outer one.
    """
    module, _, last = name.rpartition(".")
    if pieces[name].experts == 1:
        return name
    return f"{module}.base_layer" if last == "gate_up_proj" and f"{module}.down_proj" in pieces else module


def _tensors_of(piece: LowRank) -> Iterable[tuple[str, Tensor]]:
    """The tensors of an update, by the ends of their names."""
    yield ".lora_A.weight", piece.a
    yield ".lora_B.weight", piece.b
    if piece.magnitude is not None:
        yield ".lora_magnitude_vector", piece.magnitude


def _export_linear(
    name: str, module: LoRALinear, model: GPT, table: WeightTable, base: Checkpoint
) -> dict[str, LowRank]:
    """The update of one of our layers, by theirs."""
    rule = table.rules.get(name)
    if isinstance(rule, Join):
        return _export_joined(rule, module, table.config)
    if isinstance(rule, Split):
        return _export_split(rule, model, base)
    whole = _whole_delta(name, module, base)
    if isinstance(rule, Interleaved):
        order = rule.groups, rule.order
        magnitude = None if whole.magnitude is None else interleave_qkv(whole.magnitude, table.config, *order)
        return {rule.theirs: replace(whole, b=interleave_qkv(whole.b, table.config, *order), magnitude=magnitude)}
    if isinstance(rule, Same):
        return {rule.theirs: whole}
    raise LitGPTError(f"The update of {name} has no counterpart in PEFT: there, the layer is a part of a larger one.")


def _whole_delta(name: str, module: LoRALinear, base: Checkpoint) -> LowRank:
    """The update of a layer as one, block-diagonal where it has several."""
    magnitude: Tensor | None = module.lora_magnitude
    if magnitude is not None and module.parts is not None:
        magnitude = scatter_rows(magnitude, _norms(name, base).to(magnitude.dtype), module.parts)
    return LowRank(module.lora_A, module.up(), module.scaling, magnitude)


def _norms(name: str, base: Checkpoint) -> Tensor:
    return row_norms(base_tensor(base, f"{name}.weight"))


def _export_joined(rule: Join, module: LoRALinear, config: Config) -> dict[str, LowRank]:
    if module.parts is None:  # one update of all: the same A for each
        rows = [size for size in config.qkv_rows(int(rule.ours.split(".")[2])) if size]
        parts, starts = list(rule.theirs), [module.lora_A] * len(rows)
    else:
        rows = [len(part) for part in module.parts]
        q, k, _ = config.qkv_rows(int(rule.ours.split(".")[2]))
        parts = [rule.theirs[(0, q, q + k).index(part.start)] for part in module.parts]
        starts = list(module.lora_A.split(module.r))
    blocks = module.lora_B.split(rows)
    magnitudes: Iterable[Tensor | None] = (
        [None] * len(rows) if module.lora_magnitude is None else module.lora_magnitude.split(rows)
    )
    return {
        theirs: LowRank(a, b, module.scaling, magnitude)
        for theirs, a, b, magnitude in zip(parts, starts, blocks, magnitudes, strict=True)
    }


def _export_split(rule: Split, model: GPT, base: Checkpoint) -> dict[str, LowRank]:
    """The updates of several of our layers that are one of theirs: block-diagonal, or with the A that they share."""
    modules = {name: model.get_submodule(name) for name in rule.ours}
    pieces = {name: _whole_delta(name, m, base) for name, m in modules.items() if isinstance(m, LoRALinear)}
    first = next(iter(pieces.values()))
    shared = len(pieces) == len(modules) and all(
        piece.scaling == first.scaling and torch.equal(piece.a, first.a) for piece in pieces.values()
    )
    blocks, magnitudes, column = [], [], 0
    width = first.r if shared else sum(piece.r for piece in pieces.values())
    for name, module in modules.items():
        piece = pieces.get(name)
        rows = piece.b.size(0) if piece is not None else int(module.weight.size(0))  # type: ignore[operator]
        block = first.b.new_zeros(rows, width)
        if piece is not None:
            block[:, column : column + piece.r] = piece.b * (piece.scaling / first.scaling)
            column += 0 if shared else piece.r
        blocks.append(block)
        if first.magnitude is not None:
            own = piece.magnitude if piece is not None else _norms(name, base).to(first.magnitude.dtype)
            assert own is not None
            magnitudes.append(own)
    a = first.a if shared else torch.cat([piece.a for piece in pieces.values()])
    return {rule.theirs: LowRank(a, torch.cat(blocks), first.scaling, torch.cat(magnitudes) if magnitudes else None)}


def _export_experts(name: str, module: LoRAExperts, table: WeightTable) -> dict[str, LowRank]:
    """The updates of experts, which transformers keeps in two tensors; the reader has the form."""
    if module.kinds[2:]:
        raise LitGPTError("PEFT has no DoRA of experts, so this can't be written as its folder; merge it instead.")
    rule = table.rules.get(f"{name}.0.proj")
    match = re.match(r"(.+\.layers\.\d+)\.", rule.theirs) if isinstance(rule, Same) else None
    if match is None:
        raise LitGPTError(
            f"The updates of the experts of {table.family.architectures[0]} can't be written for PEFT; leave them out "
            "(lora_target), or merge them instead (`litgpt merge_lora`)."
        )
    found = {}
    if "proj" in module.parts:
        found[f"{match[1]}.mlp.experts.down_proj"] = _flatten(*module.matrices("proj"), module.updates["proj"].scaling)
    halves = [part for part in ("fc_1", "fc_2") if part in module.parts]
    if halves:
        found[f"{match[1]}.mlp.experts.gate_up_proj"] = _gate_and_up(module, halves)
    return found


def _gate_and_up(module: LoRAExperts, halves: Sequence[str]) -> LowRank:
    """The updates of `fc_1` and `fc_2`, or of one of them, as one of both."""
    starts, ends = zip(*(module.matrices(part) for part in halves), strict=True)
    scalings = [module.updates[part].scaling for part in halves]
    if len(halves) == 2 and scalings[0] == scalings[1] and torch.equal(*starts):
        return _flatten(starts[0], torch.cat(ends, dim=1), scalings[0])
    columns = []
    for half, end, scaling in zip(halves, ends, scalings, strict=True):
        end, empty = end * (scaling / scalings[0]), torch.zeros_like(end)
        columns.append(torch.cat((end, empty) if half == "fc_1" else (empty, end), dim=1))
    return _flatten(torch.cat(starts, dim=1), torch.cat(columns, dim=2), scalings[0])


def _flatten(a: Tensor, b: Tensor, scaling: float) -> LowRank:
    """Of all experts: A `(E, r, in)` and B `(E, out, r)` as PEFT has them, `(E r, in)` and `(out, r E)`."""
    return LowRank(a.flatten(0, 1), b.permute(1, 2, 0).flatten(1), scaling, experts=a.size(0))


def _export_saved(lora: LoRA, learned: Mapping[str, Tensor], table: WeightTable) -> dict[str, Tensor]:
    """The tensors of modules that were trained whole, by their names."""
    mine = {name: tensor for name, tensor in learned.items() if lora.saves(name)}
    try:
        return dict(table.export_from(lazy(mine)))
    except LitGPTError:
        raise
    except KeyError as error:
        raise LitGPTError(
            f"A layer of {table.family.architectures[0]} holds {error.args[0]} too, which was not trained whole with "
            "its neighbours; PEFT can't save a part of a layer."
        ) from None


def _adapter_config(
    lora: LoRA, pieces: Mapping[str, LowRank], kept: list[str], table: WeightTable, base: Checkpoint
) -> dict[str, Any]:
    """`adapter_config.json`."""
    alphas = {name: alpha_of(piece.scaling, piece.r, lora.rslora) for name, piece in pieces.items()}
    r = Counter(piece.r for piece in pieces.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    everything = [name for rule in table.rules.values() for _, name in source_names(rule)]
    modules = {name for name, piece in pieces.items() if piece.experts == 1}
    stacked = sorted({".".join(name.split(".")[-3:]) for name in pieces.keys() - modules})
    _refuse_neighbours(modules, table)
    transposed = any(isinstance(rule, Same) and rule.transpose for rule in table.rules.values())
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": _base_name(base),
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "target_modules": _suffixes(modules, everything),
        **({"target_parameters": stacked} if stacked else {}),
        "modules_to_save": kept or None,
        "rank_pattern": {name: piece.r for name, piece in pieces.items() if piece.r != r},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "use_rslora": lora.rslora,
        "use_dora": lora.dora,
        "bias": "none",
        "fan_in_fan_out": transposed,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def _refuse_neighbours(modules: Iterable[str], table: WeightTable) -> None:
    """Raises a LitGPTError for what PEFT takes for a part of experts when it opens the folder of a mixture."""
    for name in modules if table.config.n_expert else ():
        if name.rpartition(".")[2] in ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"):
            raise LitGPTError(
                f"PEFT takes an update of {name}, which is no expert, for one of the experts beside it; leave it out "
                "(lora_target), or merge it instead (`litgpt merge_lora`)."
            )


def _suffixes(targets: set[str], everything: Iterable[str]) -> list[str]:
    """The last parts of names where all layers with that last part are meant, else whole names."""
    others = {name.rpartition(".")[2] for name in everything if name not in targets}
    return sorted({last if (last := name.rpartition(".")[2]) not in others else name for name in targets})


def _base_name(base: Checkpoint) -> str:
    """What the Hugging Face libraries open the model by: its folder, or its name on the hub."""
    if base.kind == "hf" or (base.dir / HF_CONFIG_FILE).is_file():
        return str(base.dir.resolve())
    said = base.config.hf_config
    if said.get("org") and said.get("name"):
        return f"{said['org']}/{said['name']}"
    return str(base.dir.relative_to(CHECKPOINTS) if base.dir.is_relative_to(CHECKPOINTS) else base.dir.resolve())

"""A PEFT folder that we wrote comes back as it was: its file carries our settings, in a place that PEFT skips."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from litgpt.errors import LitGPTError
from litgpt.model import GPT
from litgpt.model.moe import Experts
from litgpt.peft.lora import LoRA, TargetModule, qkv_parts
from litgpt.peft.lora_layers import UPDATES, Update
from litgpt.reading import reading

HEADER = "litgpt"
"""The key of our settings in the header of a safetensors file."""


def saved_settings(file: Path) -> dict[str, Any] | None:
    """Our settings in the header of a safetensors file; None: it is not ours, or was written again by another."""
    if file.suffix != ".safetensors":
        return None
    with suppress(LitGPTError), reading(file, "no safetensors file"), safe_open(file, framework="pt") as opened:
        said = json.loads((opened.metadata() or {}).get(HEADER, "null"))
        return said if isinstance(said, dict) else None
    return None


def restore(said: dict[str, Any], read: LoRA, model: GPT, state: dict[str, Tensor]) -> tuple[LoRA, dict[str, Tensor]]:
    """The method with the settings that the file says, and its tensors, where these are what was written."""
    try:
        with reading("The header of the file", "no table of settings"):
            lora = LoRA(**said)
            targets, found = lora.targets(model), read.targets(model)
    except LitGPTError:
        return read, state
    unsaid = found.keys() - targets.keys()
    if targets.keys() - found.keys() or any(state[f"{name}.lora_B"].any() for name in unsaid):
        return read, state
    result: dict[str, Tensor] = {}
    for name, target in targets.items():
        for at, update, rows in _update_locations(name, target, model):
            other = found[name].updates[0] if not name.endswith(".experts") else _update_at(at, found[name])
            mine = {kind: state[f"{at}.{kind}"] for kind in UPDATES if f"{at}.{kind}" in state}
            narrowed = _from_block_diagonal(mine, update.r, rows)
            if other is None or narrowed is None or abs(update.scaling / other.scaling - 1) > 1e-6:
                return read, state
            result.update({f"{at}.{kind}": tensor for kind, tensor in narrowed.items()})
    return lora, result


def _update_locations(name: str, target: TargetModule, model: GPT) -> Iterable[tuple[str, Update, list[range] | None]]:
    """Each update of a layer: what its tensors' names begin with, how it is made, and the rows it is of; None: all."""
    module = model.get_submodule(name)
    if isinstance(module, Experts):
        for part, update in zip(target.parts, target.updates, strict=True):
            for expert in range(model.config.n_expert):
                yield f"{name}.{expert}.{part}", update, None
    else:
        yield name, target.updates[0], qkv_parts(model.config, name, target.parts) if target.parts else None


def _update_at(name: str, target: TargetModule) -> Update | None:
    """The update of a part of experts, by the name of one of them."""
    return dict(zip(target.parts, target.updates, strict=True)).get(name.rpartition(".")[2])


def _from_block_diagonal(tensors: Mapping[str, Tensor], r: int, rows: list[range] | None) -> dict[str, Tensor] | None:
    """The updates of rank r that a block-diagonal one is made of; None where it isn't one."""
    a, b = tensors["lora_A"], tensors["lora_B"]
    parts = rows or [range(b.size(0))]
    if a.size(0) == len(parts) * r and b.size() == (sum(map(len, parts)), r):
        return dict(tensors)  # as it is
    if a.size(0) % r or parts[-1].stop > b.size(0):
        return None
    firsts = [i * r for i in range(len(parts))]
    if rows is None:  # one of several layers that are one there: the columns of the others are empty
        used = b.any(dim=0).nonzero().flatten()
        firsts = [int(used[0]) // r * r if len(used) else 0]
    rest, blocks = b.clone(), []
    for first, part in zip(firsts, parts, strict=True):
        blocks.append(b[part.start : part.stop, first : first + r])
        rest[part.start : part.stop, first : first + r] = 0
    if rest.any():
        return None
    found = {"lora_A": torch.cat([a[first : first + r] for first in firsts]), "lora_B": torch.cat(blocks)}
    if "lora_magnitude" in tensors:
        magnitude = tensors["lora_magnitude"]
        found["lora_magnitude"] = torch.cat([magnitude[part.start : part.stop] for part in parts])
    return found

"""What PEFT says of embedding and head besides plain updates: an update of the embedding, the rows of some tokens
(`trainable_token_indices`), more rows. Here each of these is a module that was trained whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from litgpt.checkpoint.layout import Checkpoint
from litgpt.checkpoint.reader import EMBEDDING, HEAD, open_weights
from litgpt.checkpoint.weights import WeightTable
from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.peft.lora_layers import merged

KINDS = r"(.+)\.(lora_embedding_A|lora_embedding_B|token_adapter\.trainable_tokens_delta)"
"""Names of their tensors: a module, and what there is of it."""
DELTA = "trainable_tokens_delta"


@dataclass
class TokenChanges:
    """Their tensors, by module and kind."""

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def take(self, name: str, tensor: Tensor) -> None:
        """Keeps a tensor of one of `KINDS`."""
        module, _, kind = name.rpartition(".")
        self.tensors.setdefault(module.removesuffix(".token_adapter"), {})[kind] = tensor

    def ranks(self) -> dict[str, int]:
        """Of the updates, by module."""
        kind = "lora_embedding_A"
        return {module: tensors[kind].size(0) for module, tensors in self.tensors.items() if kind in tensors}

    def fold(
        self,
        saved: dict[str, Tensor],
        settings: Mapping[str, Any],
        scalings: Mapping[str, float],
        table: WeightTable,
        base: Checkpoint,
    ) -> None:
        """Adds what was changed to the tensors that were trained whole.

        Args:
            saved: These, by our names; a head that is the embedding gets what the embedding gets.
            settings: PEFT's.
            scalings: Of the updates, by module.
            table: Of a model whose head is a tensor of its own.
            base: The model.

        Raises:
            LitGPTError: It is of another module than embedding and head, or doesn't fit.
        """
        own = {table.sources(ours)[0].removesuffix(".weight"): ours for ours in (EMBEDDING, HEAD)}
        rows: dict[str, tuple[list[int], Tensor]] = {}
        if settings.get("trainable_token_indices") and not any(DELTA in held for held in self.tensors.values()):
            raise LitGPTError("it has trainable_token_indices, and holds no rows of these tokens.")
        for module, tensors in self.tensors.items():
            ours = own.get(module) or own.get(module.replace("lm_head", table.head_name().removesuffix(".weight")))
            if ours is None:
                raise LitGPTError(f"it changes tokens of {module}, which is neither the embedding nor the head.")
            if DELTA in tensors:
                rows[ours] = token_indices(module, settings), tensors[DELTA]
            if "lora_embedding_A" in tensors and "lora_embedding_B" in tensors:
                start, a, b = whole(ours, saved, base), tensors["lora_embedding_A"], tensors["lora_embedding_B"]
                if (b.size(0), a.size(1)) != (start.size(1), start.size(0)):
                    raise LitGPTError(f"its update of {module} has another number of tokens or another width.")
                saved[ours] = start + scalings[module] * (b.float() @ a.float()).mT
        if base.config.tie_embeddings and EMBEDDING in rows:
            rows.setdefault(HEAD, rows[EMBEDDING])
        for ours, (indices, values) in rows.items():
            changed = whole(ours, saved, base).clone()
            if len(indices) != len(values) or not all(0 <= index < len(changed) for index in indices):
                raise LitGPTError(f"its trainable_token_indices are not those of the {len(values)} rows it holds.")
            changed[torch.tensor(indices, dtype=torch.long)] = values.to(changed)
            saved[ours] = changed


def token_indices(module: str, settings: Mapping[str, Any]) -> list[int]:
    """The tokens whose rows of a module were trained: `trainable_token_indices`, a list or one for each module."""
    said = settings.get("trainable_token_indices")
    if isinstance(said, Mapping):
        said = next((ids for name, ids in said.items() if f".{module}".endswith(f".{name}")), None)
    if not isinstance(said, list) or not all(type(index) is int for index in said):
        raise LitGPTError(f"it holds rows of {module}, and trainable_token_indices doesn't say of which tokens.")
    return said


def whole(ours: str, saved: Mapping[str, Tensor], base: Checkpoint) -> Tensor:
    """The tensor of that name, as it was trained or as the base has it, in float32 or better."""
    tensor = saved[ours] if ours in saved else base_tensor(base, ours)
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def base_tensor(base: Checkpoint, ours: str) -> Tensor:
    """The base's tensor of that name; of a tied head, the embedding."""
    weights = open_weights(base)
    return weights.fetch(ours if ours in weights.names else EMBEDDING)


def complete_vocabulary(saved: dict[str, Tensor], config: Config) -> int | None:
    """How many tokens there are where not as many as in the model; then `saved` has embedding and head of so many.

    Raises:
        LitGPTError: It has one of them only.
    """
    n_rows = config.padded_vocab_size
    changed = {name: saved[name] for name in (EMBEDDING, HEAD) if name in saved and len(saved[name]) not in (0, n_rows)}
    if not changed:
        return None
    if config.tie_embeddings:
        for name in (EMBEDDING, HEAD):
            saved.setdefault(name, next(iter(changed.values())))
    sizes = {name: len(saved.get(name, ())) for name in (EMBEDDING, HEAD)}
    if len(set(sizes.values())) > 1:
        raise LitGPTError(
            f"it has a vocabulary of {len(next(iter(changed.values())))} tokens in its {next(iter(changed))}, where "
            f"the model has {n_rows}, and not in the other of embedding and head; save both (modules_to_save)."
        )
    return sizes[HEAD]


def fold_head(found: dict[str, Any], saved: dict[str, Tensor]) -> None:
    """A head that was trained whole and has an update as well is one that was trained whole."""
    if HEAD in saved and "lm_head" in found:
        update = found.pop("lm_head")
        start = saved[HEAD].to(torch.promote_types(saved[HEAD].dtype, torch.float32))
        saved[HEAD] = merged(start, update.a, update.b, update.scaling, update.magnitude)


def is_token_change(name: str) -> bool:
    """Whether a tensor of that name is one of `KINDS`."""
    return re.fullmatch(KINDS, name) is not None

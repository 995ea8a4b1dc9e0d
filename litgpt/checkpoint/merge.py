"""A trained update and the weights it was trained beside become one file of plain weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from litgpt.checkpoint.dtypes import cast
from litgpt.checkpoint.finetuned import Finetuned
from litgpt.checkpoint.layout import LIT_MODEL
from litgpt.checkpoint.reader import EMBEDDING, HEAD, open_weights
from litgpt.checkpoint.writer import write_lit
from litgpt.config import Config
from litgpt.peft import Wrapped, merged_weights


def merge(update: Finetuned, folder: Path, dtype: torch.dtype | None = None) -> Config:
    """Writes what LoRA learned, merged into the weights it was learned beside, as `lit_model.pth` of `folder`, one
    tensor in memory at a time; returns the configuration of the result.

    Weights without an update are copied as they are; updates are added in float32.

    Args:
        update: What was learned, and on what.
        folder: Where the result goes.
        dtype: Of the result; None: as in the model it was learned on.

    Raises:
        LitGPTError: The update is not one of this model with these settings.
    """
    base = update.base
    learned = update.learned()
    weights = open_weights(base)
    model = update.skeleton(learned)
    tied = bool(base.config.tie_embeddings)
    parts = tied and (isinstance(model.lm_head, Wrapped) or not model.tied)  # head and embedding, from here on

    def plain() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            if not (tied and name == HEAD):
                yield name, learned[name].to(tensor.dtype) if name in learned else tensor
        if parts:
            embedding = weights.fetch(EMBEDDING)
            yield HEAD, learned[HEAD].to(embedding.dtype) if HEAD in learned else embedding

    merged = merged_weights(model, plain())
    narrowed = ((name, cast(name, tensor, dtype)) for name, tensor in merged)
    write_lit(folder / LIT_MODEL, narrowed, {HEAD: EMBEDDING} if tied and not parts else None)
    return replace(model.config, tie_embeddings=tied and not parts)

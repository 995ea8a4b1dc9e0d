"""A trained update and the weights it was trained beside become one file of plain weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from litgpt.checkpoint.layout import LIT_MODEL, Checkpoint
from litgpt.checkpoint.reader import EMBEDDING, HEAD, load_pth, open_weights
from litgpt.checkpoint.writer import write_lit
from litgpt.errors import LitGPTError
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.peft import load_owned, merged_weights


def merge(folder: Path, lora: LoRA, base: Checkpoint, dtype: torch.dtype | None = None) -> None:
    """Writes `lit_model.pth` beside the `lit_model.pth.lora` of `folder`, one tensor in memory at a time.

    Weights without an update are copied as they are; updates are added in float32.

    Args:
        folder: Where the update is.
        lora: How it was trained.
        base: What it was trained beside.
        dtype: Of the result; None: as in `base`.

    Raises:
        LitGPTError: The update is missing, or not one of this model with these settings.
    """
    path = folder / f"{LIT_MODEL}{lora.suffix}"
    if not path.is_file():
        raise LitGPTError(f"{folder} has no {path.name} to merge; give the folder of a finetune_lora run (…/final).")
    update = load_pth(path)
    weights = open_weights(base)
    model = GPT.skeleton(base.config)
    lora.attach(model)
    load_owned(model, lora.owns, update, str(path))
    tied = bool(base.config.tie_embeddings)

    def plain() -> Iterator[tuple[str, Tensor]]:
        yield from ((name, tensor) for name, tensor in weights if not (tied and name == HEAD))
        if tied and lora.head:  # from here on the head differs from the embedding
            yield HEAD, weights.fetch(EMBEDDING)

    merged = merged_weights(model, plain())
    cast = ((name, tensor.to(dtype) if tensor.is_floating_point() else tensor) for name, tensor in merged)
    write_lit(folder / LIT_MODEL, cast, {HEAD: EMBEDDING} if tied and not lora.head else None)

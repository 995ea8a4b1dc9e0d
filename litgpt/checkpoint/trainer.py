"""Checkpoints of Lightning's Trainer, whose model was held by a module of the user's."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from litgpt.checkpoint.reader import UNREADABLE
from litgpt.errors import LitGPTError, one_line


def trainer_weights(path: Path, names: list[str]) -> dict[str, Tensor]:
    """The weights called `names` in such a file, whatever attribute of the user's module the model was.

    Raises:
        LitGPTError: The file can't be read, or lacks one of them.
    """
    if not path.is_file():
        raise LitGPTError(f"There is no Trainer checkpoint {path}.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except UNREADABLE as error:
        raise LitGPTError(f"{path} is no Trainer checkpoint ({one_line(error)}).") from None
    found = {}
    for name in names:
        matches = [key for key in state if key == name or key.endswith(f".{name}")]
        if not matches:
            raise LitGPTError(f"{path} has no tensor {name!r}.")
        found[name] = state[min(matches, key=len)]
    return found

"""What weights a checkpoint has, in a few characters, by which what was learned knows the model it was learned on."""

from __future__ import annotations

import zipfile
import zlib
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from litgpt.checkpoint.layout import Checkpoint
from litgpt.checkpoint.reader import EMBEDDING, HEAD, open_weights
from litgpt.errors import LitGPTError, one_line
from litgpt.model import GPT

BASE = "litgpt_base"
"""The record of a `.pth` file of updates with the fingerprint of their base."""
LONGEST = 1000
"""Bytes of a fingerprint, at most."""
VALUES = 2**26
"""Of a model with more weights than these, as many, taken evenly from every tensor, stand for all."""
BLOCKS = 64
"""Pieces of a tensor that stand for it, each of neighbours: pages of a file that aren't needed aren't read."""
WIDTHS = (torch.bfloat16, torch.float16)
"""What weights are rounded to, so that a copy in another precision is still the same model."""


def fingerprint(checkpoint: Checkpoint) -> str:
    """Of the weights of a checkpoint: equal, by `same_weights`, in every kind of folder and every precision that holds
    them.

    Raises:
        LitGPTError: They can't be read.
    """
    try:
        stamps = tuple((file.stat().st_size, file.stat().st_mtime_ns) for file in checkpoint.files)
    except OSError as error:
        raise LitGPTError(f"{checkpoint.path} can't be read ({error.strerror}).") from None
    return _fingerprint(checkpoint, stamps)


@lru_cache(maxsize=16)
def _fingerprint(checkpoint: Checkpoint, stamps: tuple[tuple[int, int], ...]) -> str:
    """`stamps`: size and time of each file, by which a changed one is another key."""
    weights = open_weights(checkpoint)
    total = sum(tensor.numel() for tensor in GPT.skeleton(checkpoint.config).state_dict().values())
    room = total if total <= VALUES else max(BLOCKS, VALUES // len(weights.names))
    digests = {name: _digests(tensor, room) for name, tensor in weights}
    if digests.get(HEAD) == digests.get(EMBEDDING):
        digests.pop(HEAD, None)  # a tied head is or isn't in a file
    said = (b"".join(name.encode() + digests[name][at] for name in sorted(digests)) for at in range(len(WIDTHS)))
    return "-".join(blake2b(each, digest_size=12).hexdigest() for each in said)


def _digests(tensor: Tensor, room: int) -> tuple[bytes, ...]:
    """Of a tensor's shape and values, at most some `room` of them, rounded to each of `WIDTHS`."""
    values, shape = tensor.reshape(-1), repr(tuple(tensor.shape)).encode()
    if len(values) > room:
        width = room // BLOCKS
        starts = [number * (len(values) - width) // (BLOCKS - 1) for number in range(BLOCKS)]
        values = torch.cat([values[start : start + width] for start in starts])
    rounded = (values.to(dtype) if values.is_floating_point() else values for dtype in WIDTHS)
    raw = (each.contiguous().view(torch.uint8).numpy().data for each in rounded)
    return tuple(blake2b(each, key=shape[:64], digest_size=16).digest() for each in raw)


def same_weights(one: str, other: str) -> bool:
    """Whether two fingerprints are of the same weights, in one precision or in two."""
    return any(a == b for a, b in zip(one.split("-"), other.split("-"), strict=False))


def check_base(file: Path, base: str, where: Path) -> None:
    """Holds the model that updates meet to the one they were learned on; updates of other tools tell of none.

    Args:
        file: The updates.
        base: The fingerprint of the model.
        where: Its folder.

    Raises:
        LitGPTError: It is another one, or the file is damaged.
    """
    learned_on = saved_base(file)
    if learned_on and not same_weights(learned_on, base):
        raise LitGPTError(
            f"{file} was trained on other weights than {where} holds now, so together they are no model: put those "
            "back, or name the folder that has them."
        )


def saved_base(file: Path) -> str:
    """The fingerprint of the model that the updates in a file were learned on; empty: it doesn't tell.

    Raises:
        LitGPTError: The file is damaged.
    """
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                return str((opened.metadata() or {}).get(BASE, ""))
        if not zipfile.is_zipfile(file):
            return ""
        with zipfile.ZipFile(file) as archive:
            found = [entry for entry in archive.infolist() if entry.filename.endswith(f"/{BASE}")]
            if not found or found[0].file_size > LONGEST:
                return ""
            return archive.read(found[0]).decode(errors="replace")
    except (SafetensorError, OSError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise LitGPTError(f"{file} is damaged ({one_line(error)}); make or download it again.") from None

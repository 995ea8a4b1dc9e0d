"""Blocks of consecutive tokens from one long stream, memory-mapped."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from litgpt.data.base import FIRST, DataModule, largest_ids
from litgpt.data.storage.fingerprint import array_hash
from litgpt.data.storage.token_cache import cache_folder, cached_documents
from litgpt.errors import LitGPTError, check_token_ids

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

SCAN = 1 << 24
"""Tokens that are looked at together when a whole file is scanned."""


class TokenBlocks:
    """Samples of `length + 1` consecutive tokens; each starts with the one before's last, so all are targets once.

    Args:
        tokens: The stream, `(N,)`.
        length: Tokens that are input at a time.
        seed: Of the training phase: `epoch(n)` shifts where the first block starts, so that cuts fall elsewhere.
            None (validation): blocks start at 0 and cover the whole stream, the last one shorter.
    """

    def __init__(self, tokens: np.ndarray, length: int, seed: int | None = None) -> None:
        self.tokens, self.length, self.seed = tokens, length, seed
        targets = len(tokens) - 1
        self.count = targets // length if seed is not None else -(-targets // length)
        if seed is not None and self.count > 1:
            self.count -= 1  # room for the first block to start anywhere in `length` places
        self.slack = targets - self.count * length
        self.phase = 0
        self.epoch(0)

    def epoch(self, n: int) -> None:
        """Chooses where the blocks of epoch `n` start; the same for the same `seed` and `n`."""
        if self.seed is not None:
            self.phase = random.Random(f"{self.seed}-{n}").randint(0, self.slack)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the stream."""
        return array_hash(self.tokens).decode()

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each sample."""
        return list(map(self.known_length, range(len(self))))

    def known_length(self, index: int) -> int:
        """Tokens of a sample, all but the first targets, without reading it."""
        return min(self.length, len(self.tokens) - 1 - index * self.length) + 1

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        import torch

        if not 0 <= index < len(self):
            raise IndexError(index)
        start = self.phase + index * self.length
        ids = torch.from_numpy(self.tokens[start : start + self.length + 1].astype("int64"))
        return {"input_ids": ids, "labels": ids}


class TokenModule(DataModule):
    """A source of token streams; a subclass finds them in `setup` and hands them to `cut`."""

    seed: int
    cache_dir: Path | None
    vocab_size: int | None = None
    """Ids that the tokens are drawn from, once `setup` is done; None where nothing tells."""

    def cut(self, train: np.ndarray, val: np.ndarray | None, where: Path) -> None:
        """Makes the data sets; `where` is named in errors.

        Raises:
            LitGPTError: The training stream doesn't fill a block.
        """
        length = block_length(self)
        if not len(train):
            raise LitGPTError(f"{where} holds nothing to train on; give texts or tokens.")
        if len(train) <= length:
            raise LitGPTError(
                f"{where} has {len(train)} training tokens, no block of {length + 1}; lower train.max_seq_length."
            )
        self.train_dataset = TokenBlocks(train, length, self.seed)
        self.val_dataset = TokenBlocks(val, length) if val is not None and len(val) > 1 else None
        n_val = len(val) if self.val_dataset is not None and val is not None else 0
        self.log(f"{where}: {len(train):,} training tokens, {n_val:,} for validation.")

    def tokenize(
        self, version: bytes, files: Sequence[Path], read: Callable[[Path], Iterable[str]], kind: str
    ) -> np.ndarray:
        """The tokens of the texts in files, as `cached_documents`; `kind` names the texts in errors."""
        if self.tokenizer is None:
            raise LitGPTError(f"{kind} need a tokenizer: give --tokenizer_dir.")
        return cached_documents(version, files, read, self.tokenizer, cache_folder(self.cache_dir))

    def check_vocabulary(self, size: int) -> None:
        """Raises a LitGPTError when a token id is `size` or more; reads everything, of chunks the first blocks."""
        for dataset in (self.train_dataset, self.val_dataset):
            if dataset is not None:
                whole = isinstance(dataset, TokenBlocks)
                ids = [max_token(dataset.tokens)] if whole else largest_ids(dataset, FIRST)
                check_token_ids(ids, size, "The data")


def block_length(module: DataModule) -> int:
    """How many tokens a block has as input.

    Raises:
        LitGPTError: `connect` set no limit.
    """
    if module.max_seq_length < 1:
        raise LitGPTError("How many tokens a block has is not known: call connect(max_seq_length=...) before setup().")
    return module.max_seq_length


def max_token(tokens: np.ndarray) -> int:
    """The largest id of a stream, read piece by piece."""
    return max((int(tokens[start : start + SCAN].max()) for start in range(0, len(tokens), SCAN)), default=0)

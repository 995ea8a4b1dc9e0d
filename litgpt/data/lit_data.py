"""Tokens in LitData's chunks, on disk or in a store (s3://…), as `litdata.optimize` writes them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litgpt.data.base import DataModule
from litgpt.data.storage.blocks import TokenModule, block_length
from litgpt.data.storage.permutation import ChunkedOrder
from litgpt.data.storage.token_cache import content_hash
from litgpt.errors import LitGPTError, MissingFileError, MissingPackageError

if TYPE_CHECKING:
    from torch import Tensor


class LitDataBlocks:
    """Blocks of `length + 1` tokens from a folder of chunks.

    Raises:
        LitGPTError: There is no such folder, litdata isn't installed, or the chunks can't be read.
    """

    def __init__(self, folder: str, length: int) -> None:
        try:
            from litdata.streaming import StreamingDataset, TokensLoader
        except ImportError:
            raise MissingPackageError(
                f"{folder} is read by litdata; install it by: pip install 'litgpt[litdata]'."
            ) from None
        if not has_chunks(folder):
            raise MissingFileError(f"{folder} is no folder of LitData's: it has no index.json.")
        try:
            self.chunks: Any = StreamingDataset(folder, item_loader=TokensLoader(block_size=length + 1), shuffle=False)
            self.count = len(self.chunks)
        except Exception as error:  # litdata raises whatever its parts do
            raise LitGPTError(f"{folder} can't be read by litdata ({' '.join(str(error).split())[:150]}).") from None
        self.folder, self.length = folder, length
        if not self.count:
            raise LitGPTError(f"{folder} has no block of {length + 1} tokens; lower train.max_seq_length.")

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the index of the chunks, where it is at hand, and of the first and the last block."""
        index = b"" if is_remote(self.folder) else (Path(self.folder) / "index.json").read_bytes()
        ends = [self[place]["input_ids"].numpy().tobytes() for place in (0, self.count - 1)]
        return content_hash(index, *ends)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sample."""
        return [self.length + 1] * self.count

    def known_length(self, index: int) -> int:
        """Tokens of a sample, all but the first targets, without reading it."""
        return self.length + 1

    def order(self, seed: int) -> Sequence[int]:
        """An order of the samples that reads one chunk after the other, so that each is fetched once."""
        return ChunkedOrder([end - start for start, end in self.chunks.region_of_interest], seed)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self.count:
            raise IndexError(index)
        with warnings.catch_warnings():  # litdata copies what torch warns not to write to
            warnings.filterwarnings("ignore", "The given buffer is not writable")
            ids = self.chunks[index].long()
        return {"input_ids": ids, "labels": ids}


def has_chunks(*folders: str | Path) -> bool:
    """Whether each folder holds chunks; of one in a store that is not known before it is read."""
    return all(is_remote(folder) or (Path(folder) / "index.json").is_file() for folder in folders)


def read_chunks(module: DataModule, train: str | Path, val: str | Path) -> None:
    """Makes the chunks in two folders, which LitGPT prepares of texts, the data sets of a module of texts."""
    module.train_dataset, module.val_dataset = (
        LitDataBlocks(str(folder), block_length(module)) for folder in (train, val)
    )
    module.log(f"{train} and {val} hold tokens that LitData has prepared; they are read as they are.")


def is_remote(path: str | Path) -> bool:
    """Whether a path leads to a store."""
    return "://" in str(path)


def below(path: str | Path, *names: str) -> str:
    """A folder below a path, which may lead to a store."""
    return "/".join((str(path).rstrip("/"), *names))


@dataclass
class LitData(TokenModule):
    """Tokens that `litdata.optimize` has prepared."""

    data_path: str | Path = Path("data")
    """The folder of the chunks, or of two folders of them (`split_names`); may be in a store (s3://…)."""
    split_names: tuple[str, str] | None = None
    """The names of the folders to train and to validate on. Null: all trains, and the same validates."""
    seed: int = 42
    """Of the order in `train_dataloader()`."""
    num_workers: int = 8
    """Steps that training reads ahead; processes of `train_dataloader()` and `val_dataloader()`. 0: none."""

    def __post_init__(self) -> None:
        if self.split_names is not None and len(self.split_names) != 2:
            raise LitGPTError("data.split_names are two names, of the folder to train on and of that to validate on.")

    def setup(self, stage: str = "") -> None:
        names, length = self.split_names, block_length(self)
        self.train_dataset = LitDataBlocks(below(self.data_path, names[0]) if names else str(self.data_path), length)
        self.val_dataset = LitDataBlocks(below(self.data_path, names[1]), length) if names else self.train_dataset
        if not names:
            self.log(f"The validation data is the training data of {self.data_path} (data.split_names names two).")

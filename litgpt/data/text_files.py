"""Plain text files to pretrain on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from litgpt.data.base import check_val_fraction
from litgpt.data.lit_data import has_chunks, read_chunks
from litgpt.data.storage.blocks import TokenModule
from litgpt.data.storage.character_tokenizer import character_tokenizer
from litgpt.data.storage.data_files import listed, read_text
from litgpt.data.storage.token_cache import cache_folder
from litgpt.errors import LitGPTError, MissingFileError
from litgpt.reading import check_plain

if TYPE_CHECKING:
    import numpy as np

DEFAULT_VAL_FRACTION = 0.1


@dataclass
class TextFiles(TokenModule):
    """Text files, each one document; tokenized once, read from a cache ever after."""

    train_data_path: Path
    """A folder of `*.txt` files, or one file."""
    val_data_path: Path | None = None
    """The same to validate on. Null: of several files the first one; of one file its end (`val_split_fraction`)."""
    seed: int = 42
    """Of where the blocks start in each epoch, and of the order in `train_dataloader()`."""
    num_workers: int = 4
    """Steps that training reads ahead; processes of `train_dataloader()` and `val_dataloader()`. 0: none."""
    val_split_fraction: float | None = None
    """Share of the tokens, 0 to 1, from the end of the text, to validate on. Null: 0.1 when there is one file."""
    characters: bool = False
    """Make every character that occurs in the text a token, instead of using a tokenizer."""
    cache_dir: Path | None = None
    """Where tokens are kept; null: `$LITGPT_CACHE`, else `litgpt` in your cache folder; off: nowhere."""

    def __post_init__(self) -> None:
        self.train_data_path = Path(self.train_data_path)
        self._own_tokenizer = False
        self.val_data_path = Path(self.val_data_path) if self.val_data_path is not None else None
        if self.val_split_fraction is not None and self.val_data_path is not None:
            raise LitGPTError("data.val_data_path and data.val_split_fraction exclude each other: give one of them.")
        if self.val_split_fraction is not None:
            check_val_fraction(self.val_split_fraction)

    @property
    def _chunks(self) -> list[Path]:
        """Where LitGPT keeps the tokens that it has prepared; they are read where there are no texts."""
        return [self.train_data_path / "train", (self.val_data_path or self.train_data_path) / "val"]

    @property
    def _is_prepared(self) -> bool:
        is_empty = self.train_data_path.is_dir() and not txt_files(self.train_data_path)
        return is_empty and has_chunks(*self._chunks)

    def prepare_data(self) -> None:
        if self._is_prepared:
            return
        self._choose_tokenizer()
        train, val, _ = self._files()
        for files in (train, val):
            if files:
                self._tokens(files)

    def setup(self, stage: str = "") -> None:
        if self._is_prepared:
            return read_chunks(self, *self._chunks)
        self._choose_tokenizer()
        assert self.tokenizer is not None
        self.vocab_size = len(self.tokenizer)
        train_files, val_files, fraction = self._files()
        train = self._tokens(train_files)
        val = self._tokens(val_files) if val_files else None
        if fraction:
            at = int(len(train) * (1 - fraction))
            train, val = train[:at], train[at:]
            self.log(
                f"The last {fraction:.1%} of {self.train_data_path} is kept for validation (data.val_split_fraction)."
            )
        elif fraction is None and self.val_data_path is None:
            self.log(f"{val_files[0]} is kept for validation (data.val_data_path names other text).")
        for folder in {self.train_data_path, self.val_data_path}:
            if folder is not None and folder.is_dir() and (unread := unread_names(folder, {*train_files, *val_files})):
                self.log(f"Not read of {folder}: {listed(unread)}.")
        self.cut(train, val, self.train_data_path)

    def _files(self) -> tuple[list[Path], list[Path], float | None]:
        """Files to train on, files to validate on, and the share of the first ones that validates instead."""
        train = text_files(self.train_data_path)
        if self.val_data_path is not None:
            return train, text_files(self.val_data_path), None
        if self.val_split_fraction is not None or len(train) == 1:
            return train, [], DEFAULT_VAL_FRACTION if self.val_split_fraction is None else self.val_split_fraction
        return train[1:], train[:1], None

    def _tokens(self, files: list[Path]) -> np.ndarray:
        return self.tokenize(b"text 2", files, lambda file: [read_text(file)], "Text files")

    def _choose_tokenizer(self) -> None:
        if self.characters and not self._own_tokenizer:
            if self.tokenizer is not None:
                raise LitGPTError("data.characters makes a tokenizer of its own, so no other one can be given.")
            train, val, _ = self._files()
            self.tokenizer = character_tokenizer(characters_of([*train, *val]), cache_folder(self.cache_dir))
            self._own_tokenizer = True
        if self.tokenizer is None:
            raise LitGPTError(
                "Text needs a tokenizer: give --tokenizer_dir, or --data.characters true to make each character one."
            )


def text_files(path: Path) -> list[Path]:
    """The text files at `path`: itself, or the `*.txt` in the folder, by name.

    Raises:
        LitGPTError: There is none.
    """
    check_plain(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise MissingFileError(f"There is no text file or folder {path}.")
    files = txt_files(path)
    if not files:
        raise MissingFileError(f"{path} has no *.txt files.")
    return files


def txt_files(folder: Path) -> list[Path]:
    """The `*.txt` in a folder, by name."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() == ".txt" and not file.name.startswith("."))


def unread_names(folder: Path, read: set[Path]) -> list[str]:
    """What else is in a folder, hidden files left out."""
    return sorted(file.name for file in folder.iterdir() if file not in read and not file.name.startswith("."))


def characters_of(files: Iterable[Path]) -> str:
    """Every character of the files, once, sorted."""
    found: set[str] = set()
    for file in files:
        found |= set(read_text(file))
    return "".join(sorted(found))

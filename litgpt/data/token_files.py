"""Token files as nanoGPT prepares them: `train.bin`, `val.bin` (raw ids, two bytes each) and perhaps `meta.pkl`."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from litgpt.data.storage.blocks import TokenModule
from litgpt.data.storage.character_tokenizer import character_tokenizer
from litgpt.data.storage.token_cache import cache_folder
from litgpt.errors import LitGPTError, MissingFileError, MissingFolderError
from litgpt.reading import check_plain


@dataclass
class TokenFiles(TokenModule):
    """Token ids from binary files, `train.bin` and `val.bin`, as nanoGPT writes them."""

    data_path: Path
    """The folder. A `meta.pkl` in it, with a character vocabulary, becomes the tokenizer."""
    dtype: Literal["uint16", "uint32", "int32", "int64"] = "uint16"
    """How the ids are stored, little-endian."""
    seed: int = 42
    """Of where the blocks start in each epoch, and of the order in `train_dataloader()`."""
    num_workers: int = 4
    """Steps that training reads ahead; processes of `train_dataloader()` and `val_dataloader()`. 0: none."""

    def __post_init__(self) -> None:
        self.data_path = Path(self.data_path)

    def setup(self, stage: str = "") -> None:
        if not self.data_path.is_dir():
            raise MissingFolderError(f"There is no folder {self.data_path} with train.bin and val.bin.")
        meta = read_meta(self.data_path / "meta.pkl")
        if "vocab_size" in meta:
            self.vocab_size = int(meta["vocab_size"])
        symbols = characters_of_meta(meta)
        if symbols and self.tokenizer is None:
            self.tokenizer = character_tokenizer(symbols, cache_folder())
        train = self._read("train.bin")
        if train is None:
            raise MissingFileError(f"{self.data_path} has no train.bin.")
        self.cut(train, self._read("val.bin"), self.data_path)

    def _read(self, name: str) -> Any:
        import numpy as np

        path, dtype = self.data_path / name, np.dtype(self.dtype).newbyteorder("<")
        check_plain(path)
        if not path.is_file():
            return None
        size = path.stat().st_size
        if size == 0 or size % dtype.itemsize:
            raise LitGPTError(f"{path} has {size} bytes, which is no whole number of {self.dtype} ids; see data.dtype.")
        return np.memmap(path, dtype=dtype, mode="r")


class _PlainUnpickler(pickle.Unpickler):
    """Reads numbers, texts, lists and dictionaries, and nothing that would need code to run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def read_meta(path: Path) -> dict[str, Any]:
    """The content of a `meta.pkl`; empty when there is none.

    Raises:
        LitGPTError: The file holds more than plain data, or something other than a dictionary.
    """
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            content = _PlainUnpickler(file).load()
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        IndexError,
        KeyError,
        AttributeError,
        UnicodeDecodeError,
    ) as error:
        raise LitGPTError(f"{path} is damaged or holds more than plain data, and is not opened ({error}).") from None
    if not isinstance(content, dict):
        raise LitGPTError(f"{path} holds no dictionary with vocab_size, itos and stoi.")
    return content


def characters_of_meta(meta: dict[str, Any]) -> str:
    """The characters of a `meta.pkl` in the order of their ids, sorted as nanoGPT's are; else none."""
    itos = meta.get("itos")
    found = [itos.get(index) for index in range(len(itos))] if isinstance(itos, dict) else []
    symbols = [symbol for symbol in found if isinstance(symbol, str) and len(symbol) == 1]
    return "".join(symbols) if symbols == found and symbols == sorted(symbols) else ""

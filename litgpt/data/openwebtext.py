"""OpenWebText: pages that people linked to, after the data of GPT-2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from litgpt.data.base import check_val_fraction
from litgpt.data.lit_data import below, has_chunks, read_chunks
from litgpt.data.storage.blocks import TokenModule
from litgpt.data.storage.data_files import read_texts
from litgpt.data.storage.download import fetch_data_set
from litgpt.data.storage.token_cache import cache_folder

if TYPE_CHECKING:
    import numpy as np

REPOSITORY = "Skylion007/openwebtext"


@dataclass
class OpenWebText(TokenModule):
    """OpenWebText, each page one document."""

    data_path: str | Path = Path("data/openwebtext")
    """Where the pages are kept; they are downloaded where they aren't there. A folder with `train` and `val` of
    LitData's chunks, also in a store (s3://…), is read as it is."""
    val_split_fraction: float = 0.0005
    """Share of the tokens, 0 to 1, from the end of the pages, to validate on."""
    seed: int = 42
    """Of where the blocks start in each epoch, and of the order in `train_dataloader()`."""
    num_workers: int = 8
    """Steps that training reads ahead; processes of `train_dataloader()` and `val_dataloader()`. 0: none."""
    cache_dir: Path | None = None
    """Where tokens are kept; null: `$LITGPT_CACHE`, else `litgpt` in your cache folder; off: nowhere."""

    def __post_init__(self) -> None:
        check_val_fraction(self.val_split_fraction)

    @property
    def _chunks(self) -> list[str]:
        """Where LitGPT keeps the tokens that it has prepared."""
        return [below(self.data_path, name) for name in ("train", "val")]

    def prepare_data(self) -> None:
        if not has_chunks(*self._chunks):
            files = fetch_data_set(REPOSITORY, "train", Path(self.data_path))
            if cache_folder(self.cache_dir) is not None:
                self._tokens(files)

    def setup(self, stage: str = "") -> None:
        if has_chunks(*self._chunks):
            return read_chunks(self, *self._chunks)
        tokens = self._tokens(fetch_data_set(REPOSITORY, "train", Path(self.data_path)))
        at = int(len(tokens) * (1 - self.val_split_fraction))
        self.cut(tokens[:at], tokens[at:], Path(self.data_path))

    def _tokens(self, files: Sequence[Path]) -> np.ndarray:
        return self.tokenize(b"pages 1", files, lambda file: read_texts(file, "text"), "Pages")

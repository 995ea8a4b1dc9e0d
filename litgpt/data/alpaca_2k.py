"""2,000 of Alpaca's instructions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from litgpt.data.alpaca import Alpaca
from litgpt.data.sft.data_module import in_litgpts_order
from litgpt.data.storage.download import fetch_data_set


@in_litgpts_order
@dataclass
class Alpaca2k(Alpaca):
    """2,000 of Alpaca's instructions, from the hub."""

    val_split_fraction: float = 0.05
    """Share of the samples to validate on, 0 to 1."""
    download_dir: Path = Path("data/alpaca2k")
    """Where the files are kept."""
    file_name: str = "alpaca2k_data_cleaned_archive.json"
    """A file in `download_dir` that is used instead, if it is there."""
    repo_id: str = "mhenrichsen/alpaca_2k_test"
    """The data set on the hub."""

    def fetch(self) -> None:
        """`files` does."""

    def files(self) -> tuple[list[Path], list[Path]]:
        if self._file.is_file():
            return [self._file], []
        return fetch_data_set(self.repo_id, "train", Path(self.download_dir)), []

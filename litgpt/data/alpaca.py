"""Alpaca: 52,000 instructions, cleaned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from litgpt.data.sft.data_module import SFTModule, in_litgpts_order
from litgpt.data.storage.download import fetch_file


@in_litgpts_order
@dataclass
class Alpaca(SFTModule):
    """Instructions and answers from one file on the web, the Alpaca set unless told otherwise."""

    val_split_fraction: float = 0.03865
    """Share of the samples to validate on, 0 to 1."""
    download_dir: Path = Path("data/alpaca")
    """Where the file is kept."""
    file_url: str = "https://raw.githubusercontent.com/tloen/alpaca-lora/main/alpaca_data_cleaned_archive.json"
    """Where the file comes from."""
    file_name: str = "alpaca_data_cleaned_archive.json"
    """What the file is called; it is not downloaded where it is there."""

    def fetch(self) -> None:
        fetch_file(self.file_url, self._file)

    def files(self) -> tuple[list[Path], list[Path]]:
        return [self._file], []

    @property
    def _file(self) -> Path:
        return Path(self.download_dir) / self.file_name

"""Alpaca's instructions, answered by GPT-4."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from litgpt.data.alpaca import Alpaca
from litgpt.data.sft.data_module import in_litgpts_order


@in_litgpts_order
@dataclass
class AlpacaGPT4(Alpaca):
    """Alpaca's instructions with the answers of GPT-4."""

    val_split_fraction: float = 0.03847
    """Share of the samples to validate on, 0 to 1."""
    download_dir: Path = Path("data/alpacagpt4")
    """Where the file is kept."""
    file_url: str = (
        "https://raw.githubusercontent.com/Instruction-Tuning-with-GPT-4/GPT-4-LLM/main/data/alpaca_gpt4_data.json"
    )
    """Where the file comes from."""
    file_name: str = "alpacagpt4_data_cleaned_archive.json"
    """What the file is called; it is not downloaded where it is there."""

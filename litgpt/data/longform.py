"""LongForm: instructions whose answers are long texts that people wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from litgpt.data.sft.data_module import SFTModule, in_litgpts_order
from litgpt.data.sft.formats import Conversation, Row, parse_instruction
from litgpt.data.storage.download import fetch_file
from litgpt.errors import LitGPTError, quoted
from litgpt.prompts import PromptStyle

URL = "https://raw.githubusercontent.com/akoksal/LongForm/main/dataset"


@in_litgpts_order
@dataclass
class LongForm(SFTModule):
    """The LongForm instructions, with validation samples of their own."""

    prompt_style: str | PromptStyle = "longform"
    """How a sample is put into words: a style's name, or `chat` for the tokenizer's own chat template."""
    download_dir: Path = Path("data/longform")
    """Where the files are kept."""

    def fetch(self) -> None:
        for (file,) in self.files():
            fetch_file(f"{URL}/{file.name}", file)

    def files(self) -> tuple[list[Path], list[Path]]:
        return [Path(self.download_dir) / "train.json"], [Path(self.download_dir) / "val.json"]

    def conversation(self, row: Row) -> Conversation:
        if "input" not in row:
            raise LitGPTError(f"the sample has no key 'input' (its keys: {', '.join(map(quoted, row)) or 'none'}).")
        return parse_instruction({"instruction": row["input"], "output": row.get("output")})

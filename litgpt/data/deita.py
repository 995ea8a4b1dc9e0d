"""Deita: 10,000 conversations, chosen for being good and unlike each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from litgpt.data.sft.data_module import in_litgpts_order
from litgpt.data.sft.formats import Conversation, Row, parse_conversation
from litgpt.data.sft.multi_turn import MultiTurnModule
from litgpt.data.storage.download import fetch_data_set


@in_litgpts_order
@dataclass
class Deita(MultiTurnModule):
    """The Deita conversations, from the hub."""

    download_dir: Path = Path("data/deita")
    """Where the files are kept."""
    repo_id: str = "HuggingFaceH4/deita-10k-v0-sft"
    """The data set on the hub."""

    def files(self) -> tuple[list[Path], list[Path]]:
        folder = Path(self.download_dir)
        return fetch_data_set(self.repo_id, "train_sft", folder), fetch_data_set(self.repo_id, "test_sft", folder)

    def conversation(self, row: Row) -> Conversation:
        return self.selected(parse_conversation({"messages": row.get("messages") or []}).messages)

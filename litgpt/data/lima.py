"""LIMA: 1,000 questions with careful answers, some with a second turn; gated on the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from litgpt.data.sft.data_module import in_litgpts_order
from litgpt.data.sft.formats import Conversation, Row, parse_conversation
from litgpt.data.sft.multi_turn import MultiTurnModule
from litgpt.data.storage.download import fetch_data_set


@in_litgpts_order
@dataclass
class LIMA(MultiTurnModule):
    """The LIMA conversations, from the hub, where their terms must be accepted."""

    val_split_fraction: float = 0.1
    """Share of the samples to validate on, 0 to 1."""
    repo_id: str = "GAIR/lima"
    """The data set on the hub."""
    access_token: str | None = None
    """An access token of the hub; null: `HF_TOKEN`, or that of `hf auth login`."""

    def files(self) -> tuple[list[Path], list[Path]]:
        return fetch_data_set(self.repo_id, "train", access_token=self.access_token), []

    def conversation(self, row: Row) -> Conversation:
        return self.selected(parse_conversation({"conversations": row.get("conversations") or []}).messages)

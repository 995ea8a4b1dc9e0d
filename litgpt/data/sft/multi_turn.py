"""The base of Deita and LIMA: conversations, of which LitGPT takes the first question and answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from litgpt.data.sft.data_module import SFTModule
from litgpt.data.sft.formats import Conversation
from litgpt.prompts.base import Message


@dataclass
class MultiTurnModule(SFTModule):
    """A source of conversations of several turns."""

    include_multiturn_conversations: bool = False
    """Learn whole conversations, each answer in its context; else the first question and answer of each."""

    def options(self) -> dict[str, Any]:
        return {"multiturn": self.include_multiturn_conversations}

    def selected(self, messages: Sequence[Message]) -> Conversation:
        """The whole conversation, or its first question and answer."""
        if self.include_multiturn_conversations:
            return Conversation(messages)
        answer = next((index for index, m in enumerate(messages) if m.get("role") == "assistant"), len(messages))
        return Conversation(messages[: answer + 1])

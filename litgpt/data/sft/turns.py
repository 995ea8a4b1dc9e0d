"""What Deita and LIMA share: conversations, of which LitGPT takes the first question and answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from litgpt.data.sft.formats import Conversation, Message
from litgpt.data.sft.module import SFTModule


@dataclass
class TurnsModule(SFTModule):
    """A source of conversations of several turns."""

    include_multiturn_conversations: bool = False
    """Learn whole conversations, each answer in its context; else the first question and answer of each."""

    def options(self) -> dict[str, Any]:
        return {"multiturn": self.include_multiturn_conversations}

    def chosen(self, messages: Sequence[Message]) -> Conversation:
        """The part of a conversation that is learned."""
        if self.include_multiturn_conversations:
            return Conversation(messages)
        answer = next((place for place, m in enumerate(messages) if m.get("role") == "assistant"), len(messages))
        return Conversation(messages[: answer + 1])

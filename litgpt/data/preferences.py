"""Answers of which one is preferred, from files of the user's own or from the hub, in any known format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from litgpt.data.conversations import Conversations
from litgpt.data.sft.encoding import TokenizedShard
from litgpt.data.sft.formats import Conversation, Row, renamed
from litgpt.data.sft.preference_rows import parse_preference
from litgpt.data.sft.preference_samples import PreferenceDataset, first_answers
from litgpt.errors import LitGPTError


@dataclass
class Preferences(Conversations):
    """Pairs of answers, or single ones with a label, in the format that their keys tell, for finetune_dpo."""

    turns: Literal["all"] = "all"
    """What the assistant says after the prompt counts, all of it; what it says in the prompt never does."""
    mask_prompt: Literal[True] = True
    """Prompts are never learned: answers are compared."""

    def __post_init__(self) -> None:
        if self.turns != "all":
            raise LitGPTError("data.turns is all with Preferences: an answer counts as a whole; leave it out.")
        if self.mask_prompt is not True:
            raise LitGPTError("data.mask_prompt is true with Preferences: answers are compared; leave it out.")
        super().__post_init__()
        self.single = False

    compares = True

    @property
    def answers(self) -> Callable[[Row], Sequence[tuple[int, Conversation]]]:
        def parse(row: Row) -> Sequence[tuple[int, Conversation]]:
            found = parse_preference(renamed(row, self.columns))
            if self._no_template is not None:
                raise self._no_template
            return [(kind, self.with_variables(conversation)) for kind, conversation in found]

        return parse

    def setup(self, stage: str = "") -> None:
        if self.pretraining:
            raise LitGPTError("Preferences has answers to compare, no text to pretrain on; give --data Conversations.")
        super().setup(stage)

    def count(self, shards: Sequence[TokenizedShard]) -> int:
        return len(first_answers(shards))

    def view(self, shards: list[TokenizedShard], purpose: str, chosen: Sequence[int] | None) -> Any:
        dataset = PreferenceDataset(shards, self.row_renderer(), self.sample_options(), chosen, self.single)
        for sentence in dataset.unused(purpose):
            self.log(sentence)
        return dataset

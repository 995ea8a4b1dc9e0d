"""Prompts that a model answers in training, from files of the user's own or from the hub, with what rewards need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from litgpt.data.base import split_indices
from litgpt.data.conversations import Conversations
from litgpt.data.sft.formats import (
    CONVERSATION_KEYS,
    Conversation,
    Row,
    RowKeys,
    messages_of,
    parse_conversation,
    renamed,
)
from litgpt.data.sft.rendering import Renderer
from litgpt.data.storage.data_files import location, read_rows
from litgpt.data.storage.token_cache import content_hash
from litgpt.errors import LitGPTError
from litgpt.prompts import PromptStyle
from litgpt.prompts.base import Message

if TYPE_CHECKING:
    from litgpt.tokenizer import Tokenizer

ANSWER_KEYS = ("answer", "output", "response", "completion", "solution", "ground_truth", "target")
"""What the right answer is called, if a row has one; rewards get it as `answer`."""
PROMPT_MESSAGES = "prompt_messages"
"""What rewards get the messages of a prompt as."""
PROMPT_KEYS = ("prompt", "question", "problem", "query", "instruction")
MAX_ROWS = 10_000_000


@dataclass
class Prompts(Conversations):
    """Prompts alone, for finetune_grpo: a prompt, or messages, and in the same row whatever rewards read."""

    turns: Literal["all"] = "all"
    """There are no turns to learn: the model answers."""
    mask_prompt: Literal[True] = True
    """Prompts are never learned."""

    def __post_init__(self) -> None:
        if self.turns != "all":
            raise LitGPTError("data.turns is all with Prompts: the model answers itself; leave it out.")
        if self.mask_prompt is not True:
            raise LitGPTError("data.mask_prompt is true with Prompts: only answers are learned; leave it out.")
        super().__post_init__()

    asks = True

    def prepare_data(self) -> None:
        self.fetch()
        self.found()

    def setup(self, stage: str = "") -> None:
        if self.pretraining:
            raise LitGPTError("Prompts has nothing to pretrain on; give --data Conversations.")
        if self._no_template is not None:
            raise self._no_template
        train_files, val_files = self.found()
        rows, val_rows = self._rows(train_files), self._rows(val_files)
        if not val_files:
            kept, others = split_indices(len(rows), self.val_fraction(), self.seed)
            rows, val_rows = [rows[at] for at in kept], [rows[at] for at in others]
        self.train_dataset, self.val_dataset = self._dataset(rows), self._dataset(val_rows) if val_rows else None

    def _rows(self, files: Sequence[Path]) -> list[tuple[str, Row]]:
        rows = [(location(file, line), renamed(row, self.columns)) for file in files for line, row in read_rows(file)]
        if files and not rows:
            raise LitGPTError(f"{files[0]} has no prompts: there is no row in it.")
        if len(rows) > MAX_ROWS:
            raise LitGPTError(f"The data has {len(rows):,} prompts, more than {MAX_ROWS:,}; give fewer.")
        return rows

    def _dataset(self, rows: Sequence[tuple[str, Row]]) -> PromptDataset:
        assert self.tokenizer is not None and isinstance(self.prompt_style, PromptStyle)
        dataset = PromptDataset(rows, self.prompt_style, self.tokenizer, self.max_seq_length)
        if dataset.too_long:
            self.log(f"{dataset.too_long:,} prompts are left out: they leave no room for an answer.")
        return dataset


class PromptDataset:
    """Prompts as token ids, with their rows.

    Args:
        rows: Where each is, for errors, and what is in it.
        style: How prompts are put into words.
        tokenizer: Makes the ids.
        limit: Tokens that a prompt and its answer may have; -1: no limit.

    Raises:
        LitGPTError: A row has no prompt, or no prompt leaves room for an answer.
    """

    def __init__(self, rows: Sequence[tuple[str, Row]], style: PromptStyle, tokenizer: Tokenizer, limit: int) -> None:
        self.prompt_style, self._renderer, self._tokenizer = style, Renderer(style), tokenizer
        self.rows: list[Row] = []
        """With the prompt's text as `prompt`, its messages as `prompt_messages`, and the right `answer`, if there is
        one."""
        self.ids: list[list[int]] = []
        self.too_long = 0
        for where, row in rows:
            try:
                prompt, answer, messages = self._prompt(row)
            except LitGPTError as error:
                raise LitGPTError(f"{where}: {error}") from None
            ids = tokenizer.encode_ids(prompt, bos=False if style.adds_bos else None, protected=True)
            if (limit > 0 and len(ids) >= limit) or not ids:
                self.too_long += 1
                continue
            self.ids.append(ids)
            own = {"prompt": prompt, PROMPT_MESSAGES: messages, **({} if answer is None else {"answer": answer})}
            self.rows.append({**row, **own})
        if not self.ids:
            raise LitGPTError(f"No prompt leaves room for an answer in {limit} tokens; raise train.max_seq_length.")

    def _prompt(self, row: Row) -> tuple[str, Any, list[Message]]:
        """The text of a prompt in the model's style, the right answer, and the prompt's messages."""
        keys = RowKeys(row)
        answer = next((row[key] for key in ANSWER_KEYS if row.get(key) is not None), None)
        given = next((row[key] for key in PROMPT_KEYS if row.get(key)), None)
        if keys.filled(*CONVERSATION_KEYS) or isinstance(given, list):
            messages = list(given) if isinstance(given, list) else list(messages_of(keys))
            ends = parse_conversation({"messages": messages}).messages
            if ends and ends[-1]["role"] == "assistant":
                answer = ends[-1].get("content") if answer is None else answer
                messages = messages[:-1]
            asked = parse_conversation({"messages": [*messages, {"role": "assistant", "content": "."}]})
        elif isinstance(given, str):
            own = {key: row[key] for key in ("input", "system") if isinstance(row.get(key), str)}
            asked = parse_conversation({**own, "instruction": given, "output": "."})
        else:
            raise LitGPTError(f"there is no prompt; a row has {', '.join(PROMPT_KEYS)} or messages.")
        conversation = asked.protected(self._tokenizer.protect)
        prompt = self._renderer.prompt(conversation, len(conversation.messages) - 1)
        return prompt, answer, [dict(message) for message in with_context(asked).messages[:-1]]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of prompts and rows."""
        return content_hash(*(repr((ids, sorted(row.items()))).encode() for ids, row in zip(self.ids, self.rows)))  # noqa: B905

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt."""
        return list(map(len, self.ids))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import torch

        ids = torch.tensor(self.ids[index])
        return {"input_ids": ids, "labels": torch.full_like(ids, -100), "row": self.rows[index]}


def with_context(conversation: Conversation) -> Conversation:
    """A conversation in which what the last question is about stands behind it."""
    if conversation.context is None:
        return conversation
    messages = [dict(message) for message in conversation.messages]
    last = next(message for message in reversed(messages) if message["role"] == "user")
    last["content"] = f"{last['content']}\n\n{conversation.context[1]}"
    return replace(conversation, messages=messages, context=None)

"""Conversations, instructions or plain text from files of the user's own or from the hub, in any known format.

Annotations are types here, not texts: a subclass in another file takes them over with the fields.
"""

import os
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from litgpt.data.sft.data_module import SFTModule
from litgpt.data.sft.encoding import MAX_NAMES, TokenizedShard
from litgpt.data.sft.formats import Conversation, Row, parse_conversation, renamed
from litgpt.data.storage.blocks import TokenBlocks, block_length
from litgpt.data.storage.combined_datasets import ConcatDataset
from litgpt.data.storage.data_files import data_files, listed, other_files
from litgpt.data.storage.download import fetch_data_set
from litgpt.errors import LitGPTError, closest, file_error, quoted
from litgpt.prompts import ChatTemplate, PromptStyle
from litgpt.prompts.chat_template import check_variables
from litgpt.tokenizer.files import special_tokens


@dataclass
class Conversations(SFTModule):
    """Conversations, instructions or text, in the format that their keys tell; the assistant's turns are learned."""

    path: Path | None = None
    """A .json, .jsonl, .csv or .parquet file, or a folder with some, also in folders of its own; those whose names have
    the word val, validation, test, dev or eval validate."""
    repo_id: str | None = None
    """A data set on the hub instead, ORG/NAME."""
    split: str = "train"
    """Which split of `repo_id` to train on."""
    subset: str | None = None
    """The folder of `repo_id` to read, where it has several (a configuration)."""
    val_path: Path | None = None
    """A file or folder to validate on. Null: what the folder has, else `val_split_fraction`."""
    val_split: str | None = None
    """The split of `repo_id` to validate on. Null: `val_split_fraction`."""
    val_split_fraction: float = 0.05
    """Share of the samples to validate on, 0 to 1, where nothing else is given for it."""
    mask_prompt: bool = True
    """Learn what the assistant says only, and what ends it."""
    prompt_style: str | PromptStyle = "chat"
    """How a conversation is put into words: `chat` for the tokenizer's own chat template, or a style's name."""
    chat_template: Path | None = None
    """A file with the Jinja template to use instead of the tokenizer's own; it is saved with the model."""
    turns: Literal["all", "last"] = "all"
    """Which of the assistant's turns are learned; a message with `weight: 0` or `train: false` never is."""
    mask_template: bool = False
    """Learn nothing of what the chat template writes of itself before an answer, such as an empty `<think></think>`."""
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    """What the chat template reads with every row, such as `{"enable_thinking": false}`; a row's own win."""
    columns: dict[str, str] = field(default_factory=dict)
    """Other names of keys: `{"question": "prompt"}` reads `question` as `prompt`."""
    access_token: str | None = None
    """An access token of the hub; null: `HF_TOKEN`, or that of `hf auth login`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.path = None if self.path is None else Path(self.path)
        if self.chat_template is not None:
            chat_template_from(Path(self.chat_template))
        if (self.path is None) == (self.repo_id is None):
            raise LitGPTError("Give data.path (a file or folder) or data.repo_id (a data set on the hub), one of them.")
        if self.val_split is not None and self.repo_id is None:
            raise LitGPTError("data.val_split is a split of data.repo_id; with data.path it is data.val_path.")
        if self.val_split is not None and self.val_path is not None:
            raise LitGPTError("data.val_path and data.val_split exclude each other: give one of them.")
        if self.mask_template and not self.mask_prompt:
            raise LitGPTError("data.mask_template leaves out a part of what data.mask_prompt false learns: give one.")
        check_variables(self.chat_template_kwargs, "data.chat_template_kwargs")
        if self.turns not in ("all", "last"):
            raise LitGPTError(f"data.turns is all or last, not {quoted(self.turns)}.")

    def on_connect(self) -> None:
        self._no_template: LitGPTError | None = None
        if self.tokenizer is not None and self.chat_template is not None:
            self.prompt_style = chat_template_from(Path(self.chat_template), self.tokenizer.checkpoint_dir)
        try:
            super().on_connect()
        except LitGPTError as error:  # which plain text can do without
            self._no_template = error

    def files(self) -> tuple[list[Path], list[Path]]:
        if self.path is not None:
            train, val = data_files(self.path)
        else:
            fetch = partial(fetch_data_set, str(self.repo_id), subset=self.subset, access_token=self.access_token)
            train, val = fetch(self.split), fetch(self.val_split) if self.val_split else []
        unread: list[Path] = []
        if self.val_path is not None:
            train, val, unread = self._with_validation(train, val, Path(self.val_path))
        if not train:
            raise LitGPTError(
                f"{self.path} has no file to train on, only {listed([file.name for file in val], 5)}, kept for "
                "validation by a word of the name."
            )
        if self.path is not None and self.path.is_dir():
            tell = {"train": train, "validate": val, "are not read": [*unread, *other_files(self.path)]}
            for role, files in tell.items():
                if files:
                    names = [str(file).removeprefix(f"{self.path}{os.sep}") for file in files]
                    self.log(f"Files that {role}: {listed(names)}.")
        return train, val

    def _with_validation(
        self, train: list[Path], val: list[Path], path: Path
    ) -> tuple[list[Path], list[Path], list[Path]]:
        """The files to train on, those at `path` to validate on (of a folder those called so, if it has any), and those
        that are left."""
        others, named = data_files(path, validates=True)
        chosen = {file.resolve(): file for file in named or others}
        if self.path is not None and self.path.is_dir():  # what validates does not train
            train = [file for file in train if file.resolve() not in chosen]
        taken = {*chosen, *(file.resolve() for file in train)}
        return train, list(chosen.values()), [file for file in [*val, *others] if file.resolve() not in taken]

    def val_fraction(self) -> float:
        if self.val_split_fraction:
            self.log(f"{self.val_split_fraction:.1%} of the samples are kept for validation (data.val_split_fraction).")
        return self.val_split_fraction

    def options(self) -> dict[str, Any]:
        return {"columns": self.columns, **({"given": given} if (given := self.chat_template_kwargs) else {})}

    def conversation(self, row: Row) -> Conversation:
        found = parse_conversation(renamed(row, self.columns))
        if found.messages and self._no_template is not None:
            raise self._no_template
        return self.with_variables(found)

    def with_variables(self, found: Conversation) -> Conversation:
        """The conversation of a row, with `chat_template_kwargs` where the row says nothing else."""
        return replace(found, variables={**self.chat_template_kwargs, **found.variables}) if found.messages else found

    def check_keys(self, keys: set[str]) -> None:
        missing = [name for name in self.columns if name not in keys]
        if missing and len(keys) < MAX_NAMES:  # else they may not be all
            raise LitGPTError(
                f"data.columns renames {quoted(missing[0])}, which no row has.{closest(missing[0], keys)} The keys of "
                f"the rows: {', '.join(sorted(keys))[:200]}."
            )

    def setup(self, stage: str = "") -> None:
        if not self.pretraining:
            return super().setup(stage)
        train_files, val_files = self.found()
        train, val = self.shards(train_files), self.shards(val_files)
        self.tell_unread([*train, *val])
        self.train_dataset, self.val_dataset = self._blocks(train, val)
        tokens = [sum(len(shard.tokens.ids) for shard in shards) for shards in (train, val)]
        shown = f"{tokens[1]:,} for validation" if val else f"{self.val_split_fraction:.1%} of them for validation"
        self.log(f"{self.path or self.repo_id}: {tokens[0]:,} tokens, {shown}.")

    def _blocks(self, train: list[TokenizedShard], val: list[TokenizedShard]) -> tuple[Any, Any]:
        """Blocks of `max_seq_length` tokens; without files to validate on, of the end of the last files."""
        length = block_length(self)
        streams = [shard.tokens.ids for shard in train]
        rest = [shard.tokens.ids for shard in val]
        if not val and self.val_split_fraction:
            left = int(sum(map(len, streams)) * self.val_split_fraction)
            while left:
                last = streams.pop()
                kept = max(0, len(last) - left)
                streams += [last[:kept]] if kept else []
                rest.insert(0, last[kept:])
                left -= len(last) - kept
        blocks = [TokenBlocks(tokens, length, self.seed) for tokens in streams if len(tokens) > length]
        if not blocks:
            found = f"{self.path or self.repo_id} has {sum(map(len, streams)):,} training tokens"
            raise LitGPTError(f"{found}, no block of {length + 1}; lower train.max_seq_length.")
        validating = [TokenBlocks(tokens, length) for tokens in rest if len(tokens) > 1]
        return ConcatDataset(blocks), ConcatDataset(validating) if validating else None


def chat_template_from(file: Path, folder: Path | None = None) -> ChatTemplate:
    """The chat template in a file; it may name the special tokens of the tokenizer in `folder`.

    Raises:
        LitGPTError: There is none, or it is not Jinja.
    """
    try:
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise file_error(error, f"{file} is no chat template ({error}).") from None
    tokens = special_tokens(folder) if folder is not None else {}
    return ChatTemplate.from_source(source, where=f"The chat template {file}", **tokens)

"""Conversations, instructions or plain text from files of the user's own or from the hub, in any known format."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from litgpt.data.base import check_val_fraction
from litgpt.data.sft.data_module import SFTModule
from litgpt.data.sft.encoding import TokenizedShard
from litgpt.data.sft.formats import Conversation, Row, parse_conversation
from litgpt.data.storage.blocks import TokenBlocks, block_length
from litgpt.data.storage.combined_datasets import ConcatDataset
from litgpt.data.storage.data_files import format_suffix
from litgpt.data.storage.download import DATA_SUFFIXES, fetch_data_set
from litgpt.errors import LitGPTError, MissingFileError, file_error, quoted
from litgpt.prompts import ChatTemplate, PromptStyle
from litgpt.tokenizer.files import special_tokens


@dataclass
class Conversations(SFTModule):
    """Conversations, instructions or text, in the format that their keys tell; the assistant's turns are learned."""

    path: Path | None = None
    """A .json, .jsonl, .csv or .parquet file, or a folder with some, where those called val, validation or test
    validate."""
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
    columns: dict[str, str] = field(default_factory=dict)
    """Other names of keys: `{"question": "prompt"}` reads `question` as `prompt`."""
    access_token: str | None = None
    """An access token of the hub; null: `HF_TOKEN`, or that of `hf auth login`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chat_template is not None:
            chat_template_from(Path(self.chat_template))
        if (self.path is None) == (self.repo_id is None):
            raise LitGPTError("Give data.path (a file or folder) or data.repo_id (a data set on the hub), one of them.")
        if self.val_split is not None and self.repo_id is None:
            raise LitGPTError("data.val_split is a split of data.repo_id; with data.path it is data.val_path.")
        if self.val_split is not None and self.val_path is not None:
            raise LitGPTError("data.val_path and data.val_split exclude each other: give one of them.")
        if self.turns not in ("all", "last"):
            raise LitGPTError(f"data.turns is all or last, not {quoted(self.turns)}.")
        check_val_fraction(self.val_split_fraction)

    def on_connect(self) -> None:
        self._no_template: LitGPTError | None = None
        if self.tokenizer is not None and self.chat_template is not None:
            self.prompt_style = chat_template_from(Path(self.chat_template), self.tokenizer.checkpoint_dir)
        try:
            super().on_connect()
        except LitGPTError as error:  # which plain text can do without
            self._no_template = error

    def files(self) -> tuple[list[Path], list[Path]]:
        if self.repo_id is not None:
            fetch = dict(subset=self.subset, access_token=self.access_token)
            train = fetch_data_set(self.repo_id, self.split, **fetch)  # type: ignore[arg-type]
            val = fetch_data_set(self.repo_id, self.val_split, **fetch) if self.val_split else []  # type: ignore[arg-type]
        else:
            assert self.path is not None
            train, val = data_files(Path(self.path))
        if self.val_path is not None:
            val = [file for files in data_files(Path(self.val_path)) for file in files]
        return train, val

    def val_fraction(self) -> float:
        self.log(f"{self.val_split_fraction:.1%} of the samples are kept for validation (data.val_split_fraction).")
        return self.val_split_fraction

    def options(self) -> dict[str, Any]:
        return {"columns": self.columns}

    def conversation(self, row: Row) -> Conversation:
        if self.columns:
            row = {self.columns.get(key, key): value for key, value in row.items()}
        found = parse_conversation(row)
        if found.messages and self._no_template is not None:
            raise self._no_template
        return found

    def setup(self, stage: str = "") -> None:
        if not self.pretraining:
            return super().setup(stage)
        train_files, val_files = self.found()
        train, val = self.shards(train_files), self.shards(val_files)
        self.train_dataset, self.val_dataset = self._blocks(train, val)
        tokens = [sum(len(shard.tokens.ids) for shard in shards) for shards in (train, val)]
        shown = f"{tokens[1]:,} for validation" if val else f"{self.val_split_fraction:.1%} of them for validation"
        self.log(f"{self.path or self.repo_id}: {tokens[0]:,} tokens, {shown}.")

    def _blocks(self, train: list[TokenizedShard], val: list[TokenizedShard]) -> tuple[Any, Any]:
        """Blocks of `max_seq_length` tokens; without files to validate on, of the end of the last file."""
        length = block_length(self)
        streams = [shard.tokens.ids for shard in train]
        rest = [shard.tokens.ids for shard in val]
        if not val and self.val_split_fraction:
            at = max(1, int(len(streams[-1]) - sum(map(len, streams)) * self.val_split_fraction))
            streams[-1], rest = streams[-1][:at], [streams[-1][at:]]
        blocks = [TokenBlocks(tokens, length, self.seed) for tokens in streams if len(tokens) > length]
        if not blocks:
            found = f"{self.path or self.repo_id} has {sum(map(len, streams)):,} training tokens"
            raise LitGPTError(f"{found}, no block of {length + 1}; lower train.max_seq_length.")
        validating = [TokenBlocks(tokens, length) for tokens in rest if len(tokens) > 1]
        return ConcatDataset(blocks), ConcatDataset(validating) if validating else None


def data_files(path: Path) -> tuple[list[Path], list[Path]]:
    """The data files at `path` to train on and, in a folder, those to validate on, told by their names.

    Raises:
        LitGPTError: There is none.
    """
    if not path.is_dir():
        if not path.exists():
            raise MissingFileError(f"There is no data file or folder {path}.")
        return [path], []
    files = sorted(file for file in path.iterdir() if format_suffix(file) in DATA_SUFFIXES)
    val = [file for file in files if file.name.startswith(("val", "test", "dev", "eval"))]
    train = [file for file in files if file not in val]
    if not train:
        raise MissingFileError(
            f"{path} has no file to train on that is called {', '.join(f'*{suffix}' for suffix in DATA_SUFFIXES)}."
        )
    return train, val


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

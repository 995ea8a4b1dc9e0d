"""The base of all modules of instructions and conversations: from files to tokenized samples.

Annotations are types here, not texts: a subclass in another file takes them over with the fields.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Any, Literal, TypeVar

from litgpt.data.base import DataModule, check_val_fraction, split_indices
from litgpt.data.sft.encoding import Notes, RowRenderer, TokenizedShard, encode_file, end_ids, style_key
from litgpt.data.sft.formats import Conversation, Row, parse_instruction
from litgpt.data.sft.rendering import Renderer
from litgpt.data.sft.samples import NoUsableSamples, SampleOptions, SFTDataset, resolve_style
from litgpt.data.storage.token_cache import cache_folder, canonical_json, code_identity, content_hash
from litgpt.errors import LitGPTError, quoted
from litgpt.prompts import PromptStyle

COMMON = ("mask_prompt", "val_split_fraction", "prompt_style", "ignore_index", "seed", "num_workers")
"""Arguments that LitGPT's modules have in common, in its order."""
OURS = ("too_long", "cache_dir")
"""Those that it has not. No token depends on any of both, but on the style, which has a hash of its own."""
T = TypeVar("T")


def in_litgpts_order(cls: type[T]) -> type[T]:
    """Lets a data class take its arguments by position, too, in the order of LitGPT: what is required, what all modules
    have in common, what is its own. Those that LitGPT has not are by name only."""
    own = [field for field in fields(cls) if field.init and field.name not in (*COMMON, *OURS)]  # type: ignore[arg-type]
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    required = [field.name for field in own if field.default is MISSING and field.default_factory is MISSING]
    optional = [field.name for field in own if field.name not in required]
    names = (*required, *(name for name in COMMON if name in known), *optional)
    by_name = cls.__init__

    @wraps(by_name)
    def __init__(self: T, *args: Any, **kwargs: Any) -> None:
        if len(args) > len(names):
            raise TypeError(f"{cls.__name__} takes at most {len(names)} arguments by position, not {len(args)}")
        by_name(self, **dict(zip(names, args, strict=False)), **kwargs)

    cls.__init__ = __init__  # type: ignore[method-assign, assignment]
    return cls


@dataclass(kw_only=True)
class SFTModule(DataModule):
    """A source of instructions or conversations; a subclass says where files come from and what a row means."""

    mask_prompt: bool = False
    """Learn the answers only, not the prompts."""
    prompt_style: str | PromptStyle = "alpaca"
    """How a sample is put into words: a style's name, or `chat` for the tokenizer's own chat template."""
    ignore_index: int = -100
    """The label of tokens that are not learned."""
    seed: int = 42
    """Of the split, and of the order in `train_dataloader()`."""
    num_workers: int = 4
    """Steps that training reads ahead; processes of `train_dataloader()` and `val_dataloader()`. 0: none."""
    too_long: Literal["cut", "drop"] = "cut"
    """What becomes of samples longer than train.max_seq_length: cut (their end token stays), or drop."""
    cache_dir: Path | None = None
    """Where tokens are kept; null: `$LITGPT_CACHE`, else `litgpt` in your cache folder; off: nowhere."""

    def __post_init__(self) -> None:
        if isinstance(self.prompt_style, str):
            self.prompt_style = PromptStyle.from_name(self.prompt_style)
        if self.too_long not in ("cut", "drop"):
            raise LitGPTError(f"data.too_long is cut or drop, not {quoted(self.too_long)}.")
        if (fraction := getattr(self, "val_split_fraction", None)) is not None:
            check_val_fraction(fraction)
        self._row_renderer: RowRenderer | None = None
        self._shards: dict[Path, TokenizedShard] = {}
        self._files: tuple[list[Path], list[Path]] | None = None

    # -- what a subclass defines

    def fetch(self) -> None:
        """Brings the files to where `files` finds them; one process does it for all."""

    @abstractmethod
    def files(self) -> tuple[list[Path], list[Path]]:
        """The files to train on, and those to validate on; none of the latter: `val_fraction` of the former. Called
        once."""

    def conversation(self, row: Row) -> Conversation:
        """The conversation in a row of a file.

        Raises:
            LitGPTError: There is none.
        """
        return parse_instruction(row)

    @property
    def answers(self) -> Callable[[Row], Sequence[tuple[int, Conversation]]] | None:
        """Takes a row, where each is several samples; see `RowRenderer.answers`."""
        return None

    def options(self) -> dict[str, Any]:
        """The arguments that `conversation` depends on; of a class of the user's own all that may matter."""
        if type(self).__module__.startswith("litgpt.data."):
            return {}
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in (*COMMON, *OURS)}

    def val_fraction(self) -> float:
        """Share of the samples to validate on where there are no files for it."""
        fraction = getattr(self, "val_split_fraction", None)
        return 0.05 if fraction is None else float(fraction)

    # -- what all share

    def on_connect(self) -> None:
        self._row_renderer, self._shards, self._files = None, {}, None
        if self.tokenizer is not None:
            self.prompt_style = resolve_style(self.prompt_style, self.tokenizer)

    def prepare_data(self) -> None:
        self.fetch()
        for paths in self.found():
            if cache_folder(self.cache_dir) is not None:  # which the other processes then read
                self.shards(paths)

    def setup(self, stage: str = "") -> None:
        train_files, val_files = self.found()
        train, val = self.shards(train_files), self.shards(val_files)
        self.tell_unread([*train, *val])
        chosen: tuple[list[int] | None, list[int] | None] = (None, None)
        if not val_files:
            chosen = split_indices(self.count(train), self.val_fraction(), self.seed)
            val = train
        if self.pretraining:
            raise LitGPTError(
                f"{type(self).__name__} has instructions, not text to pretrain on; give --data TextFiles or "
                "Conversations."
            )
        self.train_dataset = self.view(train, "training", chosen[0])
        self.val_dataset = None
        if val_files or chosen[1]:
            try:
                self.val_dataset = self.view(val, "validation", chosen[1])
            except NoUsableSamples:
                self.log(
                    f"No validation: no prompt of its samples leaves room for an answer in {self.max_seq_length} "
                    "tokens."
                )

    def found(self) -> tuple[list[Path], list[Path]]:
        """`files`, called once."""
        if self._files is None:
            self._files = self.files()
        return self._files

    def row_renderer(self) -> RowRenderer:
        """How rows become tokens.

        Raises:
            LitGPTError: No tokenizer is connected.
        """
        if self.tokenizer is None:
            raise LitGPTError("These samples need a tokenizer: call connect(tokenizer=...) before setup().")
        if self._row_renderer is None:
            assert isinstance(self.prompt_style, PromptStyle)
            mask_template = getattr(self, "mask_template", False)
            renderer = Renderer(self.prompt_style, getattr(self, "turns", "all"), mask_template)
            parts = (code_identity(self), canonical_json(self.options()), style_key(renderer.style))
            key = content_hash(*parts, renderer.turns.encode(), *([b"mask_template"] if mask_template else [])).encode()
            self._row_renderer = RowRenderer(self.conversation, renderer, key, self.answers)
        return self._row_renderer

    def count(self, shards: Sequence[TokenizedShard]) -> int:
        """How many samples there are to split."""
        return sum(map(len, shards))

    def shards(self, paths: Sequence[Path]) -> list[TokenizedShard]:
        """The samples of files as tokens; each file is read once."""
        row_renderer, folder = self.row_renderer(), cache_folder(self.cache_dir)
        assert self.tokenizer is not None
        for path in paths:
            if path not in self._shards:
                self._shards[path] = encode_file(path, row_renderer, self.tokenizer, folder)
        return [self._shards[path] for path in paths]

    def tell_unread(self, shards: Sequence[TokenizedShard]) -> None:
        """Logs, once, what nothing reads of the samples."""
        notes = Notes()
        for shard in shards:
            notes.unread.update(shard.notes.unread)
            notes.keys |= shard.notes.keys
            for reason, (count, where) in shard.notes.broken.items():
                notes.leave_out(reason, where, count)
        self.check_keys(notes.keys)
        for reason, (count, where) in notes.broken.items():
            self.log(f"{count:,} row{' is' if count == 1 else 's are'} left out: {reason}; {where} is the first.")
        if notes.unread:
            found = notes.unread.most_common()
            shown = "; ".join(f"{name} ({count:,} sample{'s' * (count != 1)})" for name, count in found[:12])
            more = f"; and {len(found) - 12:,} more" if len(found) > 12 else ""
            self.log(f"Not read of the data: {shown}{more}.")

    def sample_options(self) -> SampleOptions:
        """How samples are made to fit."""
        assert self.tokenizer is not None
        ends = end_ids(self.row_renderer().renderer.style, self.tokenizer)
        return SampleOptions(self.max_seq_length, self.mask_prompt, self.ignore_index, self.too_long, ends)

    def check_keys(self, keys: set[str]) -> None:
        """Called with the keys of all rows; raises a LitGPTError where an argument names another."""

    def view(self, shards: list[TokenizedShard], purpose: str, chosen: Sequence[int] | None) -> SFTDataset:
        """The samples, or those that are chosen, as they fit."""
        dataset = SFTDataset.from_shards(shards, self.row_renderer(), self.sample_options(), chosen)
        for sentence in dataset.unused(purpose):
            self.log(sentence)
        return dataset

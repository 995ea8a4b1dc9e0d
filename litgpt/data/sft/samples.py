"""The samples of a data set: slices of token files, cut to the length that a model can take.

A sample is `{"input_ids": (T,) int64, "labels": (T,) int64, "token_counts": …}`, not shifted; labels are `ignore_index`
where a token is no target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from litgpt.data.sft.encoding import RowRenderer, TokenizedShard, TokenSpan, encode_rows, end_ids
from litgpt.data.sft.formats import Conversation, Row, parse_instruction
from litgpt.data.sft.rendering import Renderer
from litgpt.data.storage.fingerprint import array_hash
from litgpt.data.storage.token_cache import content_hash
from litgpt.errors import LitGPTError
from litgpt.prompts import PromptStyle
from litgpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np


class NoUsableSamples(LitGPTError):
    """Every sample of a data set is too long, or has nothing to learn."""


@dataclass(frozen=True)
class SampleOptions:
    """How samples are made to fit, and which of their tokens are targets."""

    max_seq_length: int = -1
    """Tokens of a sample at most; -1: no limit."""
    mask_prompt: bool = True
    """Only answers are targets."""
    ignore_index: int = -100
    """The label of tokens that are no targets."""
    too_long: str = "cut"
    """What becomes of a longer sample: `cut` (it keeps its end token) or `drop`."""
    end_ids: frozenset[int] = frozenset()
    """The tokens that end an answer."""


class Sample(NamedTuple):
    """Where the tokens of a sample are."""

    shard: int
    row: int
    """Its number in the shard."""
    length: int
    """Tokens, after cutting."""
    last: int
    """Index of the token that stands at the end instead of the one that is there; -1: it stays."""


class SFTDataset:
    """Conversations as token ids, tokenized once, in batches.

    Prompt and answer of an instruction are tokenized apart, the answer with an end token. A sample longer than
    `max_seq_length` is cut, but the answer that is cut keeps its end token; one that has no room for any of an answer
    is left out, as is one with nothing to learn: it could teach nothing.

    Args:
        data: Rows with `instruction` and `output`.
        tokenizer: Makes the ids.
        prompt_style: A style or its name.
        max_seq_length: Tokens of a sample at most; -1: no limit.
        mask_prompt: Learn the answers only.
        ignore_index: The label of what is not learned.
        transform: Applied to each row first.

    Raises:
        LitGPTError: A row lacks a key, there is no row, or none has room for an answer.
    """

    def __init__(
        self,
        data: Sequence[Row],
        tokenizer: Tokenizer,
        prompt_style: str | PromptStyle,
        max_seq_length: int = -1,
        mask_prompt: bool = True,
        ignore_index: int = -100,
        transform: Callable[[Any], Row] | None = None,
    ) -> None:
        tokenizer = Tokenizer.of(tokenizer)
        rows = [transform(dict(row)) if transform else row for row in data]
        if not rows:
            raise LitGPTError("The data set has no samples.")
        style = resolve_style(prompt_style, tokenizer)
        row_renderer = RowRenderer(parse_instruction, Renderer(style))
        shard = encode_rows(rows, row_renderer, tokenizer)
        ends = end_ids(style, tokenizer)
        self._select([shard], row_renderer, SampleOptions(max_seq_length, mask_prompt, ignore_index, end_ids=ends))

    @classmethod
    def from_shards(
        cls,
        shards: Sequence[TokenizedShard],
        row_renderer: RowRenderer,
        options: SampleOptions,
        chosen: Sequence[int] | None = None,
    ) -> SFTDataset:
        """A view of samples that are tokens already.

        Args:
            shards: Where they are; samples are numbered through all of them.
            row_renderer: How rows became tokens.
            options: How samples are made to fit.
            chosen: Which samples, in which order. None: all.
        """
        dataset = cls.__new__(cls)
        dataset._select(shards, row_renderer, options, chosen)
        return dataset

    def _select(
        self,
        shards: Sequence[TokenizedShard],
        row_renderer: RowRenderer,
        options: SampleOptions,
        chosen: Sequence[int] | None = None,
    ) -> None:
        import numpy as np

        self.shards, self.row_renderer, self.options = list(shards), row_renderer, options
        self.n_cut = self.n_dropped = self.n_without_targets = 0
        self.full_lengths: list[int] = []
        """Tokens of each sample before any is cut or left out."""
        self.first_without_targets = ""
        """Where the first sample is that has nothing to learn."""
        count = sum(map(len, shards))
        self._kept = self._fit(np.arange(count) if chosen is None else np.asarray(chosen, dtype=np.int64))
        if not len(self._kept):
            raise NoUsableSamples(self._why_nothing())
        self.lengths: list[int] = self._kept[:, 2].tolist()
        """Tokens of each sample."""

    def _fit(self, chosen: np.ndarray) -> np.ndarray:
        """The samples that are kept, `(S, 4)`: the columns of `Sample`."""
        import numpy as np

        limit, firsts = self.options.max_seq_length, np.cumsum([0, *map(len, self.shards)])
        which = np.searchsorted(firsts, chosen, side="right") - 1
        local = chosen - firsts[which]
        lengths, counts = np.empty_like(chosen), np.empty_like(chosen)
        for number, shard in enumerate(self.shards):
            own = which == number
            lengths[own] = shard.tokens["lengths"][local[own]]
            counts[own] = shard.tokens["span_counts"][local[own]]
        self.full_lengths = lengths.tolist()
        kept = np.stack([which, local, lengths, np.full_like(chosen, -1)], axis=1)
        keep = lengths > 1  # a first token alone has nothing that it follows
        if self.options.mask_prompt:
            keep &= counts > 0
        self.n_without_targets = int((~keep).sum())
        if self.n_without_targets:
            first = int(np.argmin(keep))
            self.first_without_targets = self.shards[int(which[first])].location(int(local[first]))
        for row in np.flatnonzero(keep & (lengths > limit)) if limit > 0 else ():
            sample = Sample(*kept[row].tolist())
            cut = None if self.options.too_long == "drop" else self._cut(sample, limit)
            self.n_cut, self.n_dropped = self.n_cut + (cut is not None), self.n_dropped + (cut is None)
            keep[row] = cut is not None
            kept[row] = cut or sample
        return kept[keep]

    def _cut(self, sample: Sample, limit: int) -> Sample | None:
        """A sample cut to `limit` tokens; None where nothing of an answer has room.

        Cut within an answer, it ends with that answer's end token, if it has one; cut elsewhere, after the answer
        before. So it is whether prompts are learned or not: half a question that is followed by nothing is neither a
        question nor an answer. Where there is no answer to go by, it is cut at the limit.
        """
        spans = self._target_spans(sample)
        for start, end in reversed(spans):
            if end <= limit:
                return sample._replace(length=end)
            if start < limit - 1:
                shard = self.shards[sample.shard]
                closes = int(shard.tokens.ids[shard.starts[sample.row] + end - 1]) in self.options.end_ids
                return sample._replace(length=limit, last=end - 1 if closes else -1)
        return None if spans else sample._replace(length=limit)

    def _target_spans(self, sample: Sample) -> list[TokenSpan]:
        """Which tokens of the whole sample are targets."""
        return self.shards[sample.shard].target_spans(sample.row)

    def _why_nothing(self) -> str:
        limit = self.options.max_seq_length
        if self.n_without_targets and not self.n_dropped:
            return f"No sample has anything to learn; {self.first_without_targets} is the first."
        if self.options.too_long == "drop":
            return (
                f"Every sample is longer than {limit} tokens; raise train.max_seq_length, or leave out data.too_long."
            )
        return f"No prompt leaves room for an answer in {limit} tokens; raise train.max_seq_length."

    def unused(self, purpose: str, noun: str = "sample") -> list[str]:
        """What of the data is not used, in sentences; `purpose` names the data set."""
        purpose = f"{purpose} {noun}"
        sentences, limit = [], f"{self.options.max_seq_length} tokens (train.max_seq_length)"
        if self.n_cut:
            sentences.append(f"{_count(self.n_cut, purpose)} cut at {limit}.")
        if self.n_dropped:
            reason = "longer than" if self.options.too_long == "drop" else "no room for an answer in"
            sentences.append(f"{_count(self.n_dropped, purpose)} left out: {reason} {limit}.")
        if self.n_without_targets:
            count = _count(self.n_without_targets, purpose)
            sentences.append(f"{count} left out: nothing to learn, {self.first_without_targets} is the first.")
        return sentences

    def target_count(self) -> int:
        """The tokens of all samples that have a loss: all targets but each sample's first token."""
        if not self.options.mask_prompt:
            return sum(self.lengths) - len(self.lengths)
        return sum(
            max(0, min(end, sample.length) - max(start, 1))
            for sample in map(Sample._make, self._kept.tolist())
            for start, end in self._target_spans(sample)
        )

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the samples before any is cut."""
        names = ("ids", "lengths", "span_counts", "span_starts", "span_ends")
        arrays = [array_hash(shard.tokens[name]) for shard in self.shards for name in names]
        return content_hash(*arrays, array_hash(self._kept[:, :2]))

    @property
    def places(self) -> np.ndarray:
        """The shard of each sample and its number there, `(S, 2)`."""
        return self._kept[:, :2]

    @property
    def prompt_style(self) -> PromptStyle:
        """How samples are rendered."""
        return self.row_renderer.renderer.style

    @cached_property
    def data(self) -> list[Row]:
        """The rows of the samples, read again from where they came from."""
        rows = [[row for _, row in shard.rows()] for shard in self.shards]
        return [rows[shard][index] for shard, index, _, _ in self._kept.tolist()]

    def question(self, index: int, protect: Callable[[str], str] = str) -> tuple[str, str] | None:
        """What the last answer of a sample answers, and the whole prompt in front of it; None for plain text.

        Args:
            index: The sample.
            protect: `Tokenizer.protect`; the prompt is one to encode as protected.
        """
        return self.asked(self.row_renderer.parse(self.data[index]), protect)

    def asked(self, conversation: Conversation, protect: Callable[[str], str]) -> tuple[str, str] | None:
        """The same of a conversation."""
        answers = [at for at, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        if not answers:
            return None
        asked = conversation.messages[answers[-1] - 1].get("content") if answers[-1] else ""
        return str(asked or ""), self.row_renderer.renderer.prompt(conversation.protected(protect), answers[-1])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        import numpy as np
        import torch

        sample = Sample._make(self._kept[index].tolist())
        shard = self.shards[sample.shard]
        start, stream = int(shard.starts[sample.row]), shard.tokens.ids
        ids = stream[start : start + sample.length].astype(np.int64)
        if sample.last >= 0:
            ids[-1] = stream[start + sample.last]
        if self.options.mask_prompt:
            labels = np.full_like(ids, self.options.ignore_index)
            for begin, end in self._target_spans(sample):
                labels[begin:end] = ids[begin:end]
        else:
            labels = ids.copy()
        counts = {"raw": int(shard.tokens["raw"][sample.row]), "raw_plus_prompt_template": len(ids)}
        return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels), "token_counts": counts}


def _count(number: int, purpose: str) -> str:
    return f"{number:,} {purpose}{' is' if number == 1 else 's are'}"


def resolve_style(prompt_style: str | PromptStyle, tokenizer: Tokenizer) -> PromptStyle:
    """The style of that name, as it is with this tokenizer; `chat` is the tokenizer's own template."""
    style = PromptStyle.from_name(prompt_style) if isinstance(prompt_style, str) else prompt_style
    return style.for_checkpoint(tokenizer.checkpoint_dir)

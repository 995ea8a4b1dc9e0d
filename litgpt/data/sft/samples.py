"""The samples of a data set: views of token files, cut to the length that a model can take.

A sample is `{"input_ids": (T,) int64, "labels": (T,) int64}`, not shifted; labels are `ignore_index` where nothing is
learned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from litgpt.data.sft.encoding import Recipe, Store, encode_rows, recipe_of
from litgpt.data.sft.formats import Row, instruction
from litgpt.data.sft.rendering import Writer
from litgpt.errors import LitGPTError
from litgpt.prompts import PromptStyle

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from litgpt.tokenizer import Tokenizer


class NothingFits(LitGPTError):
    """Every sample of a data set is too long, or has nothing to learn."""


@dataclass(frozen=True)
class Fitting:
    """How samples are made to fit, and what of them is learned."""

    max_seq_length: int = -1
    """Tokens of a sample at most; -1: no limit."""
    mask_prompt: bool = True
    """Learn the answers only."""
    ignore_index: int = -100
    """The label of what is not learned."""
    too_long: str = "cut"
    """What becomes of a longer sample: `cut` (it keeps its end token) or `drop`."""


class Sample(NamedTuple):
    """A sample of a view."""

    store: int
    place: int
    """In its store."""
    length: int
    """Tokens, after cutting."""
    last: int
    """Place of the token that stands at the end instead of the one that is there; -1: it stays."""


class SFTDataset:
    """Conversations as token ids, tokenized once, in batches.

    Instructions are tokenized prompt and answer apart, the answer with an end token. A sample longer than
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
        rows = [transform(dict(row)) if transform else row for row in data]
        if not rows:
            raise LitGPTError("The data set has no samples.")
        recipe = recipe_of(Writer(style_of(prompt_style, tokenizer)), instruction, {})
        store = encode_rows(rows, recipe, tokenizer)
        self._see([store], recipe, Fitting(max_seq_length, mask_prompt, ignore_index), None)

    @classmethod
    def of(
        cls, stores: Sequence[Store], recipe: Recipe, fitting: Fitting, chosen: Sequence[int] | None = None
    ) -> SFTDataset:
        """A view of samples that are tokens already.

        Args:
            stores: Where they are; samples are numbered through all of them.
            recipe: How rows became tokens.
            fitting: How samples are made to fit.
            chosen: Which samples, in which order. None: all.
        """
        dataset = cls.__new__(cls)
        dataset._see(stores, recipe, fitting, chosen)
        return dataset

    def _see(self, stores: Sequence[Store], recipe: Recipe, fitting: Fitting, chosen: Sequence[int] | None) -> None:
        import numpy as np

        self.stores, self.recipe, self.fitting = list(stores), recipe, fitting
        self.n_cut = self.n_dropped = self.n_unlearned = 0
        self.full_lengths: list[int] = []
        """Tokens of each sample before any is cut or left out."""
        self.first_unlearned = ""
        """Where the first sample stands that has nothing to learn."""
        self._starts = [_sums(store.tokens["lengths"]) for store in stores]
        self._spans = [_sums(store.tokens["span_counts"]) for store in stores]
        self._firsts = np.cumsum([0, *map(len, stores)])
        if chosen is None:
            chosen = range(int(self._firsts[-1]))
        self._kept = self._fit(np.asarray(chosen, dtype=np.int64))
        if not len(self._kept):
            raise NothingFits(self._why_nothing())
        self.lengths: list[int] = self._kept[:, 2].tolist()
        """Tokens of each sample."""

    def _fit(self, chosen: np.ndarray) -> np.ndarray:
        """The samples that are kept, `(S, 4)`: the columns of `Sample`."""
        import numpy as np

        limit = self.fitting.max_seq_length if self.fitting.max_seq_length > 0 else None
        place = np.searchsorted(self._firsts, chosen, side="right") - 1
        local = chosen - self._firsts[place]
        lengths, counts = np.empty_like(chosen), np.empty_like(chosen)
        for number, store in enumerate(self.stores):
            own = place == number
            lengths[own] = store.tokens["lengths"][local[own]]
            counts[own] = store.tokens["span_counts"][local[own]]
        self.full_lengths = lengths.tolist()
        kept = np.stack([place, local, lengths, np.full_like(chosen, -1)], axis=1)
        keep = lengths > 1  # a first token alone has nothing that it follows
        if self.fitting.mask_prompt:
            keep &= counts > 0
        self.n_unlearned = int((~keep).sum())
        if self.n_unlearned:
            first = int(np.argmin(keep))
            self.first_unlearned = self.stores[int(place[first])].where(int(local[first]))
        for row in np.flatnonzero(keep & (lengths > limit)) if limit is not None else ():
            sample = Sample(*kept[row].tolist())
            cut = None if self.fitting.too_long == "drop" else self._cut(sample, limit)
            self.n_cut, self.n_dropped = self.n_cut + (cut is not None), self.n_dropped + (cut is None)
            keep[row] = cut is not None
            kept[row] = cut or sample
        return kept[keep]

    def _cut(self, sample: Sample, limit: int | None) -> Sample | None:
        """A sample cut to `limit` tokens; None where nothing of an answer has room.

        Cut within an answer, it ends with that answer's end token; cut elsewhere, after the answer before.
        """
        assert limit is not None
        spans = self.learned(sample)
        if not self.fitting.mask_prompt:
            fits = not spans or spans[0][0] < limit - 1
            return sample._replace(length=limit, last=sample.length - 1) if fits else None
        for start, end in reversed(spans):
            if end <= limit:
                return sample._replace(length=end)
            if start < limit - 1:
                return sample._replace(length=limit, last=end - 1)
        return None

    def learned(self, sample: Sample) -> list[tuple[int, int]]:
        """The places of the learned tokens of the whole sample, as spans."""
        tokens, first = self.stores[sample.store].tokens, self._spans[sample.store][sample.place]
        places = slice(first, self._spans[sample.store][sample.place + 1])
        return list(zip(tokens["span_starts"][places].tolist(), tokens["span_ends"][places].tolist(), strict=True))

    def _why_nothing(self) -> str:
        limit = self.fitting.max_seq_length
        if self.n_unlearned and not self.n_dropped:
            return f"No sample has anything to learn; {self.first_unlearned} is the first."
        if self.fitting.too_long == "drop":
            return (
                f"Every sample is longer than {limit} tokens; raise train.max_seq_length, or leave out data.too_long."
            )
        return f"No prompt leaves room for an answer in {limit} tokens; raise train.max_seq_length."

    def losses(self, purpose: str) -> list[str]:
        """What of the data is not used, in sentences; `purpose` names the data set."""
        sentences, limit = [], f"{self.fitting.max_seq_length} tokens (train.max_seq_length)"
        if self.n_cut:
            sentences.append(f"{_count(self.n_cut, purpose)} cut at {limit}.")
        if self.n_dropped:
            reason = "longer than" if self.fitting.too_long == "drop" else "no room for an answer in"
            sentences.append(f"{_count(self.n_dropped, purpose)} left out: {reason} {limit}.")
        if self.n_unlearned:
            sentences.append(
                f"{_count(self.n_unlearned, purpose)} left out: nothing to learn, {self.first_unlearned} is the first."
            )
        return sentences

    def target_count(self) -> int:
        """The tokens of all samples that have a loss: all but each sample's first one, where they are learned."""
        if not self.fitting.mask_prompt:
            return sum(self.lengths) - len(self.lengths)
        return sum(
            max(0, min(end, sample.length) - max(start, 1))
            for sample in map(Sample._make, self._kept.tolist())
            for start, end in self.learned(sample)
        )

    @property
    def prompt_style(self) -> PromptStyle:
        """How samples are put into words."""
        return self.recipe.writer.style

    @cached_property
    def data(self) -> list[Row]:
        """The rows of the samples, read again from where they came from."""
        rows = [[row for _, row in store.rows()] for store in self.stores]
        return [rows[store][index] for store, index, _, _ in self._kept.tolist()]

    def question(self, index: int) -> tuple[str, str] | None:
        """What the last answer of a sample answers, and the whole prompt in front of it; None for plain text."""
        conversation = self.recipe.converse(self.data[index])
        answers = [place for place, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        if not answers:
            return None
        asked = conversation.messages[answers[-1] - 1].get("content") if answers[-1] else ""
        return str(asked or ""), self.recipe.writer.prompt(conversation, answers[-1])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        import numpy as np
        import torch

        sample = Sample._make(self._kept[index].tolist())
        start = int(self._starts[sample.store][sample.place])
        stream = self.stores[sample.store].tokens.ids
        ids = stream[start : start + sample.length].astype(np.int64)
        if sample.last >= 0:
            ids[-1] = stream[start + sample.last]
        if self.fitting.mask_prompt:
            labels = np.full_like(ids, self.fitting.ignore_index)
            for begin, end in self.learned(sample):
                labels[begin:end] = ids[begin:end]
        else:
            labels = ids.copy()
        return {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(labels)}


def _count(number: int, purpose: str) -> str:
    return f"{number:,} {purpose} sample{' is' if number == 1 else 's are'}"


def _sums(counts: np.ndarray) -> np.ndarray:
    """Where each of some consecutive runs starts, and where the last one ends."""
    import numpy as np

    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def style_of(prompt_style: str | PromptStyle, tokenizer: Tokenizer) -> PromptStyle:
    """The style of that name, as it is with this tokenizer; `chat` is the tokenizer's own template."""
    style = PromptStyle.from_name(prompt_style) if isinstance(prompt_style, str) else prompt_style
    return style.for_checkpoint(tokenizer.checkpoint_dir)


def render(style: PromptStyle, row: Mapping[str, Any]) -> str:
    """The prompt of an instruction's row."""
    conversation = instruction({**row, "output": row.get("output") or ""})
    return Writer(style).prompt(conversation, len(conversation.messages) - 1)

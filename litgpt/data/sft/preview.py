"""What `litgpt data preview` shows: samples with their targets marked, and their lengths."""

from __future__ import annotations

import os
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litgpt.data import Alpaca, DataModule
from litgpt.errors import LitGPTError, quoted

if TYPE_CHECKING:
    from litgpt.tokenizer import Tokenizer

BARS = 12
"""Rows of the histogram."""
WIDTH = 40
"""Characters of its longest bar."""
GREEN, GREY, PLAIN = "\033[32m", "\033[2m", "\033[0m"
BLOCK = 1024
"""Tokens of a block to pretrain on, where nothing says how many."""


@dataclass
class Preview:
    """A data module that is set up, with the tokenizer that made its samples."""

    data: DataModule
    tokenizer: Tokenizer
    limit: int | None
    """Tokens of a sample at most."""
    messages: Sequence[str] = ()
    """What the data module logged."""

    @classmethod
    def of(
        cls, folder: Path, data: DataModule | None, limit: int | None, pretraining: bool, access_token: str | None
    ) -> Preview:
        """Sets up the data for the model, or the tokenizer, in a folder.

        Raises:
            LitGPTError: The folder has no tokenizer, or the data is wrong.
        """
        from litgpt.checkpoint.hub import auto_download
        from litgpt.checkpoint.layout import find_checkpoint
        from litgpt.tokenizer import Tokenizer

        if limit is not None and limit < 1:
            raise LitGPTError(f"max_seq_length must be at least 1, not {limit}.")
        folder = auto_download(folder, access_token=access_token)
        try:
            checkpoint = find_checkpoint(folder)
            folder, limit = checkpoint.dir, limit or checkpoint.config.block_size
        except LitGPTError:  # a tokenizer alone is enough
            limit = limit or (BLOCK if pretraining else None)
        tokenizer, data = Tokenizer(folder), data or Alpaca()
        data.pretraining, messages = pretraining, list[str]()
        data.log = messages.append
        data.connect(tokenizer, max_seq_length=limit)
        data.prepare_data()
        data.setup()
        return cls(data, data.tokenizer or tokenizer, limit, messages)

    def show(self, samples: int, color: str, tokens: bool = False) -> dict[str, Any]:
        """Prints samples, lengths and counts; returns them. With `tokens`, a sample is a table of its tokens."""
        datasets = {"training": self.data.train_dataset, "validation": self.data.val_dataset}
        summaries = [line for name, found in datasets.items() if found for line in ("", *self.summary(name, found))]
        print("\n".join(message for message in self.messages if message not in summaries))
        colored = color == "always" or (color == "auto" and sys.stdout.isatty() and "NO_COLOR" not in os.environ)
        shown: list[dict[str, Any]] = []
        for index in range(min(samples, len(self.data.train_dataset))):
            sample = self.data.train_dataset[index]
            size, targets = len(sample["input_ids"]), sum(1 for label in sample["labels"].tolist()[1:] if label >= 0)
            print(f"\n── training sample {index}: {size:,} tokens, {targets:,} of them targets")
            for title, part in parts_of(sample):
                print(title + ("\n".join(self.table(part)) if tokens else self.text(part, colored)))
                listed = {key: part[key].tolist() for key in ("input_ids", "labels")}
                shown.append({"sample": index, "part": title.strip("─ \n"), "text": self.text(part, False), **listed})
        print("\n".join(summaries))
        counts = {
            name: {"samples": len(found), "tokens": sum(found.lengths), "targets": count_targets(found)}
            for name, found in datasets.items()
            if found
        }
        return {"max_seq_length": self.limit, "samples": shown, **counts, "messages": list(self.messages)}

    def table(self, sample: Any) -> Iterator[str]:
        """A line for each token of a sample: place, id, label, text; a target is learned from the token before it."""
        ids, labels = sample["input_ids"].tolist(), sample["labels"].tolist()
        width = max(5, *(len(str(token)) for token in (*ids, *labels)))
        yield f"{'at':>5}  {'id':>{width}}  {'label':>{width}}  text"
        for at, (token, label) in enumerate(zip(ids, labels, strict=True)):
            text = quoted(self.tokenizer.decode([token], skip_special_tokens=False))
            yield f"{at:>5}  {token:>{width}}  {label:>{width}}  {text}"

    def text(self, sample: Any, colored: bool) -> str:
        """A sample as text; targets are green, or between ⟦ and ⟧."""
        marks = (GREEN, PLAIN + GREY, GREY, PLAIN) if colored else ("⟦", "⟧", "", "")
        pieces, on = [marks[2]], False
        for ids, is_target in runs(sample["input_ids"].tolist(), sample["labels"].tolist()):
            if is_target != on:
                pieces.append((PLAIN if colored else "") + marks[0] if is_target else marks[1])
            on = is_target
            pieces.append(self.tokenizer.decode(ids, skip_special_tokens=False).replace("\033", "␛"))
        return "".join((*pieces, marks[1] if on and not colored else "", marks[3]))

    def summary(self, name: str, dataset: Any) -> Iterator[str]:
        """Counts and a histogram of lengths."""
        lengths = list(dataset.lengths)
        tokens, ordered = sum(lengths), sorted(lengths)
        targets = count_targets(dataset)
        yield (
            f"{len(dataset):,} {name} samples, {tokens:,} tokens, {targets:,} of them targets "
            f"({targets / max(1, tokens):.1%})"
        )
        middle, most = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
        unused = getattr(dataset, "unused", None)
        limit = self.limit if unused is not None else None  # blocks of text are never cut
        kept = f"; at most {limit:,} are kept" if limit is not None else ""
        yield f"tokens of a sample: {ordered[0]:,} to {ordered[-1]:,}, half up to {middle:,}, 95% up to {most:,}{kept}"
        if unused is not None:
            yield from unused(name) or ["nothing is cut or left out"]
        yield from histogram(getattr(dataset, "full_lengths", lengths), limit)


def parts_of(sample: Any) -> Iterator[tuple[str, Any]]:
    """A sample as it is; one of preferences as both its sequences, with what they are."""
    if "documents" not in sample:
        yield "", sample
        return
    size = int(sample["documents"][0])
    titles = ("── chosen\n", "── rejected\n")
    if "given" in sample:
        wanted = "wanted" if sample["given"][0] else "not wanted"
        titles = (f"── {wanted}\n", "── with the answer to another prompt, to estimate the divergence\n")
    for title, part in zip(titles, (slice(None, size), slice(size, None)), strict=True):
        yield title, {key: sample[key][part] for key in ("input_ids", "labels")}


def count_targets(dataset: Any) -> int:
    """The tokens of a data set that have a loss."""
    own = getattr(dataset, "target_count", None)
    if own is not None:
        return own()
    return sum(int((dataset[index]["labels"][1:] >= 0).sum()) for index in range(len(dataset)))


def runs(ids: Sequence[int], labels: Sequence[int]) -> Iterator[tuple[list[int], bool]]:
    """Consecutive ids that are all targets or all not."""
    start = 0
    for at in range(1, len(ids) + 1):
        if at == len(ids) or (labels[at] >= 0) != (labels[start] >= 0):
            yield list(ids[start:at]), labels[start] >= 0
            start = at


def histogram(lengths: Sequence[int], limit: int | None) -> Iterator[str]:
    """How many samples have how many tokens before they are cut, a line for each range.

    Up to the limit, or to where few are left, the ranges are equal; what is above has a line of its own.
    """
    ordered = sorted(lengths)
    low, high = ordered[0], ordered[-1]
    top = min(high, 2 * ordered[int(0.95 * (len(ordered) - 1))], max(low, limit or high))
    step = max(1, -(-(top - low + 1) // BARS))
    edges = [*range(low + step, top + 1, step), top + 1]
    edges += [limit + 1] if limit is not None and top < limit < high else []
    edges += [high + 1] if top < high else []
    places = [bisect_left(ordered, edge) for edge in (low, *edges)]
    counts = [after - before for before, after in pairwise(places)]
    digits = len(f"{high:,}")
    for (first, end), count in zip(pairwise((low, *edges)), counts, strict=True):
        bar = "█" * round(WIDTH * count / max(counts)) or ("▏" if count else "")
        mark = " ✂" if count and limit is not None and first > limit else ""
        yield f"  {first:>{digits},} – {end - 1:>{digits},}  {bar:<{WIDTH}}  {count:,}{mark}"

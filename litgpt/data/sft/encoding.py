"""Samples become tokens: put into words, tokenized in batches on all cores, and written to a token file.

While the tokenizer's threads work on a batch, the next one is read and put into words.

Legend: `N` tokens, `S` samples, `A` learned spans of all samples.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from litgpt.data.sft.formats import Conversation, Row
from litgpt.data.sft.rendering import Part, Span, Wording, Writer
from litgpt.data.storage.files import read_rows, unit_of
from litgpt.data.storage.token_cache import (
    TokenFile,
    TokenWriter,
    cached,
    content_hash,
    file_hash,
    fingerprint,
    identity,
    plain_json,
)
from litgpt.errors import LitGPTError

if TYPE_CHECKING:
    from litgpt.tokenizer import Tokenizer

BATCH = 512
"""Samples that are tokenized together."""
VERSION = b"samples 1"
"""Changes whenever the same inputs are to get other tokens."""


class Encoded(NamedTuple):
    """One sample as tokens."""

    line: int
    ids: list[int]
    learned: list[Span]
    """Places of the tokens that are learned."""


@dataclass(frozen=True)
class Recipe:
    """All that decides which tokens a row becomes, but for the tokenizer."""

    converse: Callable[[Row], Conversation]
    writer: Writer
    key: bytes
    """A hash of what `converse` and `writer` do."""


@dataclass
class Store:
    """The samples of one data file as tokens."""

    tokens: TokenFile
    rows: Callable[[], Iterable[tuple[int, Row]]]
    """Reads the rows again, each with its line."""
    path: Path | None = None
    """None: rows that came from no file."""

    def __len__(self) -> int:
        return len(self.tokens["lengths"])

    def where(self, sample: int) -> str:
        """Where a sample stands, for a sentence."""
        line = int(self.tokens["lines"][sample])
        return f"{self.path}, {unit_of(self.path)} {line}" if self.path else f"sample {line}"


def encode_file(path: Path, recipe: Recipe, tokenizer: Tokenizer, folder: Path | None) -> Store:
    """The samples of a data file, from the cache in `folder` if they are there (None: no cache).

    Raises:
        LitGPTError: The file is damaged, or a sample can't be put into words; says in which line.
    """
    if not path.is_file():
        next(iter(read_rows(path)))  # which says what is wrong
    key = content_hash(VERSION, fingerprint(tokenizer), recipe.key, path.suffix.encode(), file_hash(path))

    def write(writer: TokenWriter) -> None:
        write_samples(writer, encode(read_rows(path), recipe, tokenizer, path))
        if not len(writer.arrays["lengths"]):
            raise LitGPTError(f"{path} holds no samples.")

    return Store(cached(key, tokenizer, folder, write), lambda: read_rows(path), path)


def encode_rows(rows: Sequence[Row], recipe: Recipe, tokenizer: Tokenizer) -> Store:
    """The samples in rows that are in memory; nothing is kept."""
    numbered = [(number, row) for number, row in enumerate(rows)]
    tokens = cached(
        "", tokenizer, None, lambda writer: write_samples(writer, encode(numbered, recipe, tokenizer, None))
    )
    return Store(tokens, lambda: numbered)


def write_samples(writer: TokenWriter, samples: Iterable[Encoded]) -> None:
    """Writes tokens, and the arrays `lengths (S,)`, `lines (S,)`, `span_counts (S,)`, `span_starts (A,)`, `span_ends
    (A,)`."""
    import numpy as np

    columns: dict[str, list[int]] = {
        name: [] for name in ("lengths", "lines", "span_counts", "span_starts", "span_ends")
    }
    for line, ids, learned in samples:
        writer.add(ids)
        columns["lengths"].append(len(ids))
        columns["lines"].append(line)
        columns["span_counts"].append(len(learned))
        columns["span_starts"] += [start for start, _ in learned]
        columns["span_ends"] += [end for _, end in learned]
    writer.arrays = {name: np.array(column, dtype="<u4") for name, column in columns.items()}


def encode(
    rows: Iterable[tuple[int, Row]], recipe: Recipe, tokenizer: Tokenizer, path: Path | None
) -> Iterator[Encoded]:
    """Every row as tokens, in order.

    Raises:
        LitGPTError: A row can't be put into words or tokens; says where it stands.
    """
    encoder = Encoder(recipe.writer, tokenizer)

    def where(line: int) -> str:
        return f"{path}, {unit_of(path)} {line}" if path else f"Sample {line}"

    def words() -> Iterator[tuple[int, Wording]]:
        for line, row in rows:
            try:
                yield line, recipe.writer.write(recipe.converse(row))
            except LitGPTError as error:
                raise LitGPTError(f"{where(line)}: {error}") from None

    def tokens(batch: list[tuple[int, Wording]]) -> list[Encoded]:
        lines, wordings = [line for line, _ in batch], [wording for _, wording in batch]
        try:
            found = encoder.encode(wordings)
        except LitGPTError:
            for line, wording in batch:
                try:
                    encoder.encode([wording])
                except LitGPTError as error:
                    raise LitGPTError(f"{where(line)}: {error}") from None
            raise
        return [Encoded(line, *sample) for line, sample in zip(lines, found, strict=True)]

    source, waiting = words(), deque[Future[list[Encoded]]]()
    with ThreadPoolExecutor(1) as thread:
        while batch := list(islice(source, BATCH)):
            waiting.append(thread.submit(tokens, batch))
            if len(waiting) > 2:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


class Encoder:
    """Turns wordings into tokens.

    A learned span of a template ends with its last end token: what follows it (a line break) is not the model's to
    say. A sample whose template closes its last answer with no end token gets one.
    """

    def __init__(self, writer: Writer, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.writer = tokenizer, writer
        self._ends: set[int] | None = None

    def encode(self, wordings: Sequence[Wording]) -> list[tuple[list[int], list[Span]]]:
        """The ids of each, and the places of its learned tokens."""
        groups: dict[tuple[bool, bool, bool], list[Part]] = {}
        places: list[list[tuple[tuple[bool, bool, bool], int]]] = []
        for wording in wordings:
            last, own = len(wording.parts) - 1, []
            for number, part in enumerate(wording.parts):
                with_spans = not isinstance(part.learned, bool)
                opens, ends = wording.opens and number == 0, wording.ends and number == last and not with_spans
                group = groups.setdefault((opens, ends, with_spans), [])
                own.append(((opens, ends, with_spans), len(group)))
                group.append(part)
            places.append(own)
        done = {key: self._encode_group(key, parts) for key, parts in groups.items()}
        return [
            self._joined(wording, [done[key][index] for key, index in own])
            for wording, own in zip(wordings, places, strict=True)
        ]

    def _encode_group(self, key: tuple[bool, bool, bool], parts: list[Part]) -> list[tuple[list[int], list[Span]]]:
        opens, ends, with_spans = key
        texts = [part.text for part in parts]
        if with_spans:
            return self._with_spans(texts, [part.learned for part in parts])  # type: ignore[misc]
        # A text without an end token to close it (some base models have none) stays open.
        ids = self.tokenizer.encode_batch(texts, bos=None if opens else False, eos=ends)
        return [(row, [(0, len(row))] if part.learned else []) for row, part in zip(ids, parts, strict=True)]

    def _with_spans(self, texts: list[str], spans: list[Sequence[Span]]) -> list[tuple[list[int], list[Span]]]:
        if self.tokenizer.backend != "huggingface":
            return [self._by_prefixes(text, own) for text, own in zip(texts, spans, strict=True)]
        try:
            rows = self.tokenizer.processor.encode_batch(texts, add_special_tokens=False)
        except Exception:  # which `encode_batch` says in a sentence
            self.tokenizer.encode_batch(texts, bos=False)
            raise
        found = []
        for row, own in zip(rows, spans, strict=True):
            offsets = row.offsets
            found.append((row.ids, [_tokens_in(offsets, span) for span in own]))
        return found

    def _by_prefixes(self, text: str, spans: Sequence[Span]) -> tuple[list[int], list[Span]]:
        """Without offsets: a place in the text is where the tokens of what stands before it part from the whole's."""
        ids = self.tokenizer.encode_ids(text, bos=False)

        def place(at: int) -> int:
            before = self.tokenizer.encode_ids(text[:at], bos=False) if at else []
            same = (i for i, (one, other) in enumerate(zip(before, ids, strict=False)) if one != other)
            return next(same, min(len(before), len(ids)))

        return ids, [(place(start), place(end)) for start, end in spans]

    def _joined(self, wording: Wording, parts: list[tuple[list[int], list[Span]]]) -> tuple[list[int], list[Span]]:
        ids, learned = list[int](), list[Span]()
        for own, spans in parts:
            learned += [(start + len(ids), end + len(ids)) for start, end in spans]
            ids += own
        if not isinstance(wording.parts[-1].learned, bool) and not wording.marked:
            ids, learned = self._closed(ids, learned)
        return ids, [span for span in learned if span[0] < span[1]]

    def _closed(self, ids: list[int], learned: list[Span]) -> tuple[list[int], list[Span]]:
        """Spans up to their last end token; the sample ends with the one that reaches its end."""
        ends, spans, length = self._end_ids(), list[Span](), len(ids)
        for start, end in learned:
            last = next((i for i in range(end - 1, start - 1, -1) if ids[i] in ends), None)
            if last is not None:
                spans.append((start, last + 1))
                if end == length:
                    ids = ids[: last + 1]
            elif end < length and ids[end] in ends:  # what opens the next turn ends this one
                spans.append((start, end + 1))
            elif end == length and self.tokenizer.eos_id is not None:
                ids = [*ids, self.tokenizer.eos_id]
                spans.append((start, end + 1))
            else:
                spans.append((start, end))
        return ids, spans

    def _end_ids(self) -> set[int]:
        if self._ends is None:
            self._ends = {ids[0] for ids in self.writer.style.stop_tokens(self.tokenizer) if len(ids) == 1}
        return self._ends


def _tokens_in(offsets: Sequence[tuple[int, int]], span: Span) -> Span:
    """The tokens that have characters of `span`."""
    start = bisect_right(offsets, span[0], key=lambda place: place[1])
    return start, max(start, bisect_left(offsets, span[1], key=lambda place: place[0]))


def recipe_of(writer: Writer, converse: Callable[[Row], Conversation], options: dict[str, Any]) -> Recipe:
    """How rows become words, with its hash.

    Args:
        writer: Puts conversations into words.
        converse: Makes a conversation of a row; a method of the object that `options` are of.
        options: What `converse` depends on.
    """
    owner = getattr(converse, "__self__", None)
    code = identity(owner) if owner is not None else f"{converse.__module__}.{converse.__qualname__}".encode()
    key = content_hash(code, plain_json(options), style_key(writer), writer.turns.encode())
    return Recipe(converse, writer, key.encode())


def style_key(writer: Writer) -> bytes:
    """What decides how a conversation is written."""
    from litgpt.prompts import ChatTemplate

    style = writer.style
    if isinstance(style, ChatTemplate):
        state = {name: [found.source, dict(found.tokens)] for name, found in sorted(style.templates.items())}
    else:
        state = dict(vars(style))
    return content_hash(identity(style), plain_json(state)).encode()

"""Samples become tokens: rendered, tokenized in batches on all cores, and written to a token file.

While the tokenizer's threads work on a batch, the next one is read and rendered.

Legend: `N` tokens, `S` samples, `A` target spans of all samples.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from litgpt.data.sft.assistant_spans import CharSpan
from litgpt.data.sft.formats import Conversation, Row
from litgpt.data.sft.rendering import RenderedPart, RenderedSample, Renderer
from litgpt.data.storage.data_files import location, read_rows
from litgpt.data.storage.token_cache import (
    TokenFile,
    TokenWriter,
    cached_token_file,
    canonical_json,
    code_identity,
    content_hash,
    file_hash,
    tokenizer_fingerprint,
)
from litgpt.errors import LitGPTError

if TYPE_CHECKING:
    import numpy as np

    from litgpt.prompts import PromptStyle
    from litgpt.tokenizer import Tokenizer

MAX_NAMES = 1000
"""Keys of a file that are remembered."""
BATCH = 512
"""Samples that are tokenized together."""
VERSION = b"samples 2"
"""Changes whenever the same inputs are to get other tokens."""
TokenSpan = tuple[int, int]
"""`[start, end)` in the tokens of a sample."""
Tokens = tuple[list[int], list[TokenSpan]]
"""Ids, and which of them are targets."""


@dataclass
class Notes:
    """What is told of the rows of a file besides their tokens."""

    unread: Counter[str] = field(default_factory=Counter)
    """What nothing reads, in words -> in how many samples."""
    keys: set[str] = field(default_factory=set)
    """The keys of all rows."""
    broken: dict[str, tuple[int, str]] = field(default_factory=dict)
    """What is wrong with rows that are left out -> how many, and where the first is."""

    def leave_out(self, reason: str, where: str, count: int = 1) -> None:
        """Notes rows that are left out."""
        before, first = self.broken.get(reason, (0, where))
        self.broken[reason] = before + count, first

    def to_array(self) -> np.ndarray:
        """As bytes, for a token file."""
        import numpy as np

        named: list[Any] = [dict(self.unread.most_common(MAX_NAMES)), sorted(map(str, self.keys))[:MAX_NAMES]]
        return np.frombuffer(json.dumps([*named, *([self.broken] if self.broken else [])]).encode(), dtype="u1")

    @classmethod
    def from_array(cls, array: np.ndarray) -> Notes:
        """What `to_array` made."""
        unread, keys, *broken = json.loads(array.tobytes())
        return cls(
            Counter(unread), set(keys), {why: (count, at) for found in broken for why, (count, at) in found.items()}
        )


class TokenizedSample(NamedTuple):
    """One sample as tokens."""

    line: int
    ids: list[int]
    target_spans: list[TokenSpan]
    raw: int
    """Tokens without those of the prompt style: of what the user says, and of the targets."""
    kind: int = 0
    """What `RowRenderer.answers` says it is."""


class BrokenRow(LitGPTError):
    """A row that is well-formed but can teach nothing: it is left out, and told."""


@dataclass(frozen=True)
class RowRenderer:
    """All that decides which tokens a row becomes, but for the tokenizer."""

    parse: Callable[[Row], Conversation]
    renderer: Renderer
    key: bytes = b""
    """A hash of what `parse` and `renderer` do; only the cache needs it."""
    answers: Callable[[Row], Sequence[tuple[int, Conversation]]] | None = None
    """Where a row is several samples: all of them, each with a number above 0 that says what it is."""

    def render(self, row: Row, tokenizer: Tokenizer, notes: Notes) -> list[tuple[int, RenderedSample]]:
        """The text of a row, or of each of its samples, in which what looks like a special token in its questions is
        marked as text; what of the row is not read is noted."""
        found = [(0, self.parse(row))] if self.answers is None else self.answers(row)
        rendered = [(kind, self.renderer.render(each.protected(tokenizer.protect))) for kind, each in found]
        notes.keys.update(row)
        notes.unread.update(self.renderer.unread(found[0][1]))
        return rendered


@dataclass
class TokenizedShard:
    """The samples of one data file as tokens."""

    tokens: TokenFile
    rows: Callable[[], Iterable[tuple[int, Row]]]
    """Reads the rows again, each with its line."""
    path: Path | None = None
    """None: the rows are in memory."""

    def __len__(self) -> int:
        return len(self.tokens["lengths"])

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each sample starts in the tokens, `(S + 1,)`: the last one's end, too."""
        return _starts(self.tokens["lengths"])

    @cached_property
    def notes(self) -> Notes:
        """What is told of the rows besides their tokens."""
        return Notes.from_array(self.tokens["notes"])

    @cached_property
    def _first_spans(self) -> np.ndarray:
        """Where each sample's target spans start, `(S + 1,)`."""
        return _starts(self.tokens["span_counts"])

    def target_spans(self, sample: int) -> list[TokenSpan]:
        """Which tokens of a sample are targets."""
        spans = slice(self._first_spans[sample], self._first_spans[sample + 1])
        starts, ends = self.tokens["span_starts"][spans], self.tokens["span_ends"][spans]
        return list(zip(starts.tolist(), ends.tolist(), strict=True))

    def location(self, sample: int) -> str:
        """Where a sample is, for a message."""
        line = int(self.tokens["lines"][sample])
        return location(self.path, line) if self.path else f"sample {line}"


def _starts(counts: np.ndarray) -> np.ndarray:
    """Where each of some consecutive runs starts, and where the last one ends."""
    import numpy as np

    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def encode_file(path: Path, row_renderer: RowRenderer, tokenizer: Tokenizer, folder: Path | None) -> TokenizedShard:
    """The samples of a data file, from the cache in `folder` if they are there (None: no cache).

    Raises:
        LitGPTError: The file is damaged, or a sample can't be rendered; names the line.
    """
    if not path.is_file():
        next(iter(read_rows(path)))  # which says what is wrong
    fingerprint = tokenizer_fingerprint(tokenizer)
    parses = bytes([tokenizer.parse_special_tokens])
    key = content_hash(VERSION, fingerprint, parses, row_renderer.key, path.suffix.encode(), file_hash(path))

    def write(writer: TokenWriter) -> None:
        notes = write_rows(writer, read_rows(path), row_renderer, tokenizer, path)
        if not len(writer.arrays["lengths"]):
            why = next((f" ({reason}: {where} is the first)" for reason, (_, where) in notes.broken.items()), "")
            raise LitGPTError(f"{path} holds no samples{why}.")

    return TokenizedShard(cached_token_file(key, tokenizer, folder, write), lambda: read_rows(path), path)


def encode_rows(rows: Sequence[Row], row_renderer: RowRenderer, tokenizer: Tokenizer) -> TokenizedShard:
    """The samples of rows in memory, which are not cached."""
    numbered = list(enumerate(rows))

    def write(writer: TokenWriter) -> None:
        write_rows(writer, numbered, row_renderer, tokenizer, None)

    return TokenizedShard(cached_token_file("", tokenizer, None, write), lambda: numbered)


def write_rows(
    writer: TokenWriter,
    rows: Iterable[tuple[int, Row]],
    row_renderer: RowRenderer,
    tokenizer: Tokenizer,
    path: Path | None,
) -> Notes:
    """Writes the tokens of rows, and the arrays `lengths`, `lines`, `raw`, `span_counts`, each `(S,)`, `span_starts`,
    `span_ends`, each `(A,)`, and `notes`; where rows are several samples, also `kinds`, `(S,)`."""
    import numpy as np

    notes = Notes()
    columns: dict[str, list[int]] = {
        name: [] for name in ("lengths", "lines", "raw", "span_counts", "span_starts", "span_ends")
    }
    kinds = list[int]()
    for line, ids, spans, raw, kind in encode(rows, row_renderer, tokenizer, path, notes):
        kinds.append(kind)
        writer.add(ids)
        columns["lengths"].append(len(ids))
        columns["lines"].append(line)
        columns["raw"].append(raw)
        columns["span_counts"].append(len(spans))
        columns["span_starts"] += [start for start, _ in spans]
        columns["span_ends"] += [end for _, end in spans]
    writer.arrays = {name: np.array(column, dtype="<u4") for name, column in columns.items()}
    if row_renderer.answers is not None:
        writer.arrays["kinds"] = np.array(kinds, dtype="<u4")
    writer.arrays["notes"] = notes.to_array()
    return notes


def encode(
    rows: Iterable[tuple[int, Row]], row_renderer: RowRenderer, tokenizer: Tokenizer, path: Path | None, notes: Notes
) -> Iterator[TokenizedSample]:
    """Every row as tokens, in order; `notes` gets what is told of them besides.

    Raises:
        LitGPTError: A row can't be rendered or tokenized; names its line.
    """
    encoder = Encoder(row_renderer.renderer.style, tokenizer)

    def where(line: int) -> str:
        return location(path, line) if path else f"Sample {line}"

    def located(line: int, error: LitGPTError) -> LitGPTError:
        return LitGPTError(f"{where(line)}: {error}")

    def render() -> Iterator[tuple[int, int, RenderedSample]]:
        for line, row in rows:
            try:
                yield from ((line, kind, sample) for kind, sample in row_renderer.render(row, tokenizer, notes))
            except BrokenRow as error:
                notes.leave_out(str(error), where(line))
            except LitGPTError as error:
                raise located(line, error) from None

    def tokenize(batch: list[tuple[int, int, RenderedSample]]) -> list[TokenizedSample]:
        try:
            found = encoder.encode([sample for *_, sample in batch])
        except LitGPTError:
            for line, _, sample in batch:
                try:
                    encoder.encode([sample])
                except LitGPTError as error:
                    raise located(line, error) from None
            raise
        raw = encoder.raw_counts([sample for *_, sample in batch], found)
        return [
            TokenizedSample(line, *tokens, own, kind)
            for (line, kind, _), tokens, own in zip(batch, found, raw, strict=True)
        ]

    source, waiting = render(), deque[Future[list[TokenizedSample]]]()
    with ThreadPoolExecutor(1) as thread:
        while batch := list(islice(source, BATCH)):
            waiting.append(thread.submit(tokenize, batch))
            if len(waiting) > 2:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


class Encoder:
    """Turns rendered samples into tokens.

    A target span of a template ends with its last end token: what follows it (a line break) is not the model's to
    write. A sample whose template closes its last answer with no end token gets one.
    """

    def __init__(self, style: PromptStyle, tokenizer: Tokenizer) -> None:
        self.style, self.tokenizer = style, tokenizer

    def encode(self, samples: Sequence[RenderedSample]) -> list[Tokens]:
        """The ids of each sample, and which of them are targets."""
        keys = [[_group_key(sample, number) for number in range(len(sample.parts))] for sample in samples]
        groups: dict[tuple[bool, bool, bool], list[RenderedPart]] = {}
        for sample, own in zip(samples, keys, strict=True):
            for part, key in zip(sample.parts, own, strict=True):
                groups.setdefault(key, []).append(part)
        done = {key: iter(self._encode_group(parts, *key)) for key, parts in groups.items()}
        return [
            self._joined(sample, [next(done[key]) for key in own]) for sample, own in zip(samples, keys, strict=True)
        ]

    def raw_counts(self, samples: Sequence[RenderedSample], encoded: Sequence[Tokens]) -> list[int]:
        """How many tokens each sample has without those of the style, as LitGPT counts them."""
        texts = [text for sample in samples for text in sample.asked]
        asked = iter(self.tokenizer.encode_batch(texts, bos=False, protected=True))
        return [
            len(self._opening if sample.asked else [])
            + sum(len(next(asked)) for _ in sample.asked)
            + sum(end - start for start, end in spans)
            for sample, (_, spans) in zip(samples, encoded, strict=True)
        ]

    def _encode_group(self, parts: list[RenderedPart], opens: bool, ends: bool, with_spans: bool) -> list[Tokens]:
        texts = [part.text for part in parts]
        if with_spans:
            found = self._with_spans(texts, [part.target for part in parts])  # type: ignore[misc]
            return [self._opened(*tokens) for tokens in found] if opens else found
        # A text without an end token to close it (some base models have none) stays open.
        ids = self.tokenizer.encode_batch(texts, bos=None if opens else False, eos=ends, protected=True)
        return [(row, [(0, len(row))] if part.target else []) for row, part in zip(ids, parts, strict=True)]

    def _with_spans(self, texts: list[str], spans: list[Sequence[CharSpan]]) -> list[Tokens]:
        return [
            (ids, self._by_prefixes(text, ids, own) if places is None else [_tokens_in(places, span) for span in own])
            for text, own, (ids, places) in zip(texts, spans, self.tokenizer.encode_protected(texts), strict=True)
        ]

    def _opened(self, ids: list[int], spans: list[TokenSpan]) -> Tokens:
        """With the start token of the tokenizer, where a text gets one."""
        opening = self._opening
        if ids[: len(opening)] == opening:
            return ids, spans
        return [*opening, *ids], [(start + len(opening), end + len(opening)) for start, end in spans]

    @cached_property
    def _opening(self) -> list[int]:
        return self.tokenizer.encode_ids("", bos=None)

    def _by_prefixes(self, text: str, ids: list[int], spans: Sequence[CharSpan]) -> list[TokenSpan]:
        """Without offsets: a place in the text is where the tokens of what stands before it part from the whole's."""

        def place(at: int) -> int:
            before = self.tokenizer.encode_ids(text[:at], bos=False, protected=True) if at else []
            same = (i for i, (one, other) in enumerate(zip(before, ids, strict=False)) if one != other)
            return next(same, min(len(before), len(ids)))

        return [(place(start), place(end)) for start, end in spans]

    def _joined(self, sample: RenderedSample, parts: list[Tokens]) -> Tokens:
        ids, targets = list[int](), list[TokenSpan]()
        for own, spans in parts:
            targets += [(start + len(ids), end + len(ids)) for start, end in spans]
            ids += own
        if not sample.marked and not all(isinstance(part.target, bool) for part in sample.parts):
            ids, targets = self._closed(ids, targets)
        return ids, [span for span in targets if span[0] < span[1]]

    def _closed(self, ids: list[int], targets: list[TokenSpan]) -> Tokens:
        """Spans up to their last end token; the sample ends with the one that reaches its end."""
        ends, spans, length = self._end_ids, list[TokenSpan](), len(ids)
        for start, end in targets:
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

    @cached_property
    def _end_ids(self) -> frozenset[int]:
        return end_ids(self.style, self.tokenizer)


def end_ids(style: PromptStyle, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end an answer by themselves."""
    return frozenset(ids[0] for ids in style.stop_tokens(tokenizer) if len(ids) == 1)


def _group_key(sample: RenderedSample, number: int) -> tuple[bool, bool, bool]:
    """Whether a part of a sample opens with BOS, ends with EOS, and has spans; parts alike are tokenized together."""
    with_spans = not isinstance(sample.parts[number].target, bool)
    ends = sample.ends and number == len(sample.parts) - 1 and not with_spans
    return sample.opens and number == 0, ends, with_spans


def _tokens_in(offsets: Sequence[tuple[int, int]], span: CharSpan) -> TokenSpan:
    """The tokens that have characters of `span`."""
    start = bisect_right(offsets, span[0], key=lambda place: place[1])
    return start, max(start, bisect_left(offsets, span[1], key=lambda place: place[0]))


def style_key(style: PromptStyle) -> bytes:
    """A hash of what decides how a conversation is rendered."""
    from litgpt.prompts import ChatTemplate

    if isinstance(style, ChatTemplate):
        state = {name: [found.source, dict(found.tokens)] for name, found in sorted(style.templates.items())}
    else:
        state = dict(vars(style))
    return content_hash(code_identity(style), canonical_json(state)).encode()

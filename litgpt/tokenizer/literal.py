"""Text that looks like a special token and isn't one: what a user writes, as opposed to what a template does.

`MarkedText.protect` puts a mark before each such place. Templates carry it along; encoding leaves the mark out and
reads what follows it as any other text.
"""

from __future__ import annotations

import json
import re
import secrets
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator
from functools import cache
from typing import NamedTuple

import tokenizers

MARK = "\ufdd0"
"""A noncharacter: Unicode keeps it for uses inside a program."""
EDGE = "\ufdd1"


class Piece(NamedTuple):
    """A part of a marked text: `[start, end)`."""

    text: str
    """Without its mark."""
    is_token: bool
    is_marked: bool
    start: int
    end: int


class MarkedText:
    """Finds special tokens in texts.

    Args:
        special: The special tokens as texts.
        others: Other tokens that are found before a text is cut into words; one of them may hold a special one.
        whole_words: Those of them that count only between word boundaries.
    """

    def __init__(
        self, special: Collection[str], others: Collection[str] = (), whole_words: Collection[str] = ()
    ) -> None:
        self.special = frozenset(special) - {""}
        self._tokens = self.special | (frozenset(others) - {""})
        self._whole_words = frozenset(whole_words)
        self._lengths: dict[str, list[int]] = {}
        """Of the tokens that begin with a character, longest first: some vocabularies have thousands."""
        for first, length in sorted({(token[0], len(token)) for token in self._tokens}, reverse=True):
            self._lengths.setdefault(first, []).append(length)
        self._begins = re.compile("|".join(map(re.escape, {MARK, *self._lengths})))

    def _token_at(self, text: str, at: int) -> str | None:
        """The longest token at a place."""
        for length in self._lengths.get(text[at : at + 1], ()):
            token = text[at : at + length]
            if token in self._tokens and (token not in self._whole_words or _is_word(text, at, at + len(token))):
                return token
        return None

    def protect(self, text: str) -> str:
        """The text with a mark before all that looks like a special token."""
        parts, done, at = list[str](), 0, 0
        while found := self._begins.search(text, at):
            begin = found.start()
            token = MARK if found[0] == MARK else self._token_at(text, begin)
            at = begin + len(token or " ")
            if token == MARK or token in self.special:
                parts += [text[done:begin], MARK]
                done = begin
        return "".join([*parts, text[done:]])

    def pieces(self, text: str) -> Iterator[Piece]:
        """A marked text in its parts: special tokens, and text."""
        done = at = 0
        while found := self._begins.search(text, at):
            begin, is_marked = found.start(), found[0] == MARK
            behind = begin + is_marked
            token = MARK if is_marked and text[behind : behind + 1] == MARK else self._token_at(text, behind)
            if token is None or (is_marked and token != MARK and token not in self.special):
                at = begin + 1
                continue
            at = behind + len(token)
            if not is_marked and token not in self.special:
                continue
            if begin > done:
                yield Piece(text[done:begin], False, False, done, begin)
            yield Piece(token, not is_marked, is_marked, begin, at)
            done = at
        if done < len(text):
            yield Piece(text[done:], False, False, done, len(text))


def _is_word(text: str, begin: int, end: int) -> bool:
    """Whether no letter or digit stands at either side."""
    return not any(re.fullmatch(r"\w", side) for side in (text[max(0, begin - 1) : begin], text[end : end + 1]))


class LiteralEncoder:
    """A copy of a `tokenizers.Tokenizer` that knows its special tokens by other names, which no text has.

    Args:
        processor: The tokenizer.
        marked: Finds its special tokens.
    """

    def __init__(self, processor: tokenizers.Tokenizer, marked: MarkedText) -> None:
        self._marked = marked
        state = json.loads(processor.to_str())
        state |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
        self._processor = tokenizers.Tokenizer.from_str(json.dumps(state))
        secret = secrets.token_hex(8)
        self._border = f"{EDGE}{secret}{EDGE}"
        """Parts two texts, and is no token."""
        self._names: dict[str, str] = {}
        self._ids: dict[int, int] = {}
        for index, token in sorted(processor.get_added_tokens_decoder().items()):
            flags = {name: getattr(token, name) for name in ("lstrip", "rstrip", "single_word", "normalized")}
            name = token.content
            if token.special:
                name = self._names[token.content] = f"{EDGE}{secret}.{index}{EDGE}"
                flags |= {"single_word": False, "normalized": False}
            self._add(tokenizers.AddedToken(name, special=token.special, **flags), index)
        self._add(tokenizers.AddedToken(self._border, special=True, normalized=False), -1)
        self._own_ids = {token.content: index for index, token in processor.get_added_tokens_decoder().items()}
        self._divided = cache(self._divide)

    def _add(self, token: tokenizers.AddedToken, index: int) -> None:
        """Adds a token that stands for the id `index`."""
        self._processor.add_tokens([token])
        own = self._processor.token_to_id(token.content)
        assert own is not None
        self._ids[own] = index

    def encode(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a marked text, and where in it each stands."""
        pieces = list(self._marked.pieces(text))
        written = [self._written(piece) for piece in pieces]
        begins = [0]
        for part in written:
            begins.append(begins[-1] + len(part))

        def place(at: int, is_end: bool) -> int:
            number = max(0, (bisect_left(begins, at) if is_end else bisect_right(begins, at)) - 1)
            if number >= len(pieces):
                return len(text)
            piece, after = pieces[number], at - begins[number]
            if piece.is_token:
                return piece.end if is_end else piece.start
            return min(piece.start + after + (piece.is_marked and after > 0), piece.end)

        encoding = self._processor.encode("".join(written), add_special_tokens=False)
        ids = [self._ids.get(index, index) for index in encoding.ids]
        found = [(index, span) for index, span in zip(ids, encoding.offsets, strict=True) if index >= 0]
        return [index for index, _ in found], [(place(start, False), place(end, True)) for _, (start, end) in found]

    def _written(self, piece: Piece) -> str:
        if piece.is_token:
            return self._names[piece.text]
        return self._divided(piece.text) if piece.is_marked else piece.text

    def _divide(self, token: str) -> str:
        """A special token as text; in two where the vocabulary would make it the token again."""
        ids = self._processor.encode(token, add_special_tokens=False).ids
        return token[:1] + self._border + token[1:] if self._own_ids.get(token) in ids else token

"""Text out of a stream of token ids: joined, it is what decoding all the ids at once gives; never half a character."""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache


class StreamDecoder(ABC):
    """Takes token ids one at a time and returns text as soon as no later id can change it; constant work an id."""

    @abstractmethod
    def push(self, token_id: int) -> str:
        """The text that became certain with this id; often empty inside a character of several tokens."""

    @abstractmethod
    def flush(self) -> str:
        """The rest, however incomplete, and a fresh start."""


class ByteStream(StreamDecoder):
    """For byte-level vocabularies (GPT-2, Llama 3, Qwen): a token is some bytes, a text is the bytes of its tokens.

    Args:
        token_bytes: The bytes of an id; none for an id that shows nothing.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        return self._utf8.decode(self._token_bytes(token_id))

    def flush(self) -> str:
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


class PieceStream(StreamDecoder):
    """For vocabularies of text pieces with single bytes as a fallback (Llama 2, Mistral, Gemma), and any other.

    A piece's text depends on what stands before it (at the start its leading space is dropped), so it is decoded behind
    `anchor`, an id of plain text. A run of byte tokens is valid or not as a whole, so it is held back until it ends.

    Args:
        decode: The text of some ids.
        is_byte: Whether an id is a byte token.
        is_silent: Whether an id shows nothing and leaves its neighbours alone.
        anchor: An id whose text every text may follow; without one all ids are decoded again each time.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        is_byte: Callable[[int], bool],
        is_silent: Callable[[int], bool],
        anchor: int | None,
    ) -> None:
        self._decode, self._is_byte, self._is_silent = decode, is_byte, is_silent
        self._anchor = [] if anchor is None else [anchor]
        self._anchor_length = len(decode(self._anchor))
        self._pending: list[int] = []
        self._shown = 0
        """Characters given out, of this text or (once anchored) of what is pending."""
        self._started = False

    def push(self, token_id: int) -> str:
        if self._is_silent(token_id):
            return ""
        self._pending.append(token_id)
        return "" if self._is_byte(token_id) else self._release()

    def flush(self) -> str:
        rest = self._release()
        self._pending, self._shown, self._started = [], 0, False
        return rest

    def _release(self) -> str:
        if self._anchor and self._started:
            text = self._decode([*self._anchor, *self._pending])[self._anchor_length :]
            self._pending = []
            return text
        text = self._decode(self._pending)[self._shown :]
        if text and self._anchor:  # Until there is text, leading spaces may still be dropped: decode from the start.
            self._pending, self._started = [], True
        else:
            self._shown += len(text)
        return text


@cache
def byte_level_alphabet() -> dict[str, int]:
    """Which byte each character of a byte-level vocabulary stands for (GPT-2's table: printable Latin-1 is itself)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def byte_level_bytes(token: str) -> bytes:
    """The bytes that a token of a byte-level vocabulary stands for; one with other characters is its UTF-8."""
    alphabet = byte_level_alphabet()
    try:
        return bytes(alphabet[character] for character in token)
    except KeyError:
        return token.encode("utf-8")

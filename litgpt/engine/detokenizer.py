"""A request's tokens as text: whole characters only, cut before the first stop string."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from litgpt.engine.request import FinishReason, Request
from litgpt.errors import LitGPTError
from litgpt.tokenizer.stream import StreamDecoder


def stop_strings(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """One stop string, several or none, as a tuple.

    Raises:
        LitGPTError: One of them is empty or no text.
    """
    stops = (given,) if isinstance(given, str) else () if given is None else given
    if not (isinstance(stops, Sequence) and all(isinstance(stop, str) and stop for stop in stops)):
        raise LitGPTError("A stop string is empty or no text; leave it out or give at least one character.")
    return tuple(stops)


def partial_match(text: str, marks: Sequence[str]) -> int:
    """How many of the last characters may turn out to begin one of some marks."""
    return max((n for mark in marks for n in range(1, len(mark)) if text.endswith(mark[:n])), default=0)


class TextStream:
    """The text of an answer, piece by piece; iterate over it, or push tokens as `Request.take` gives them.

    Args:
        request: Where the tokens come from.
        decoder: A fresh one, or one that the prompt's tokens went through where the text continues the prompt's.
        stop: Texts that end the answer and are not part of it; they may span tokens.

    Raises:
        LitGPTError: A stop string is empty.
    """

    def __init__(self, request: Request, decoder: StreamDecoder, stop: str | Sequence[str] | None = None) -> None:
        self.request = request
        self._decoder = decoder
        self._stops = stop_strings(stop)
        self._held = ""
        """Text that may turn out to begin a stop string."""
        self.stopped_by: str | None = None
        """The stop string that ended the answer."""

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None: it hasn't."""
        return "stop" if self.stopped_by is not None else self.request.finish_reason

    def __iter__(self) -> Iterator[str]:
        for token in self.request:
            if piece := self.push([token]):
                yield piece
            if self.stopped_by is not None:
                return
        if piece := self.close():
            yield piece

    def push(self, tokens: Iterable[int]) -> str:
        """The text that is certain after these tokens; a stop string in it cancels the request."""
        return self._cut("".join(self._decoder.push(token) for token in tokens))

    def close(self) -> str:
        """What was held back, once no token is to come."""
        piece = self._cut(self._decoder.flush())
        piece, self._held = piece + self._held, ""
        return piece

    def _cut(self, text: str) -> str:
        if self.stopped_by is not None:
            return ""
        text = self._held + text
        if found := [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]:
            at, self.stopped_by = min(found)
            self._held = ""
            self.request.cancel()
            return text[:at]
        held = partial_match(text, self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

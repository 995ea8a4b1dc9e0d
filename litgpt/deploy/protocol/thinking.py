"""Answers that begin with a thought between two tags, as most models that reason write them."""

from __future__ import annotations

from typing import Protocol

from litgpt.deploy.protocol.tool_calls import DeltaMessage
from litgpt.engine.detokenizer import partial_match

Tags = tuple[str, str]
"""What opens a thought and what closes it."""
TAGS: tuple[Tags, ...] = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<mm:think>", "</mm:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
)


def tags_of(template: str) -> Tags | None:
    """The tags of a chat template, by either of them in it; None: none that are known."""
    return next((tags for tags in TAGS if any(tag in template for tag in tags)), None)


class Parser(Protocol):
    """Parts the kinds of text in an answer."""

    def push(self, text: str) -> DeltaMessage:
        """What is said, called and thought, as far as it is certain."""

    def close(self) -> DeltaMessage:
        """What was held back, once the answer is complete."""


class ContentParser:
    """Takes all of an answer as said."""

    def push(self, text: str) -> DeltaMessage:
        """The text, as it is."""
        return DeltaMessage(text)

    def close(self) -> DeltaMessage:
        """Nothing is held back."""
        return DeltaMessage()


class ThoughtParser:
    """Takes an answer piece by piece and parts the thought at its beginning from the rest.

    White space around a thought is notation. Without its end, all of the answer is the thought.

    Args:
        tags: What a thought stands between.
        inside: The prompt has opened it.
        rest: Reads what follows it.
    """

    def __init__(self, tags: Tags, inside: bool, rest: Parser) -> None:
        self._open, self._close = tags
        self._before, self._inside, self._rest = not inside, inside, rest
        self._held = ""
        self._bare = True
        """Nothing but white space came yet, of a thought or of what follows it."""

    def push(self, text: str) -> DeltaMessage:
        """What is thought, and what the rest comes to, as far as it is certain."""
        self._held += text
        if self._before and not self._read_opening():
            return DeltaMessage()
        thought = self._thought() if self._inside else ""
        return DeltaMessage(reasoning=thought) + (DeltaMessage() if self._inside else self._after())

    def close(self) -> DeltaMessage:
        """What was held back, once the answer is complete."""
        if self._inside:
            return DeltaMessage(reasoning=self._held.rstrip())
        message = self._rest.push(self._held) if self._before else DeltaMessage()
        return message + self._rest.close()

    def _read_opening(self) -> bool:
        """Finds out whether the answer opens a thought; False: that is not certain yet."""
        text = self._held.lstrip()
        if self._open.startswith(text) and text != self._open:
            return False
        self._before, self._inside = False, text.startswith(self._open)
        if self._inside:
            self._held = text.removeprefix(self._open)
        self._bare = self._inside
        return True

    def _thought(self) -> str:
        """What is certainly thought; white space waits for what follows it."""
        self._skip_space()
        at = self._held.find(self._close)
        if at >= 0:
            thought, self._held = self._held[:at].rstrip(), self._held[at + len(self._close) :]
            self._inside, self._bare = False, True
            return thought
        thought = self._held[: len(self._held) - partial_match(self._held, (self._close,))].rstrip()
        self._held = self._held[len(thought) :]
        return thought

    def _after(self) -> DeltaMessage:
        self._skip_space()
        text, self._held = self._held, ""
        return self._rest.push(text)

    def _skip_space(self) -> None:
        if self._bare:
            self._held = self._held.lstrip()
            self._bare = not self._held

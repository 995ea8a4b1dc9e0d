"""Colours for Markdown while it streams: nothing is held back, added or taken away but escape codes."""

from __future__ import annotations

import os
import sys
from typing import TextIO

RESET, BOLD, CYAN = "\x1b[0m", "\x1b[1m", "\x1b[36m"


def wants_colour(stream: TextIO | None = None) -> bool:
    """Whether a stream (standard output) is a terminal that shows colours; `NO_COLOR` turns them off."""
    stream = stream or sys.stdout
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def harmless(text: str) -> str:
    """The text without control characters that a terminal would obey; it comes from a model."""
    return "".join(c if c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160) else "\ufffd" for c in text)


class MarkdownStyle:
    """Headings and `**strong**` bold, `code` and fenced blocks cyan; the marks stay, so that copied text is whole."""

    def __init__(self) -> None:
        self._line = ""
        """The line so far."""
        self._fenced = self._coded = self._strong = False
        self._shown = ""
        """The codes in force."""

    def push(self, text: str) -> str:
        """A piece of the text with its codes."""
        return "".join(self._coloured(character) for character in harmless(text))

    def close(self) -> str:
        """What brings the terminal back to normal."""
        return RESET if self._shown else ""

    def _coloured(self, character: str) -> str:
        if character == "\n":
            if self._line.lstrip().startswith("```"):
                self._fenced = not self._fenced
            self._line, self._coded, self._strong = "", False, False
            return character
        self._line += character
        before = self._codes()
        if not self._fenced and not self._line.lstrip().startswith("```"):
            if character == "`":
                self._coded = not self._coded
            elif self._line.endswith("**") and not self._coded:
                self._strong = not self._strong
        after = self._codes() if self._codes() else before  # a closing mark looks as what it closes
        codes = self._switch(after)
        return f"{codes}{character}"

    def _codes(self) -> str:
        if self._fenced or self._coded or self._line.lstrip().startswith("```"):
            return CYAN
        return BOLD if self._strong or self._line.startswith("#") else ""

    def _switch(self, codes: str) -> str:
        if codes == self._shown:
            return ""
        turned_off = RESET if self._shown else ""
        self._shown = codes
        return turned_off + codes

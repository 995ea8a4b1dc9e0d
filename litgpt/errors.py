"""What a user gets to read when something is wrong: one sentence, never a traceback."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable

MAX_QUOTED = 200
"""Characters that a sentence quotes of what comes from outside."""
MAX_COMPARED = 100
"""Characters of a word that is compared with others; the time grows with their square."""


class LitGPTError(Exception):
    """A user's mistake, told in one sentence: what is wrong, where, and what to do (exit code 1)."""


class UsageError(LitGPTError):
    """A command line that cannot be understood (exit code 2)."""


class _Shortened(reprlib.Repr):
    """`repr` of the beginning of a value, which takes no longer and no more memory than that."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother, self.maxlong = 3, MAX_QUOTED, MAX_QUOTED, MAX_QUOTED

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 4096 else f"<a number of {x.bit_length()} bits>"


_shortened = _Shortened()


def quoted(value: object) -> str:
    """What a file, a request or a server holds, to stand inside a sentence: short, control characters escaped."""
    if isinstance(value, str):
        return _cut(repr(value[:MAX_QUOTED]) + "…" * (len(value) > MAX_QUOTED))
    return _cut(escaped(_shortened.repr(value)))


def escaped(text: str, most: int = MAX_QUOTED) -> str:
    """A text, a path or a key for instance, with control characters as Python writes them (`\\x1b`)."""
    text = text if len(text) <= most else text[:most] + "…"
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 1] + "…"


def one_line(error: BaseException) -> str:
    """What an error of another library says, to stand inside a sentence."""
    if isinstance(error, RecursionError):
        return "recursion: it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, KeyError):
        return f"it has no {quoted(error.args[0] if error.args else None)}"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return escaped(" ".join(text[: 10 * MAX_QUOTED].split())[:MAX_QUOTED].rstrip("."))


def closest(word: str, options: Iterable[str], n: int = 3) -> str:
    """` Closest: a, b.` with the `n` best matches for `word` (ignoring case), or an empty string when none is near."""
    word = word[:MAX_COMPARED]
    by_lower = {option.lower(): option for option in options}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=n, cutoff=0.5)
    return f" Closest: {', '.join(by_lower[match] for match in matches)}." if matches else ""

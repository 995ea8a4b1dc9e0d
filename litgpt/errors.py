"""What a user gets to read besides results: one sentence when something is wrong, never a traceback; and progress."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable
from functools import cache
from itertools import islice
from typing import Any

MAX_QUOTED = 200
"""The most characters of a value from outside that a sentence quotes."""
MAX_SENTENCE = 2000
"""The most characters of a sentence; a list of known names is the longest thing that one holds."""
MAX_COMPARED = 100
"""Characters of a word that is compared with others; the time grows with their square."""
QUIET = "LITGPT_QUIET"
"""The environment variable that leaves progress out, set by `--quiet`: processes that a command starts have it too."""
PARTS, LEVELS = 6, 3
"""Entries of a container that are quoted, and containers inside each other."""


class LitGPTError(ValueError):
    """A user's mistake, told in one sentence: what is wrong, where, and what to do.

    It is a `ValueError`, and the classes below are also the builtin exceptions that LitGPT raises there, since that is
    what callers catch. So an `except` for another library's errors lets a `LitGPTError` through first.
    """

    exit_code = 1

    def __str__(self) -> str:
        return sentence(Exception.__str__(self))  # a KeyError's own would put quotes around it


class UsageError(LitGPTError):
    """A command line that cannot be understood."""

    exit_code = 2


class ChecksFailedError(LitGPTError):
    """Checks that were made, of which one failed at least."""

    def __init__(self, sentence: str, found: Any = None) -> None:
        super().__init__(sentence)
        self.found = found
        """What the command would have returned."""


class FileError(LitGPTError, OSError):
    """A file or folder that can't be read or written."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or folder that is not there."""


class MissingFolderError(MissingFileError, NotADirectoryError):
    """A folder that is not there, or is a file."""


class ExistingFileError(FileError, FileExistsError):
    """A file or folder that would be overwritten."""


class MissingPackageError(LitGPTError, ModuleNotFoundError):
    """A package that has to be installed first."""


class UnsupportedError(LitGPTError, NotImplementedError):
    """Something that this model, device or method cannot do."""


class UnknownNameError(LitGPTError, KeyError):
    """A name that is not in a table."""


class MissingCacheError(LitGPTError, TypeError):
    """Positions for a KV cache, and no cache."""


def file_error(error: Exception, sentence: str) -> LitGPTError:
    """What to raise for a file that can't be opened, written or decoded: `sentence`, in the class that fits `error`."""
    if isinstance(error, FileNotFoundError):
        return MissingFileError(sentence)
    return (FileError if isinstance(error, OSError) else LitGPTError)(sentence)


@cache
def warn_once(sentence: str) -> None:
    """Warns of something that is left out, once a process, as one line on stderr."""
    print(f"litgpt: {sentence}", file=sys.stderr)


def is_quiet() -> bool:
    """Whether no progress is printed, results and warnings alone."""
    return os.environ.get(QUIET, "0") not in ("", "0")


def progress(text: str, end: str = "\n") -> None:
    """Prints what a command is about, or how far it is, on stderr: piped results stay clean."""
    if not is_quiet():
        print(text, end=end, file=sys.stderr, flush=True)


def check_token_ids(ids: Iterable[int], size: int, what: str) -> None:
    """Raises a LitGPTError where one of the ids that `what` has is not of a vocabulary of `size` tokens."""
    wrong = next((token for token in ids if not 0 <= token < size), None)
    if wrong is not None:
        raise LitGPTError(
            f"{what} has the token id {wrong}, which is outside 0 ... {size - 1}, the model's vocabulary; use the "
            "model's own tokenizer, or finetune with --resize_vocab true, which gives it the tokens that were added."
        )


def one_line(error: BaseException) -> str:
    """What an error of another library says, to stand inside a sentence."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, KeyError):
        return f"it has no {quoted(error.args[0] if error.args else None)}"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return escaped(" ".join(text[: 10 * MAX_QUOTED].split())[:MAX_QUOTED].rstrip("."))


def quoted(value: object, levels: int = LEVELS) -> str:
    """A value from outside as Python writes it, to stand inside a sentence.

    It has at most `MAX_QUOTED` characters, none of them a control character, and takes no longer for a large value: a
    few lines of YAML may stand for gigabytes.
    """
    if isinstance(value, str | bytes):
        text = repr(value[: MAX_QUOTED + 1])
    elif isinstance(value, dict | list | tuple | set | frozenset) and value:
        parts = [quoted(part, levels - 1) for part in islice(value, PARTS if levels else 0)]
        if isinstance(value, dict):
            parts = [f"{part}: {quoted(value[key], levels - 1)}" for part, key in zip(parts, value, strict=False)]
        opening, closing = "[]" if isinstance(value, list) else "()" if isinstance(value, tuple) else "{}"
        text = opening + ", ".join(parts + ["…"] * (len(value) > len(parts))) + closing
    elif isinstance(value, int) and value.bit_length() > MAX_QUOTED:
        text = f"a number of {value.bit_length()} bits"
    else:
        try:
            text = escaped(repr(value))
        except Exception:  # whatever the class does in there
            text = f"a {type(value).__name__}"
    return text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 1] + "…"


def escaped(text: str, most: int = MAX_QUOTED) -> str:
    """The beginning of a text, with its control characters escaped: they move the cursor, colour a terminal or forge a
    line of a log."""
    text = text if len(text) <= most else text[: most - 1] + "…"
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def sentence(text: str) -> str:
    """A sentence on one line, with what is far too long for one cut in its middle; a path keeps its end."""
    words = [_cut(word, MAX_QUOTED) for word in _cut(text, 2 * MAX_SENTENCE).split(" ")]
    return _cut(escaped(" ".join(words), 2 * MAX_SENTENCE), MAX_SENTENCE)


def _cut(text: str, most: int) -> str:
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def closest(word: str, options: Iterable[str]) -> str:
    """` Closest: a, b.` with the best matches for `word` (ignoring case), or an empty string when none is near."""
    by_lower = {option.lower(): option for option in options}
    matches = difflib.get_close_matches(word[:MAX_COMPARED].lower(), by_lower, n=3, cutoff=0.5)
    return f" Closest: {', '.join(by_lower[match] for match in matches)}." if matches else ""

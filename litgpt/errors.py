"""What a user gets to read when something is wrong: one sentence, never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LitGPTError(ValueError):
    """A user's mistake, told in one sentence: what is wrong, where, and what to do (exit code 1).

    It is a `ValueError`, and the classes below are also the builtin exceptions that LitGPT raises there, since that is
    what callers catch. So an `except` for another library's errors lets a `LitGPTError` through first.
    """


class UsageError(LitGPTError):
    """A command line that cannot be understood (exit code 2)."""


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


def file_error(error: OSError, sentence: str) -> FileError:
    """What to raise for a file that the system won't open or write: `sentence`, in the class that fits `error`."""
    return (MissingFileError if isinstance(error, FileNotFoundError) else FileError)(sentence)


def one_line(error: BaseException) -> str:
    """What an error of another library says, to stand inside a sentence."""
    return " ".join((str(error) or type(error).__name__).split())[:200].rstrip(".")


def closest(word: str, options: Iterable[str], n: int = 3) -> str:
    """` Closest: a, b.` with the `n` best matches for `word` (ignoring case), or an empty string when none is near."""
    by_lower = {option.lower(): option for option in options}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=n, cutoff=0.5)
    return f" Closest: {', '.join(by_lower[match] for match in matches)}." if matches else ""

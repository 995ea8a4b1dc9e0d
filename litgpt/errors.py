"""What a user gets to read when something is wrong: one sentence, never a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LitGPTError(Exception):
    """A user's mistake, told in one sentence: what is wrong, where, and what to do (exit code 1)."""


class UsageError(LitGPTError):
    """A command line that cannot be understood (exit code 2)."""


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
    return " ".join((str(error) or type(error).__name__).split())[:200].rstrip(".")


def closest(word: str, options: Iterable[str], n: int = 3) -> str:
    """` Closest: a, b.` with the `n` best matches for `word` (ignoring case), or an empty string when none is near."""
    by_lower = {option.lower(): option for option in options}
    matches = difflib.get_close_matches(word.lower(), by_lower, n=n, cutoff=0.5)
    return f" Closest: {', '.join(by_lower[match] for match in matches)}." if matches else ""

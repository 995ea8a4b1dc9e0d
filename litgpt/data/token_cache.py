"""Texts become token ids once: kept in a file named by what went in, memory-mapped ever after.

The name is a hash of the texts and of the tokenizer, so a change of either makes another file, and two processes that
make the same file at the same time both succeed.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from litgpt.errors import LitGPTError

if TYPE_CHECKING:
    import numpy as np

    from litgpt.tokenizer import Tokenizer

PIECE = 1 << 16
"""Characters that are tokenized at a time; the pieces of a batch run in parallel."""
BATCH = 64
"""Pieces in a batch."""
WINDOW = 256
"""Characters on each side of a cut that are tokenized to see whether the cut changes the tokens."""


def cache_folder() -> Path:
    """Where token files are kept: `$LITGPT_CACHE`, else `litgpt` in the user's cache folder."""
    own = os.environ.get("LITGPT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "litgpt"


def cached_tokens(files: Sequence[Path], tokenizer: Tokenizer, folder: Path) -> np.ndarray:
    """The tokens of text files, one document each, as one memory-mapped stream.

    A document starts with the tokenizer's start token; where it has none, it ends with the end token.

    Raises:
        LitGPTError: A file is not UTF-8 text, or `folder` can't be written.
    """
    import numpy as np

    contents = [file.read_bytes() for file in files]
    dtype = np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4")
    target = folder / "tokens" / f"{content_hash(fingerprint(tokenizer), *contents)}.{dtype.name}.bin"
    if not target.is_file():
        _write(
            target,
            dtype,
            (
                ids
                for file, raw in zip(files, contents, strict=True)
                for ids in _document(decoded(file, raw), tokenizer)
            ),
        )
    if target.stat().st_size == 0:
        return np.empty(0, dtype)
    return np.memmap(target, dtype=dtype, mode="r")


def content_hash(*parts: bytes) -> str:
    """A name for these contents, 40 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=20)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def decoded(file: Path, raw: bytes) -> str:
    """The text of a file, with line ends as they are.

    Raises:
        LitGPTError: It is not UTF-8; says in which line.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise LitGPTError(f"{file}, line {line}: not UTF-8 text; save the file as UTF-8.") from None


def _write(target: Path, dtype: np.dtype, batches: Iterator[list[int]]) -> None:
    import numpy as np

    from litgpt.checkpoint.atomic import atomic_file

    with atomic_file(target) as temporary, temporary.open("wb") as file:
        for ids in batches:
            np.asarray(ids, dtype=dtype).tofile(file)


def _document(text: str, tokenizer: Tokenizer) -> Iterator[list[int]]:
    if tokenizer.bos_id is not None:
        yield [tokenizer.bos_id]
    pieces = cut_text(text, tokenizer)
    for start in range(0, len(pieces), BATCH):
        yield from tokenizer.encode_batch(pieces[start : start + BATCH], bos=False, eos=False)
    if tokenizer.bos_id is None and tokenizer.eos_id is not None:
        yield [tokenizer.eos_id]


def cut_text(text: str, tokenizer: Tokenizer) -> list[str]:
    """`text` in pieces with the tokens it has as a whole: cut between lines, or not where that changes a token."""
    pieces, start = [], 0
    while len(text) - start > 2 * PIECE:
        at = _line_start(text, start + PIECE)
        if at is None:
            break
        if not _clean_cut(text[at - WINDOW : at], text[at : at + WINDOW], tokenizer):
            return [text]
        pieces.append(text[start:at])
        start = at
    return [*pieces, text[start:]]


def _line_start(text: str, after: int) -> int | None:
    """Where the first line after position `after` starts that starts with no white space."""
    at = text.find("\n", after) + 1
    while 0 < at < len(text):
        if not text[at].isspace():
            return at
        at = text.find("\n", at) + 1
    return None


def _clean_cut(left: str, right: str, tokenizer: Tokenizer) -> bool:
    whole, first, second = tokenizer.encode_batch([left + right, left, right], bos=False, eos=False)
    return whole == first + second


def fingerprint(tokenizer: Tokenizer) -> bytes:
    """What decides which ids a text gets."""
    if tokenizer.backend == "huggingface":
        content = tokenizer.processor.to_str().encode()
    else:
        content = tokenizer.processor.serialized_model_proto()
    return content_hash(content, f"{tokenizer.bos_id} {tokenizer.eos_id}".encode()).encode()

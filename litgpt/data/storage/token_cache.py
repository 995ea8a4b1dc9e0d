"""Texts become token ids once: kept in a file named by what went in, memory-mapped ever after.

The name is a hash of the texts, of the tokenizer and of how the texts were rendered, so a change of any makes
another file, and two processes that make the same file at the same time both succeed. A file is written under another
name first: a killed process leaves none that is half.

Legend: `N` tokens of a file, `S` samples in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from litgpt.args import plain_class
from litgpt.errors import LitGPTError, file_error
from litgpt.prompts.base import public_path
from litgpt.tokenizer.backends import FOREIGN

if TYPE_CHECKING:
    import numpy as np

    from litgpt.tokenizer import Tokenizer

PIECE = 1 << 16
"""Characters that are tokenized at a time; the pieces of a batch run in parallel."""
BATCH = 64
"""Pieces in a batch."""
WINDOW = 256
"""Characters on each side of a cut that are tokenized to see whether the cut changes the tokens."""
OFF = "off"
"""As `$LITGPT_CACHE` or as `cache_dir`: keep nothing."""
MAGIC = b"litgpt1\n"
ALIGNMENT = 16
"""Bytes that each array in a file starts at a multiple of."""
FINGERPRINTED_FILES = (
    "tokenizer.json tokenizer.model vocab.json merges.txt tokenizer_config.json special_tokens_map.json "
    "added_tokens.json generation_config.json config.json"
).split()
"""Files that decide which ids a text gets and how it begins and ends; their order is part of the hash."""
EARLIER_NAMES = {
    "litgpt.data.sft.data_module.SFTModule": "litgpt.data.instructions.SFTModule",
    "litgpt.data.sft.multi_turn.MultiTurnModule": "litgpt.data.turns.TurnsModule",
    "litgpt.prompts.PromptStyle": "litgpt.prompt_style.PromptStyle",
}
"""Classes that have moved -> the names they had, which hashes keep, so that token files written before are found."""


def cache_folder(chosen: Path | None = None) -> Path | None:
    """Where token files are kept: `chosen`, else `$LITGPT_CACHE`, else `litgpt` in the user's cache folder.

    None where that is `off`.
    """
    own = str(chosen) if chosen is not None else os.environ.get("LITGPT_CACHE")
    if own == OFF:
        return None
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "litgpt"


# ------------------------------------------------------------------------------------------------- token files


class TokenFile:
    """A finished token file, memory-mapped.

    Raises:
        LitGPTError: The file is not whole.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        try:
            self._open(file)
        except (OSError, ValueError, LookupError, TypeError):  # whatever stands there instead
            raise LitGPTError(f"{name} is no token file, or not a whole one; delete it, it is made again.") from None

    def _open(self, file: BinaryIO) -> None:
        import numpy as np

        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(MAGIC) - 8))
        end = file.read()
        if not end.endswith(MAGIC):
            raise ValueError
        length = int.from_bytes(end[:8], "little")
        file.seek(size - len(end) - length)
        arrays = json.loads(file.read(length))["arrays"]
        self._arrays: dict[str, np.ndarray] = {}
        mapped = np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)  # whose slices cost less
        for key, (dtype, start, count) in arrays.items():
            data = mapped[start : start + count * np.dtype(dtype).itemsize]
            self._arrays[key] = data.view(dtype)
        self.ids = self._arrays["ids"]
        """`(N,)`, unsigned, two or four bytes each."""

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]


class TokenWriter:
    """Writes a token file from front to back."""

    def __init__(self, file: BinaryIO, dtype: np.dtype) -> None:
        self.file, self.dtype, self.count = file, dtype, 0
        self.arrays: dict[str, np.ndarray] = {}
        """Further arrays, written at the end."""

    def add(self, ids: Iterable[int]) -> None:
        """Appends tokens."""
        import numpy as np

        array = np.fromiter(ids, dtype=self.dtype)
        self.count += len(array)
        self.file.write(array.tobytes())

    def finish(self) -> None:
        """Writes the further arrays and where everything stands."""
        places: dict[str, tuple[str, int, int]] = {"ids": (self.dtype.str, 0, self.count)}
        for name, array in self.arrays.items():
            self.file.write(b"\0" * (-self.file.tell() % ALIGNMENT))
            places[name] = (array.dtype.str, self.file.tell(), len(array))
            self.file.write(array.tobytes())
        index = json.dumps({"arrays": places}).encode()
        self.file.write(index + len(index).to_bytes(8, "little") + MAGIC)
        self.file.flush()


def cached_token_file(
    key: str, tokenizer: Tokenizer, folder: Path | None, write: Callable[[TokenWriter], None]
) -> TokenFile:
    """The token file called `key`, written by `write` if it isn't there.

    Args:
        key: A hash of all that decides what is in the file.
        tokenizer: Whose ids they are; its size decides their type.
        folder: The cache. None: a temporary file that is gone with the process.
        write: Adds the tokens.

    Raises:
        LitGPTError: `folder` can't be written, or what `write` raises.
    """
    import numpy as np

    from litgpt.checkpoint.atomic import atomic_file

    dtype = np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4")
    if folder is None or tokenizer.backend == FOREIGN:  # what makes the ids of a foreign one can't be hashed
        with tempfile.TemporaryFile() as nameless:
            _write_all(TokenWriter(nameless, dtype), write)
            return TokenFile(nameless, "The temporary token file")
    target = folder / "tokens" / f"{key}.tokens"
    if not target.is_file():
        with atomic_file(target) as temporary, temporary.open("wb") as file:
            _write_all(TokenWriter(file, dtype), write)
    with target.open("rb") as file:
        return TokenFile(file, str(target))


def _write_all(writer: TokenWriter, write: Callable[[TokenWriter], None]) -> None:
    write(writer)
    writer.finish()


# ------------------------------------------------------------------------------------------------------- names


def content_hash(*parts: bytes) -> str:
    """A name for these contents, 40 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=20)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def file_hash(path: Path) -> bytes:
    """The hash of a file's bytes.

    Raises:
        LitGPTError: It can't be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=20)).digest()
    except OSError as error:
        raise file_error(error, f"{path} can't be read ({error.strerror or error}).") from None


def tokenizer_fingerprint(tokenizer: Tokenizer) -> bytes:
    """What decides which ids a text gets."""
    folder = tokenizer.checkpoint_dir
    states = tuple(
        (name, (folder / name).stat().st_mtime_ns) for name in FINGERPRINTED_FILES if (folder / name).is_file()
    )
    facts = (len(tokenizer), tokenizer.bos_id, tokenizer.stop_ids, tokenizer.use_bos, tokenizer.backend)
    return content_hash(_files_hash(folder, states), repr(facts).encode()).encode()


@lru_cache(maxsize=16)
def _files_hash(folder: Path, states: tuple[tuple[str, int], ...]) -> bytes:
    return content_hash(*(part for name, _ in states for part in (name.encode(), file_hash(folder / name)))).encode()


# --------------------------------------------------------------------------------------------------- documents


def cached_documents(
    version: bytes,
    files: Sequence[Path],
    read: Callable[[Path], Iterable[str]],
    tokenizer: Tokenizer,
    folder: Path | None,
) -> np.ndarray:
    """The tokens of the texts in files, one document each, as one memory-mapped stream.

    A document starts with the tokenizer's start token; where it has none, it ends with the end token.

    Args:
        version: Changes whenever the same files are to get other tokens.
        files: Where the texts are.
        read: The texts of a file.
        tokenizer: Makes the ids.
        folder: The cache. None: nothing is kept.

    Raises:
        LitGPTError: `folder` can't be written, or what `read` raises.
    """
    key = content_hash(version, tokenizer_fingerprint(tokenizer), *map(file_hash, files))
    texts = (text for file in files for text in read(file))

    def write(writer: TokenWriter) -> None:
        for batch in _batches(texts, tokenizer):
            for ids in tokenizer.encode_batch([text for text, _, _ in batch], bos=False, eos=False):
                _, opening, closing = batch.pop(0)
                writer.add((*opening, *ids, *closing))

    return cached_token_file(key, tokenizer, folder, write).ids


def _batches(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[tuple[str, list[int], list[int]]]]:
    """Pieces of documents, each with the ids before and behind it, in portions that are tokenized together."""
    opening = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    closing = [tokenizer.eos_id] if tokenizer.bos_id is None and tokenizer.eos_id is not None else []
    batch: list[tuple[str, list[int], list[int]]] = []
    size = 0
    for text in texts:
        pieces = cut_text(text, tokenizer)
        for number, piece in enumerate(pieces):
            batch.append((piece, [] if number else opening, closing if number == len(pieces) - 1 else []))
            size += len(piece)
            if len(batch) >= BATCH and size >= PIECE:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


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


def code_identity(thing: Any) -> bytes:
    """What an object's own code and settings are, for a hash: a class of litgpt by name, one of the user's by source.

    An object whose source can't be had gets an identity of its own, so that nothing is ever taken for it.
    """
    import inspect
    from importlib import import_module

    parts: list[str] = [import_module("litgpt").__version__]  # whose public names, for types, come from here
    for cls in plain_class(type(thing)).__mro__[:-1]:
        name = public_path(cls)
        parts.append(EARLIER_NAMES.get(name, name))
        if cls.__module__.partition(".")[0] not in ("litgpt", "abc", "typing"):
            try:
                parts.append(inspect.getsource(cls))
            except (OSError, TypeError):
                parts.append(os.urandom(16).hex())
    return "\n".join(parts).encode()


def canonical_json(value: Mapping[str, Any]) -> bytes:
    """A table as text, for a hash."""
    return json.dumps(value, sort_keys=True, default=repr).encode()

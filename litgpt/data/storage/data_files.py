"""Rows of data files: JSON, JSON Lines, CSV and Parquet, perhaps compressed (.gz, .zst)."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from litgpt.data.sft.formats import Row, json_type
from litgpt.errors import LitGPTError, MissingFileError, MissingPackageError, escaped, file_error, quoted
from litgpt.reading import check_plain

COMPRESSIONS = (".gz", ".zst")
DATA_SUFFIXES = (".parquet", ".jsonl", ".json", ".csv")
"""In which a data set's files are looked for."""
NOT_DATA = frozenset(
    """dataset_infos.json dataset_info.json state.json package.json config.json generation_config.json tokenizer.json
    tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json adapter_config.json params.json
    preprocessor_config.json processor_config.json model.safetensors.index.json pytorch_model.bin.index.json""".split()
)
"""Files that describe a data set, or belong to a checkpoint."""
NAME_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
"""`mathTest-2_val` has the words math, Test, val."""
VALIDATION_WORDS = frozenset("val valid validation validate test testing tests dev eval evaluation holdout".split())
TRAINING_WORDS = frozenset({"train", "training"})
MAX_CELL = 1 << 30
"""Characters of one CSV cell."""
PIECE = 1 << 12
"""Bytes that are unpacked at a time: few, as each may stand for a great many."""


def format_suffix(path: Path) -> str:
    """The suffix of a file's format, without that of a compression: `.jsonl` of `data.jsonl.gz`."""
    return (Path(path.stem) if path.suffix.lower() in COMPRESSIONS else path).suffix.lower()


def check_suffix(path: Path, known: Collection[str], advice: str = "") -> None:
    """Raises a LitGPTError where a file's format is none of the known ones."""
    if format_suffix(path) not in known:
        missing = "" if path.exists() else ", and does not exist"
        error = LitGPTError if path.exists() else MissingFileError
        raise error(f"{path} is none of {', '.join(known)}{missing}{advice}.")


def location(path: Path, line: int) -> str:
    """Where a row of `read_rows` is, for a message."""
    return f"{path}, {'row' if format_suffix(path) == '.parquet' else 'line'} {line}"


def listed(names: Sequence[object], most: int = 8) -> str:
    """The first of some names, and how many more there are."""
    shown = ", ".join(escaped(str(name)) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def data_files(path: Path, validates: bool = False) -> tuple[list[Path], list[Path]]:
    """The data files at `path`, and in the folders below it: those to train on, those to validate on.

    A file validates where a word of its name, or of a folder's below `path`, says so, and none says `train`.

    Args:
        path: A file or a folder.
        validates: All are for validation; a folder with some called so may have no others.

    Raises:
        LitGPTError: There is none.
    """
    if not path.is_dir():
        if not path.exists():
            raise MissingFileError(f"There is no data file or folder {path}.")
        check_plain(path)
        return [path], []
    names = list(filter(is_data, files_below(path)))
    if not names:
        purpose = "validate on" if validates else "train on"
        raise LitGPTError(
            f"{path} has no file to {purpose} that is called {', '.join(f'*{suffix}' for suffix in DATA_SUFFIXES)}."
        )
    val = [name for name in names if is_validation(name)]
    return [path / name for name in names if name not in val], [path / name for name in val]


def other_files(path: Path) -> list[Path]:
    """The files in a folder that `data_files` does not take for data, but for what describes them."""
    known = (*DATA_SUFFIXES, ".md")
    return [path / name for name in files_below(path) if format_suffix(name) not in known and name.suffix]


def is_data(name: Path) -> bool:
    """Whether a file has rows, by its name."""
    return format_suffix(name) in DATA_SUFFIXES and name.name not in NOT_DATA


def files_below(path: Path) -> list[Path]:
    """The files in a folder and those below it, by their paths from there; hidden ones left out."""
    names = sorted(file.relative_to(path) for file in path.rglob("*") if file.is_file())
    return [name for name in names if not any(part.startswith(".") for part in name.parts)]


def is_validation(name: Path) -> bool:
    """Whether a word of a path says that the file validates."""
    words = {word.casefold() for word in NAME_WORD.findall(name.as_posix())}
    return bool(words & VALIDATION_WORDS) and not words & TRAINING_WORDS


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a data file, each with the line that it starts in (Parquet: its number), counted from 1.

    Raises:
        LitGPTError: No such file, of no known kind, or damaged; says in which line.
    """
    readers = {".json": _json, ".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    check_suffix(path, readers)
    check_plain(path)
    if not path.is_file():
        raise MissingFileError(f"There is no data file {path}.")
    for line, row in readers[format_suffix(path)](path):
        if not isinstance(row, dict):
            raise LitGPTError(f"{path}, line {line}: a sample must be an object with keys, not {json_type(row)}.")
        yield line, row


def read_texts(path: Path, key: str) -> Iterator[str]:
    """The texts under a key of each row of a data file.

    Raises:
        LitGPTError: The file is damaged, or a row has no text; names the line.
    """
    for line, row in read_rows(path):
        yield text_in(row, key, path, line)


def text_in(row: Row, key: str, path: Path, line: int) -> str:
    """The text under a key of a row.

    Raises:
        LitGPTError: There is none.
    """
    text = row.get(key)
    if not isinstance(text, str):
        raise LitGPTError(f"{location(path, line)}: there is no text under the key {quoted(key)}.")
    return text


def read_text(path: Path) -> str:
    """The text of a file, with line ends as they are.

    Raises:
        LitGPTError: It is not UTF-8; names the line.
    """
    return _decoded(path, path.read_bytes(), 1)


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with _opened(path) as file:
        for number, raw in enumerate(file, start=1):
            line = _decoded(path, raw, number).removeprefix("\ufeff" if number == 1 else "")
            if not line.strip():
                continue
            try:
                row = _DECODER.decode(line)
            except (ValueError, RecursionError) as error:
                raise LitGPTError(f"{path}, line {number}: not valid JSON ({_reason(error)}).") from None
            yield number, row


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    """One sample after the other, so that the line of each is known."""
    with _opened(path) as file:
        text = _decoded(path, file.read(), 1).removeprefix("\ufeff")
    position, line = _skip_space(text, 0), 1
    if text[position : position + 1] != "[":
        raise LitGPTError(f"{path} holds no list of samples; a file with one object a line is to be called .jsonl.")
    line += text.count("\n", 0, position)
    start, position = position, _skip_space(text, position + 1)
    while text[position : position + 1] != "]":
        line += text.count("\n", start, position)
        start = position
        try:
            sample, position = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise LitGPTError(
                f"{path}, line {getattr(error, 'lineno', line)}: not valid JSON ({_reason(error)})."
            ) from None
        yield line, sample
        position = _skip_space(text, position)
        if text[position : position + 1] == ",":
            position = _skip_space(text, position + 1)
        elif text[position : position + 1] != "]":
            bad = text.count("\n", 0, position) + 1
            raise LitGPTError(f"{path}, line {bad}: not valid JSON (a comma or the end of the list is missing).")
    rest = _skip_space(text, position + 1)
    if rest < len(text):
        raise LitGPTError(f"{path}, line {text.count(chr(10), 0, rest) + 1}: something follows the list of samples.")


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; a ValueError where a key stands there twice, of which Python takes the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {quoted(next(key for key in keys if keys.count(key) > 1))} is there twice")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_each_key_once)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return getattr(error, "msg", None) or str(error)


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _csv(path: Path) -> Iterator[tuple[int, Any]]:
    with _opened(path) as file:
        text = _decoded(path, file.read(), 1).removeprefix("\ufeff")
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    began = 1
    try:
        for cells in reader:
            line, began = began, reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = cells
                if "" in header or len(set(header)) < len(header):
                    raise LitGPTError(f"{path}, line {line}: the first line names the columns, each once.")
            elif len(cells) != len(header):
                raise LitGPTError(f"{path}, line {line}: {len(cells)} cells, but there are {len(header)} columns.")
            else:
                yield line, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise LitGPTError(f"{path}, line {began}: not valid CSV ({error}).") from None


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise MissingPackageError(
            f"{path}: Parquet files need pyarrow; install it by: pip install 'litgpt[data]'."
        ) from None
    number = 0
    packed = path.suffix.lower() in COMPRESSIONS
    try:
        with _opened(path) as raw, parquet.ParquetFile(io.BytesIO(raw.read()) if packed else path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {key: _plain_cell(value) for key, value in row.items()}
    except LitGPTError:
        raise
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:150].rstrip(".")
        raise LitGPTError(f"{path}, row {number + 1}: not a whole Parquet file ({reason}).") from None


def _plain_cell(value: Any) -> Any:
    """A cell as JSON would have it: text is often stored as bytes, and an object of a list has a null for each key that
    only others have."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, dict):
        return {key: _plain_cell(item) for key, item in value.items() if item is not None}
    return [_plain_cell(item) for item in value] if isinstance(value, list) else value


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked."""
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as file:
                yield cast(BinaryIO, file)
        elif path.suffix.lower() == ".zst":
            with path.open("rb") as packed, io.BufferedReader(_Zstandard(path, packed)) as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            with path.open("rb") as file:
                yield file
    except LitGPTError:
        raise
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise LitGPTError(f"{path} is no whole {path.suffix} file ({error}).") from None
    except OSError as error:
        raise file_error(error, f"{path} can't be read ({error.strerror or error}).") from None
    except Exception as error:
        if not type(error).__module__.startswith("zstandard"):
            raise
        raise LitGPTError(f"{path} is no whole {path.suffix} file ({error}).") from None


class _Zstandard(io.RawIOBase):
    """The content of a .zst file, of all its frames; an EOFError where the last one is cut, at which the library's own
    reader would stop as if it were whole."""

    def __init__(self, path: Path, packed: IO[bytes]) -> None:
        try:
            import zstandard
        except ImportError:
            raise MissingPackageError(
                f"{path}: .zst files need zstandard; install it by: pip install 'litgpt[data]'."
            ) from None
        self._frames = zstandard.ZstdDecompressor()
        self._packed, self._frame, self._waiting = packed, self._frames.decompressobj(), b""
        self._within = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._waiting:
            piece = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame, self._within = self._frames.decompressobj(), False
            piece = piece or self._packed.read(PIECE)
            if not piece:
                if self._within:
                    raise EOFError("it ends within a frame")
                return 0
            self._waiting, self._within = self._frame.decompress(piece), True
        size = min(len(buffer), len(self._waiting))
        buffer[:size], self._waiting = self._waiting[:size], self._waiting[size:]
        return size


def _decoded(path: Path, raw: bytes, line: int) -> str:
    """The text of what stands in a file from `line` on."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = line + raw[: error.start].count(b"\n")
        raise LitGPTError(f"{path}, line {bad}: not UTF-8 text; save the file as UTF-8.") from None

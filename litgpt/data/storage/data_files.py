"""Rows of data files: JSON, JSON Lines, CSV and Parquet, the first three perhaps compressed (.gz, .zst)."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from litgpt.data.sft.formats import Row, json_type
from litgpt.errors import LitGPTError, MissingFileError, MissingPackageError, file_error, quoted

COMPRESSIONS = (".gz", ".zst")
MAX_CELL = 1 << 30
"""Characters of one CSV cell."""


def format_suffix(path: Path) -> str:
    """The suffix of a file's format, without that of a compression: `.jsonl` of `data.jsonl.gz`."""
    return (Path(path.stem) if path.suffix.lower() in COMPRESSIONS else path).suffix.lower()


def location(path: Path, line: int) -> str:
    """Where a row of `read_rows` is, for a message."""
    return f"{path}, {'row' if format_suffix(path) == '.parquet' else 'line'} {line}"


def read_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows of a data file, each with the line that it starts in (Parquet: its number), counted from 1.

    Raises:
        LitGPTError: No such file, of no known kind, or damaged; says in which line.
    """
    readers = {".json": _json, ".jsonl": _json_lines, ".csv": _csv, ".parquet": _parquet}
    if format_suffix(path) not in readers:
        missing = "" if path.exists() else ", and does not exist"
        error = LitGPTError if path.exists() else MissingFileError
        raise error(f"{path} is none of {', '.join(readers)}{missing}.")
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
        if not isinstance(row.get(key), str):
            raise LitGPTError(f"{location(path, line)}: there is no text under the key {quoted(key)}.")
        yield row[key]


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
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise LitGPTError(f"{path}, line {number}: not valid JSON ({_reason(error)}).") from None
            yield number, row


def _json(path: Path) -> Iterator[tuple[int, Any]]:
    """One sample after the other, so that the line of each is known."""
    with _opened(path) as file:
        text = _decoded(path, file.read(), 1).removeprefix("\ufeff")
    decoder = json.JSONDecoder()
    position, line = _skip_space(text, 0), 1
    if text[position : position + 1] != "[":
        raise LitGPTError(f"{path} holds no list of samples; a file with one object a line is to be called .jsonl.")
    line += text.count("\n", 0, position)
    start, position = position, _skip_space(text, position + 1)
    while text[position : position + 1] != "]":
        line += text.count("\n", start, position)
        start = position
        try:
            sample, position = decoder.raw_decode(text, position)
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
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except LitGPTError:
        raise
    except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:150].rstrip(".")
        raise LitGPTError(f"{path}, row {number + 1}: not a whole Parquet file ({reason}).") from None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked."""
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as file:
                yield cast(BinaryIO, file)
        elif path.suffix.lower() == ".zst":
            with path.open("rb") as packed, io.BufferedReader(_zstandard(path, packed)) as unpacked:
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


def _zstandard(path: Path, packed: IO[bytes]) -> Any:
    try:
        import zstandard
    except ImportError:
        raise MissingPackageError(
            f"{path}: .zst files need zstandard; install it by: pip install 'litgpt[data]'."
        ) from None
    return zstandard.ZstdDecompressor().stream_reader(packed)


def _decoded(path: Path, raw: bytes, line: int) -> str:
    """The text of what stands in a file from `line` on."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = line + raw[: error.start].count(b"\n")
        raise LitGPTError(f"{path}, line {bad}: not UTF-8 text; save the file as UTF-8.") from None

"""Data files of every kind: rows with their places, and one sentence for each that is damaged."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from litgpt.data.storage.data_files import read_rows
from litgpt.errors import LitGPTError

ROWS = [{"prompt": f"What is\n{number}?", "completion": str(number)} for number in range(4)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def test_a_csv_file_has_a_row_for_each_record(tmp_path: Path) -> None:
    text = "\ufeffprompt,completion\n" + "".join(f'"{row["prompt"]}",{row["completion"]}\n' for row in ROWS)
    (tmp_path / "a.csv").write_text(text)
    assert list(read_rows(tmp_path / "a.csv")) == [(2 + 2 * number, row) for number, row in enumerate(ROWS)]


def test_parquet_rows_are_counted(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert list(read_rows(tmp_path / "a.parquet")) == list(enumerate(ROWS, start=1))


def test_compressed_files_are_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode()))
    assert [row for _, row in read_rows(tmp_path / "a.jsonl.gz")] == ROWS
    zstandard = pytest.importorskip("zstandard")
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(LINES.encode()))
    assert [row for _, row in read_rows(tmp_path / "a.jsonl.zst")] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.csv", b"a,a\n1,2\n", "line 1: the first line names the columns"),
        ("a.csv", b'a,b\n"1\n2",3\n4\n', "line 4: 1 cells, but there are 2 columns"),
        ("a.csv", b'a,b\n"1"x,3\n', "line 2: not valid CSV"),
        ("a.csv", b"a,b\n1,\xff\n", "line 2: not UTF-8"),
        ("a.parquet", b"PAR1 oops", "row 1: not a whole Parquet file|need pyarrow"),
        ("a.jsonl.gz", b"oops", "no whole .gz file"),
        ("a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-9], "no whole .gz file"),
        ("a.jsonl.zst", b"oops", "no whole .zst file|need zstandard"),
        ("a.jsonl", b"[" * 100_000, "line 1: not valid JSON"),
        ("a.json", b'[{"a": ' + b"[" * 100_000 + b"]", "line 1: not valid JSON"),
        ("a.json", b"[{}]\n\noops", "line 3: something follows the list"),
        ("a.json", b"[1]", "line 1: a sample must be an object with keys, not a number"),
        ("a.jsonl", b"9" * 5000, "line 1: not valid JSON"),
        ("a.txt", b"", "none of .json, .jsonl, .csv, .parquet"),
        ("a.csv", None, "There is no data file"),
    ],
)  # fmt: skip
def test_damage_is_told_in_one_sentence(tmp_path: Path, name: str, content: bytes | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LitGPTError, match=complaint) as caught:
        list(read_rows(tmp_path / name))
    assert "\n" not in str(caught.value)

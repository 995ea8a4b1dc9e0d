"""The user's own JSON files: every layout that works, and one sentence for each that doesn't."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from litgpt.data import JSON
from litgpt.data.storage.data_files import read_rows
from litgpt.errors import LitGPTError
from litgpt.tokenizer import Tokenizer

ROWS = [{"instruction": f"Say {number}.", "input": "", "output": str(number)} for number in range(20)]


def write(path: Path, rows: list[dict[str, str]], gap: str = "") -> Path:
    lines = "\n".join(json.dumps(row) + gap for row in rows)
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(rows, indent=1))
    return path


def prepared(module: JSON, tokenizer: Tokenizer) -> tuple[JSON, list[str]]:
    said: list[str] = []
    module.log = said.append
    module.connect(tokenizer, batch_size=2)
    module.prepare_data()
    module.setup()
    return module, said


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_a_file_is_split(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    module, said = prepared(JSON(write(tmp_path / name, ROWS)), tokenizer)
    assert (len(module.train_dataset), len(module.val_dataset)) == (19, 1)
    assert module.test_dataset is module.val_dataset
    assert any("5% of" in sentence for sentence in said)


def test_blank_lines_do_no_harm(tmp_path: Path) -> None:
    found = read_rows(write(tmp_path / "data.jsonl", ROWS, gap="\n\n"))
    assert [row for _, row in found] == ROWS


@pytest.mark.parametrize("suffixes", [("json", "json"), ("jsonl", "json")])
def test_a_folder_has_its_own_validation_file(tmp_path: Path, tokenizer: Tokenizer, suffixes: tuple[str, str]) -> None:
    write(tmp_path / f"train.{suffixes[0]}", ROWS[:15])
    write(tmp_path / f"val.{suffixes[1]}", ROWS[15:])
    module, _ = prepared(JSON(tmp_path), tokenizer)
    assert module.train_dataset.data == ROWS[:15] and module.val_dataset.data == ROWS[15:]


def test_loaders_give_padded_batches(tmp_path: Path, tokenizer: Tokenizer) -> None:
    module, _ = prepared(JSON(write(tmp_path / "data.json", ROWS), val_split_fraction=0.5, num_workers=0), tokenizer)
    first, again = ([batch["input_ids"].tolist() for batch in module.train_dataloader()] for _ in range(2))
    assert len(first) == 5 and first == again
    assert len(list(module.val_dataloader())) == 5


def test_validation_samples_that_are_all_too_long_are_no_reason_to_stop(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path / "train.json", ROWS)
    write(tmp_path / "val.json", [{"instruction": "Say " + "very " * 50, "output": "no"}])
    module = JSON(tmp_path, prompt_style="default")
    said: list[str] = []
    module.log = said.append
    module.connect(tokenizer, max_seq_length=40)
    module.setup()
    assert len(module.train_dataset) == len(ROWS) and module.val_dataset is None
    assert any("No validation" in sentence for sentence in said)


GOOD = '{"instruction": "a", "output": "b"}'


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("data.json", b"[" + f"{GOOD},\n\n{GOOD},\n".encode() + b'{"instruction": "a"}]', r"line 4: .*no key 'output"),
        ("data.jsonl", f'{GOOD}\n\n{{"output": "b"}}\n'.encode(), r"line 3: the sample has no key 'instruction'"),
        ("data.jsonl", f"{GOOD}\n{{oops}}\n".encode(), r"line 2: not valid JSON"),
        ("data.json", f"[\n{GOOD}\n{GOOD}]".encode(), r"line 3: not valid JSON"),
        ("data.json", f"[\n{GOOD},\n{GOOD}".encode(), r"not valid JSON"),
        ("data.json", f"[\n{GOOD},\n{{'a': 1}}]".encode(), r"line 3: not valid JSON"),
        ("data.json", GOOD.encode(), r"no list of samples.*\.jsonl"),
        ("data.jsonl", b'[1, 2]\n', r"line 1: a sample must be an object"),
        ("data.jsonl", b'{"instruction": "a", "output": 3}\n', r"line 1: 'output' is a number, not text"),
        ("data.jsonl", f"{GOOD}\n".encode() + b"\xff\xfe\n", r"line 2: not UTF-8"),
        ("data.jsonl", b"\n\n", r"holds no samples"),
        ("data.json", b"[]", r"holds no samples"),
        ("data.json", b"", r"no list of samples"),
        ("data.csv", b"", r"none of \.json, \.jsonl; --data Conversations"),
        ("nothing.json", None, r"There is no data file"),
    ],
)  # fmt: skip
def test_bad_files_are_told_in_one_sentence(
    tmp_path: Path, tokenizer: Tokenizer, name: str, content: bytes | None, complaint: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LitGPTError, match=complaint) as caught:
        prepared(JSON(tmp_path / name), tokenizer)
    assert "\n" not in str(caught.value)


def test_a_folder_without_its_files_and_a_needless_fraction(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write(tmp_path / "train.json", ROWS)
    with pytest.raises(LitGPTError, match=r"no val\.json"):
        prepared(JSON(tmp_path), tokenizer)
    with pytest.raises(LitGPTError, match="val_split_fraction must not be given"):
        JSON(tmp_path, val_split_fraction=0.1)


def test_an_unknown_style_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(LitGPTError, match="alpaca"):
        JSON(tmp_path / "data.json", prompt_style="alpacca")

"""`val_split_fraction 0` trains on everything and validates on nothing, wherever a share can be kept for validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from litgpt import data
from litgpt.errors import LitGPTError
from litgpt.tokenizer import Tokenizer

ROWS = [{"instruction": f"Say {n}.", "input": "", "output": f"{n}"} for n in range(40)]


def alpaca(folder: Path, **more: Any) -> data.DataModule:
    (folder / "alpaca_data_cleaned_archive.json").write_text(json.dumps(ROWS))
    return data.Alpaca(download_dir=folder, **more)


def json_file(folder: Path, **more: Any) -> data.DataModule:
    (folder / "a.json").write_text(json.dumps(ROWS))
    return data.JSON(folder / "a.json", **more)


def conversations(folder: Path, **more: Any) -> data.DataModule:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return data.Conversations(path=folder / "a.jsonl", **more)


def texts_of_conversations(folder: Path, **more: Any) -> data.DataModule:
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": row["instruction"] * 9}) + "\n" for row in ROWS))
    module = data.Conversations(path=folder / "a.jsonl", **more)
    module.pretraining = True
    return module


def one_text(folder: Path, **more: Any) -> data.DataModule:
    (folder / "a.txt").write_text("To be or not to be. " * 100)
    return data.TextFiles(folder / "a.txt", **more)


def several_texts(folder: Path, **more: Any) -> data.DataModule:
    for name in "abc":
        (folder / f"{name}.txt").write_text("To be or not to be. " * 100)
    return data.TextFiles(folder, **more)


SOURCES = [alpaca, json_file, conversations, texts_of_conversations, one_text, several_texts]


def sizes(module: data.DataModule, tokenizer: Tokenizer) -> tuple[int, int]:
    module.log = lambda sentence: None
    module.connect(tokenizer, max_seq_length=8 if isinstance(module, data.TextFiles) or module.pretraining else None)
    module.prepare_data()
    module.setup()
    return len(module.train_dataset), 0 if module.val_dataset is None else len(module.val_dataset)


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_is_kept_for_validation_where_the_share_is_zero(source, tokenizer, tmp_path):
    usual_train, usual_val = sizes(source(tmp_path), tokenizer)
    assert usual_val > 0, "the default keeps some"
    train, val = sizes(source(tmp_path, val_split_fraction=0), tokenizer)
    assert val == 0 and train > usual_train


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
@pytest.mark.parametrize("source", SOURCES)
def test_what_is_no_share_is_refused(source, fraction, tokenizer, tmp_path):
    with pytest.raises(LitGPTError, match="val_split_fraction must lie between 0 and 1"):
        sizes(source(tmp_path, val_split_fraction=fraction), tokenizer)

"""What a resumed run knows its data by: the same for the same content, another for any other of the same length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from litgpt import data
from litgpt.data.storage import fingerprint
from litgpt.data.storage.blocks import TokenBlocks
from litgpt.data.storage.combined_datasets import ConcatDataset, MixedDataset
from litgpt.data.storage.fingerprint import array_hash, data_fingerprint
from litgpt.tokenizer import Tokenizer
from litgpt.training.batching.documents import Documents


def lines(folder: Path, word: str) -> Path:
    rows = [{"prompt": f"Say {word}{number}.", "completion": word} for number in range(30)]
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "a.jsonl"


def conversations(folder: Path, word: str) -> data.DataModule:
    return data.Conversations(path=lines(folder, word))


def pretraining(folder: Path, word: str) -> data.DataModule:
    module = data.Conversations(path=lines(folder, word))
    module.pretraining = True
    return module


def texts(folder: Path, word: str) -> data.DataModule:
    (folder / "a.txt").write_text(f"Say {word}. " * 99)
    return data.TextFiles(folder / "a.txt")


def token_files(folder: Path, word: str) -> data.DataModule:
    np.frombuffer(word.encode() * 500, dtype="u1").astype("<u2").tofile(folder / "train.bin")
    return data.TokenFiles(folder)


def mixture(folder: Path, word: str) -> data.DataModule:
    return data.Mixture([{"path": lines(folder, word)}, {"path": lines(folder, word), "weight": 3}])


@pytest.mark.parametrize("source", [conversations, pretraining, texts, token_files, mixture])
def test_another_file_of_the_same_length_is_noticed(source: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    def found(word: str, limit: int = 64) -> tuple[int, str | None]:
        module = source(tmp_path, word)
        module.log = lambda sentence: None
        module.connect(tokenizer, max_seq_length=limit)
        module.prepare_data()
        module.setup()
        return len(module.train_dataset), data_fingerprint(module.train_dataset)

    size, one = found("one")
    assert one is not None and found("one") == (size, one)
    other_size, other = found("six")
    assert other_size == size and other != one


@pytest.mark.parametrize("size", [100, 5000])
def test_any_change_of_a_stream_is_noticed_and_cuts_of_a_very_large_one(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "WHOLE", 1 << 11)
    monkeypatch.setattr(fingerprint, "PIECES", 1 << 7)
    stream = np.arange(size, dtype="<u2")
    seen = sum(array_hash(stream) != array_hash(np.where(np.arange(size) == at, 7, stream)) for at in range(8, size))
    assert seen == size - 8 if size == 100 else seen > 1000
    assert array_hash(stream) != array_hash(stream[:-1]) and array_hash(stream) != array_hash(stream + 1)


def test_data_sets_of_data_sets_have_that_of_their_parts() -> None:
    one, other = (TokenBlocks(np.arange(start, start + 99), 8, 1) for start in (0, 1))
    wholes = [ConcatDataset([one]), ConcatDataset([other]), MixedDataset([one, other], [1, 2], None, 1)]
    wholes += [MixedDataset([one, other], [2, 1], None, 1), Documents(one, 0, None), Documents(other, 0, None)]
    found = [data_fingerprint(dataset) for dataset in wholes]
    assert len(set(found)) == len(found)
    wholes[0].epoch(3)
    assert data_fingerprint(wholes[0]) == found[0]


def test_samples_of_ones_own_are_read_unless_they_change() -> None:
    samples = [{"input_ids": torch.arange(number), "labels": torch.arange(number)} for number in range(2, 300)]
    assert data_fingerprint(samples) == data_fingerprint(list(samples)) != data_fingerprint(samples[::-1])

    class Random(list):
        def __getitem__(self, index: Any) -> Any:
            return {"input_ids": torch.rand(3), "labels": torch.rand(3)}

    assert data_fingerprint(Random(samples)) is None

"""nanoGPT's token files, read with suspicion."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from litgpt.data import TokenFiles
from litgpt.errors import LitGPTError


def prepare(folder: Path, text: str = "hello world, " * 20) -> Path:
    """As nanoGPT's `prepare.py` for characters does."""
    symbols = sorted(set(text))
    stoi = {symbol: index for index, symbol in enumerate(symbols)}
    ids = np.array([stoi[symbol] for symbol in text], dtype=np.uint16)
    ids[:234].tofile(folder / "train.bin")
    ids[234:].tofile(folder / "val.bin")
    meta = {"vocab_size": len(symbols), "itos": dict(enumerate(symbols)), "stoi": stoi}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder


def set_up(folder: Path, **arguments: object) -> TokenFiles:
    module = TokenFiles(folder, **arguments)
    module.log = lambda sentence: None
    module.connect(max_seq_length=8)
    module.prepare_data()
    module.setup()
    return module


def test_reads_what_nanogpt_writes(tmp_path: Path) -> None:
    module = set_up(prepare(tmp_path))
    assert len(module.train_dataset.tokens) == 234 and len(module.val_dataset.tokens) == 26
    assert module.vocab_size == 9
    assert module.tokenizer.decode(module.val_dataset[0]["input_ids"]) == "hello wor"


def test_without_meta_there_is_no_tokenizer(tmp_path: Path) -> None:
    (prepare(tmp_path) / "meta.pkl").unlink()
    module = set_up(tmp_path)
    assert module.tokenizer is None and module.vocab_size is None


def test_without_val_bin_there_is_nothing_to_validate_on(tmp_path: Path) -> None:
    (prepare(tmp_path) / "val.bin").unlink()
    assert set_up(tmp_path).val_dataset is None


def test_wider_ids(tmp_path: Path) -> None:
    np.array([70000, 1] * 20, dtype="<u4").tofile(tmp_path / "train.bin")
    assert 70000 in set_up(tmp_path, dtype="uint32").train_dataset[0]["input_ids"].tolist()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda folder: (folder / "meta.pkl").write_bytes(pickle.dumps({"itos": Evil()})), "more than plain data"),
        (lambda folder: (folder / "meta.pkl").write_bytes(b"\x80junk"), "damaged"),
        (lambda folder: (folder / "meta.pkl").write_bytes(pickle.dumps([1])), "no dictionary"),
        (lambda folder: (folder / "train.bin").unlink(), "has no train.bin"),
        (lambda folder: (folder / "train.bin").write_bytes(b"abc"), "3 bytes"),
        (lambda folder: (folder / "train.bin").write_bytes(b""), "0 bytes"),
        (lambda folder: (folder / "train.bin").write_bytes(b"abcdefgh"), "no block of"),
    ],
)
def test_bad_folders_are_told_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: object, complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    change(prepare(tmp_path))  # type: ignore[operator]
    with pytest.raises(LitGPTError, match=complaint):
        set_up(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_a_missing_folder_and_ids_beyond_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(LitGPTError, match="There is no folder"):
        set_up(tmp_path / "nowhere")
    module = set_up(prepare(tmp_path))
    module.check_vocabulary(9)
    with pytest.raises(LitGPTError, match="token id 8"):
        module.check_vocabulary(8)

"""A pipe or a device in the place of a data file is named; nobody waits for what it may never give."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from litgpt import Tokenizer
from litgpt.data import JSON, Conversations, DataModule, TextFiles, TokenFiles
from litgpt.errors import LitGPTError
from tests.tiny_tokenizer import write_tokenizer

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "parquet", "jsonl.gz", "txt", "bin", "conversations"])
def test_a_pipe_is_no_data_file(kind: str, tmp_path: Path) -> None:
    name = {"bin": "train.bin", "conversations": "x.jsonl"}.get(kind, f"x.{kind}")
    os.mkfifo(tmp_path / name)
    modules: dict[str, DataModule] = {
        "txt": TextFiles(tmp_path / name),
        "bin": TokenFiles(tmp_path),
        "json": JSON(tmp_path / name),
        "jsonl": JSON(tmp_path / name),
    }
    module = modules.get(kind) or Conversations(path=tmp_path / name)
    module.connect(Tokenizer(write_tokenizer(tmp_path / "tokenizer")), 2, 16)
    with pytest.raises(LitGPTError, match=rf"{name} is a pipe or a device, not a file"):
        module.prepare_data()
        module.setup()

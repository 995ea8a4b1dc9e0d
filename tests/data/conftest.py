"""A tokenizer for the data tests, and a cache of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from litgpt.tokenizer import Tokenizer
from tests.tiny_tokenizer import write_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tests keep their token files to themselves."""
    monkeypatch.setenv("LITGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"

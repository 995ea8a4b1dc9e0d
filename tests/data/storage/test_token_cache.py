"""Token files: their names, their tokens, and processes that write one at the same time."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from litgpt.data import Deita
from litgpt.data.storage import token_cache
from litgpt.data.storage.token_cache import MAGIC, TokenFile, code_identity
from litgpt.errors import LitGPTError
from litgpt.prompts import PromptStyle
from litgpt.tokenizer import Tokenizer

TEXT = "".join(f"Line {number}: the quick brown fox.\n" for number in range(40))


@pytest.mark.parametrize(
    ("thing", "names"),
    [
        (
            Deita(),
            "litgpt.data.deita.Deita litgpt.data.turns.TurnsModule litgpt.data.instructions.SFTModule "
            "litgpt.data.base.DataModule abc.ABC",
        ),
        (PromptStyle.from_name("alpaca"), "litgpt.prompts.Alpaca litgpt.prompt_style.PromptStyle"),
    ],
)
def test_hashes_keep_the_names_of_classes_that_moved(thing: Any, names: str) -> None:
    """Else every cache written before a move would be written anew."""
    assert code_identity(thing).decode().split("\n")[1:] == names.split()


def test_a_damaged_cache_file_is_told(tmp_path: Path) -> None:
    for content in (
        b"",
        b"abc",
        b"x" * 50,
        b"x" * 20 + MAGIC[:-1],
        b"x" * 99 + MAGIC,
        b"{}" + (2).to_bytes(8, "little") + MAGIC,
    ):
        (tmp_path / "x.tokens").write_bytes(content)
        with (tmp_path / "x.tokens").open("rb") as file, pytest.raises(LitGPTError, match="not a whole one"):
            TokenFile(file, "x.tokens")


def tokens_in_a_process(path: Path, folder: Path, cache: Path) -> list[int]:
    tokenizer = Tokenizer(folder)
    return token_cache.cached_documents(b"1", [path], lambda file: [file.read_text()], tokenizer, cache).tolist()


def test_two_processes_at_once_make_one_file(tmp_path: Path, tokenizer: Tokenizer, cache: Path) -> None:
    path = tmp_path / "only.txt"
    path.write_text(TEXT * 200)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        calls = [pool.submit(tokens_in_a_process, path, tokenizer.checkpoint_dir, cache) for _ in range(2)]
        first, second = (call.result() for call in calls)
    assert first == second and len(first) == len(TEXT) * 200 + 1
    assert len(list((cache / "tokens").iterdir())) == 1


@pytest.mark.parametrize("text", [TEXT, "no line end at all " * 20, "\n\n  \n" * 50 + TEXT, ""])
def test_pieces_have_the_tokens_of_the_whole(
    text: str, stories260k: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_cache, "PIECE", 100)
    for used in (tokenizer, Tokenizer(stories260k)):
        pieces = token_cache.cut_text(text, used)
        assert "".join(pieces) == text
        assert [id_ for ids in used.encode_batch(pieces, bos=False) for id_ in ids] == used.encode_ids(text, bos=False)
    assert text != TEXT or len(token_cache.cut_text(text, tokenizer)) > 5

"""StarCoder's and SlimPajama's files become the chunks that `TinyLlama` reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from litgpt import Tokenizer
from litgpt.data import LitData, prepare_slimpajama, prepare_starcoder
from litgpt.data.storage.litdata_chunks import FileTokens
from litgpt.errors import LitGPTError
from tests.tiny_tokenizer import write_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def write_starcoder(file: Path, texts: list[str]) -> Path:
    """A file as StarCoder has them."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(arrow.table({"content": texts, "id": list(range(len(texts)))}), file)
    return file


def texts_of(documents: FileTokens, file: Path, tokenizer: Path) -> list[str]:
    """What became of a file's documents, with their special tokens."""
    reader = Tokenizer(tokenizer)
    return [reader.decode(ids, skip_special_tokens=False) for ids in documents(str(file))]


def test_every_document_of_starcoder_ends_with_the_end_token(tmp_path: Path, tokenizer: Path) -> None:
    file = write_starcoder(tmp_path / "python" / "a.parquet", ["def f(): pass", "x = 1"])
    assert texts_of(FileTokens(tokenizer, "content"), file, tokenizer) == [
        "def f(): pass</s>",
        "x = 1</s>",
    ]


def test_slimpajamas_code_is_left_out(tmp_path: Path, tokenizer: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    parts = {"Once.": "RedPajamaC4", "x = 1": "RedPajamaGithub", "Twice.": "RedPajamaBook"}
    rows = [json.dumps({"text": text, "meta": {"redpajama_set_name": part}}) for text, part in parts.items()]
    file = tmp_path / "chunk.jsonl.zst"
    file.write_bytes(zstandard.compress("\n".join(rows).encode()))
    documents = FileTokens(tokenizer, "text", prepare_slimpajama.is_code)
    assert texts_of(documents, file, tokenizer) == ["Once.</s>", "Twice.</s>"]


def test_mistakes_are_told(tmp_path: Path, tokenizer: Path) -> None:
    pytest.importorskip("litdata")
    with pytest.raises(LitGPTError, match=r"There is no file \*\.parquet"):
        prepare_starcoder.prepare(tmp_path, tmp_path / "out", tokenizer)
    write_starcoder(tmp_path / "a.parquet", ["x"])
    (tmp_path / "index.json").touch()
    with pytest.raises(FileExistsError, match="holds chunks already"):
        prepare_starcoder.prepare(tmp_path, tmp_path, tokenizer)
    with pytest.raises(FileNotFoundError):
        prepare_starcoder.prepare(tmp_path, tmp_path / "out", tmp_path / "no-tokenizer")


@pytest.mark.slow
def test_a_row_without_a_text_is_one_sentence(tmp_path: Path, tokenizer: Path) -> None:
    pytest.importorskip("litdata")
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    for name, column in {"other-key": {"text": ["x"]}, "no-text": {"content": ["x", None]}}.items():
        (tmp_path / name).mkdir()
        parquet.write_table(arrow.table(column), tmp_path / name / "a.parquet")
        with pytest.raises(LitGPTError, match=r"a\.parquet, row [12]: there is no text under the key 'content'"):
            prepare_starcoder.prepare(tmp_path / name, tmp_path / f"{name}-out", tokenizer)


@pytest.mark.slow
def test_the_chunks_are_read_again(tmp_path: Path, tokenizer: Path) -> None:
    pytest.importorskip("litdata")
    texts = [f"def f{number}(): pass" for number in range(20)]
    write_starcoder(tmp_path / "in" / "a.parquet", texts)
    prepare_starcoder.prepare(tmp_path / "in", tmp_path / "out", tokenizer, chunk_size=10_000)
    data = LitData(tmp_path / "out")
    data.connect(Tokenizer(tokenizer), max_seq_length=31)
    data.setup()
    read = [
        Tokenizer(tokenizer).decode(data.train_dataset[at]["input_ids"], skip_special_tokens=False)
        for at in range(len(data.train_dataset))
    ]
    stream = "".join(texts).replace("pass", "pass$")  # `$`: `</s>`, one token
    assert [text.replace("</s>", "$") for text in read] == [
        stream[start : start + 32] for start in range(0, len(stream) - 31, 32)
    ]

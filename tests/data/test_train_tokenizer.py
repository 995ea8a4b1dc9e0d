"""`litgpt tokenizer train`: what it makes writes any text, and other tools open it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from litgpt.__main__ import main
from litgpt.data.train_tokenizer import train_tokenizer
from litgpt.errors import LitGPTError
from litgpt.tokenizer import Tokenizer
from tests.paths import ROOT

TEXTS = sorted((ROOT / "litgpt" / "assets" / "text").rglob("*.txt"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tokenizer")
    text = TEXTS[0].read_text(encoding="utf-8")[:40_000]
    (place / "texts" / "below").mkdir(parents=True)
    (place / "texts" / "one.txt").write_text(text[:20_000], encoding="utf-8")
    (place / "texts" / "below" / "rows.jsonl").write_text(json.dumps({"text": text[20_000:]}), encoding="utf-8")
    (place / "texts" / "picture.png").write_bytes(b"\xff\xfe")
    train_tokenizer(place / "texts", place / "bpe", vocab_size=600, special_tokens=("<|end|>", "<|user|>"))
    return place


def test_words_of_the_texts_become_tokens(folder: Path) -> None:
    tokenizer = Tokenizer(folder / "bpe")
    assert len(tokenizer) == 600 and tokenizer.eos_id == tokenizer.bos_id == 0
    assert tokenizer.encode("<|user|>").tolist() == [1]
    words = {tokenizer.decode([token]) for token in range(len(tokenizer))}
    assert {" the", " and", " of"} <= words


@given(st.text(max_size=40))
def test_any_text_comes_back(folder: Path, text: str) -> None:
    tokenizer = Tokenizer(folder / "bpe")
    text = "".join(character for character in text if not "\ud800" <= character <= "\udfff")
    assert tokenizer.decode(tokenizer.encode(text, bos=False), skip_special_tokens=False) == text


def test_transformers_cuts_texts_the_same_way(folder: Path) -> None:
    text = TEXTS[-1].read_text(encoding="utf-8")[:3000] + " ünd 日本語 \t 1234<|end|>"
    theirs = transformers.AutoTokenizer.from_pretrained(folder / "bpe")
    assert theirs(text, add_special_tokens=False)["input_ids"] == Tokenizer(folder / "bpe").encode(text).tolist()
    assert theirs.eos_token == "<|end|>"


def test_characters_are_those_of_the_texts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello wörld\n", encoding="utf-8")
    train_tokenizer(tmp_path / "a.txt", tmp_path / "made", kind="characters")
    tokenizer = Tokenizer(tmp_path / "made")
    assert len(tokenizer) == len(set("hello wörld\n"))
    assert tokenizer.decode(tokenizer.encode("drol\n")) == "drol\n"


def test_reading_stops_where_it_is_told_to(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab" * 100 + "xyz" * 100, encoding="utf-8")
    (tmp_path / "b.txt").write_bytes(b"\xff never read")
    found = train_tokenizer(tmp_path, tmp_path / "made", kind="characters", max_characters=200)
    assert found == {"tokens": 2, "bytes_per_token": 1.0}


def test_a_model_is_pretrained_with_it(folder: Path, tmp_path: Path) -> None:
    shape = ["--model_config.n_layer", "1", "--model_config.n_embd", "16", "--model_config.n_head", "2"]
    data = ["--data", "TextFiles", "--data.train_data_path", str(folder / "texts" / "one.txt")]
    limits = ["--train.max_steps", "1", "--train.max_seq_length", "32", "--train.global_batch_size", "2"]
    place = ["--tokenizer_dir", str(folder / "bpe"), "--out_dir", str(tmp_path / "out"), "--logger_name", "csv"]
    assert main(["pretrain", "pythia-14m", *shape, *data, *limits, *place, "--eval.max_iters", "1"]) == 0
    assert len(Tokenizer(tmp_path / "out" / "final")) == 600


def test_what_can_not_be_made_is_refused_and_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.txt").touch()
    cases = {
        "holds a tokenizer already": dict(data_path=folder / "texts", out_dir=folder / "bpe"),
        "no file or folder": dict(data_path=tmp_path / "nowhere"),
        "has no texts: files of the kinds .txt": dict(data_path=tmp_path / "empty"),
        "no text to make": dict(data_path=tmp_path / "none.txt"),
        "text that is not empty": dict(data_path=tmp_path / "none.txt", kind="characters"),
        "257 at least": dict(data_path=folder / "texts", vocab_size=200),
        "under the key 'story'": dict(data_path=folder / "texts", text_key="story"),
        "give at least 1": dict(data_path=folder / "texts", max_characters=0),
    }
    for complaint, arguments in cases.items():
        with pytest.raises(LitGPTError, match=complaint):
            train_tokenizer(**{"out_dir": tmp_path / "made", **arguments})
        assert not (tmp_path / "made").exists()

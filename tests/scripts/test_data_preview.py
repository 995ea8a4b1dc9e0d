"""`litgpt data preview`: what it shows, plain and in colour, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from litgpt.__main__ import main
from litgpt.data.sft.preview import GREEN, histogram
from tests.paths import ROOT
from tests.tiny_tokenizer import write_tokenizer

ROWS = [{"prompt": f"Say {word}.", "completion": word} for word in ("one", "two", "twenty-three") * 5]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LITGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_tokenizer(tmp_path / "tokenizer")
    for name in ("train", "val"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return tmp_path


def preview(*arguments: str) -> int:
    return main(["data", "preview", "tokenizer", "--data", "Conversations", "--data.path", ".", *arguments])


def test_samples_show_what_is_learned_and_counts_what_there_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preview("--samples", "2", "--max_seq_length", "32") == 0
    out = capsys.readouterr().out
    assert "── training sample 0: 31 tokens, 4 of them targets\n<s>[user]Say one.\n[assistant]⟦one</s>⟧\n" in out
    assert out.count("── training sample") == 2 and "\033" not in out
    assert "5 training samples are left out: no room for an answer" in out
    assert "10 training samples" in out and "of them targets" in out
    assert "✂" in out and "█" in out and "10 validation samples" in out


@pytest.mark.parametrize(("color", "expected"), [("always", True), ("never", False), ("auto", False)])
def test_colour_is_for_screens(folder: Path, color: str, expected: bool, capsys: pytest.CaptureFixture[str]) -> None:
    assert preview("--color", color) == 0
    out = capsys.readouterr().out
    assert (GREEN in out) is expected and ("⟦" in out) is not expected


def test_what_would_command_the_screen_is_shown_instead(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "train.jsonl").write_text(json.dumps({"text": "a\033[2Jb"}) + "\n")
    assets = ROOT / "litgpt" / "assets" / "austen-2m"
    assert main(["data", "preview", str(assets), "--data", "Conversations", "--data.path", "train.jsonl",
                 "--data.val_path", "train.jsonl"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    assert "a␛[2Jb" in out and "\033" not in out


def test_text_is_shown_in_the_blocks_that_are_pretrained_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "tales").mkdir()
    (folder / "tales" / "a.txt").write_text("It was a dark and stormy night. " * 20)
    arguments = ["tokenizer", "--data", "TextFiles", "--data.train_data_path", "tales/a.txt", "--max_seq_length", "16"]
    assert main(["data", "preview", *arguments, "--pretraining", "true", "--samples", "1"]) == 0
    out = capsys.readouterr().out
    assert "17 tokens, 16 of them targets" in out and "✂" not in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--samples", "-1"], "samples must be at least 0"),
        (["--max_seq_length", "0"], "max_seq_length must be at least 1"),
        (["--max_seq_length", "8"], "No prompt leaves room for an answer in 8 tokens"),
        (["--data.path", "nowhere"], "no data file or folder nowhere"),
    ],
)
def test_what_cannot_be_shown_is_told(
    folder: Path, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert preview(*arguments) == 1
    assert complaint in capsys.readouterr().err


def test_the_command_has_two_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 2
    assert "data preview" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        main(["data", "preview", "--help"])
    assert "usage: litgpt data preview" in capsys.readouterr().out


def test_a_histogram_has_every_sample_once() -> None:
    rows = list(histogram([1, 1, 5, 100], limit=50))
    assert sum(int(row.removesuffix(" ✂").split()[-1]) for row in rows) == 4
    assert [row.endswith("✂") for row in rows].count(True) == 1
    assert list(histogram([7], None)) == [f"  7 – 7  {'█' * 40}  1"]


def test_what_is_cut_and_what_is_unusually_long_have_lines_of_their_own() -> None:
    lengths = [*range(10, 30), 200]
    rows = [row.split() for row in histogram(lengths, limit=24)]
    assert [row for row in rows if "✂" in row] == [["25", "–", "200", "█" * 40, "6", "✂"]]
    assert len(list(histogram(lengths, None))) <= 13
    assert list(histogram(lengths, None))[-1].split()[:3] == ["59", "–", "200"]
    by_limit = list(histogram(lengths, 100))
    assert [row.split()[:3] for row in by_limit[-2:]] == [["59", "–", "100"], ["101", "–", "200"]]

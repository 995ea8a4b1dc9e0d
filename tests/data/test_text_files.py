"""Text files to pretrain on: what is a document, what validates, and the cache of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from litgpt.data import TextFiles
from litgpt.errors import LitGPTError
from litgpt.tokenizer import Tokenizer

TEXT = "".join(f"Line {number}: the quick brown fox.\n" for number in range(40))


def set_up(module: TextFiles, tokenizer: Tokenizer | None, length: int = 8) -> tuple[TextFiles, list[str]]:
    said: list[str] = []
    module.log = said.append
    module.connect(tokenizer, max_seq_length=length)
    module.prepare_data()
    module.setup()
    return module, said


def write(folder: Path, **texts: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_the_first_of_several_files_validates(tmp_path: Path, tokenizer: Tokenizer) -> None:
    module, said = set_up(TextFiles(write(tmp_path / "texts", b="banana", a="apple", c="cherry")), tokenizer)
    assert module.val_dataset.tokens.tolist() == tokenizer.encode("apple", bos=True).tolist()
    expected = tokenizer.encode("banana", bos=True).tolist() + tokenizer.encode("cherry", bos=True).tolist()
    assert module.train_dataset.tokens.tolist() == expected
    assert any("a.txt is kept for validation" in sentence for sentence in said)


def test_the_end_of_a_single_file_validates(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "texts", only=TEXT) / "only.txt"
    module, said = set_up(TextFiles(path), tokenizer)
    ids = tokenizer.encode(TEXT, bos=True).tolist()
    assert module.train_dataset.tokens.tolist() + module.val_dataset.tokens.tolist() == ids
    assert len(module.val_dataset.tokens) == len(ids) - int(len(ids) * 0.9)
    assert any("last 10.0%" in sentence for sentence in said)


def test_validation_text_of_its_own(tmp_path: Path, tokenizer: Tokenizer) -> None:
    train, val = write(tmp_path / "train", a="apple pie", b="bread"), write(tmp_path / "val", z="zucchini")
    module, _ = set_up(TextFiles(train, val_data_path=val), tokenizer)
    assert module.val_dataset.tokens.tolist() == tokenizer.encode("zucchini", bos=True).tolist()
    assert len(module.train_dataset.tokens) == len("apple pie" + "bread") + 2


def test_characters_make_a_tokenizer_of_the_text(tmp_path: Path) -> None:
    path = write(tmp_path / "texts", only=TEXT) / "only.txt"
    module, _ = set_up(TextFiles(path, characters=True, val_split_fraction=0.25), None)
    assert module.vocab_size == len(set(TEXT))
    assert len(module.train_dataset.tokens) == int(len(TEXT) * 0.75)
    assert module.train_dataset.tokens[:3].tolist() == [sorted(set(TEXT)).index(symbol) for symbol in TEXT[:3]]
    assert module.tokenizer.decode(module.val_dataset.tokens.tolist()) == TEXT[int(len(TEXT) * 0.75) :]


def test_the_second_run_reads_the_cache(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "texts", only=TEXT) / "only.txt"
    first, _ = set_up(TextFiles(path), tokenizer)
    monkeypatch.setattr(Tokenizer, "encode_batch", lambda *arguments, **keywords: pytest.fail("tokenized again"))
    second, _ = set_up(TextFiles(path), tokenizer)
    assert second.train_dataset.tokens.tolist() == first.train_dataset.tokens.tolist()


def test_a_changed_text_is_tokenized_anew(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "texts", only=TEXT) / "only.txt"
    set_up(TextFiles(path), tokenizer)
    path.write_text(TEXT.replace("fox", "cat"))
    changed, _ = set_up(TextFiles(path), tokenizer)
    assert "cat" in tokenizer.decode(changed.train_dataset.tokens.tolist())


@pytest.mark.parametrize(
    ("texts", "arguments", "complaint"),
    [
        ({}, {}, r"no \*\.txt files"),
        ({"a": "x"}, {}, "no block of"),
        ({"a": TEXT}, {"val_split_fraction": 2.0}, "between 0 and 1"),
        ({"a": TEXT}, {"val_split_fraction": 0.5, "val_data_path": "x"}, "exclude each other"),
        ({"a": TEXT}, {"val_data_path": "nowhere"}, "no text file or folder nowhere"),
    ],
)
def test_bad_folders_are_told_in_one_sentence(
    tmp_path: Path, tokenizer: Tokenizer, texts: dict[str, str], arguments: dict[str, object], complaint: str
) -> None:
    with pytest.raises(LitGPTError, match=complaint):
        set_up(TextFiles(write(tmp_path / "texts", **texts), **arguments), tokenizer)


def test_text_that_is_no_utf8(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "bad.txt").write_bytes(b"fine\nfine\n\xff\n")
    with pytest.raises(LitGPTError, match=r"bad\.txt, line 3: not UTF-8"):
        set_up(TextFiles(tmp_path / "bad.txt"), tokenizer)


def test_a_tokenizer_is_needed_and_not_two(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "texts", only=TEXT) / "only.txt"
    with pytest.raises(LitGPTError, match="needs a tokenizer"):
        set_up(TextFiles(path), None)
    with pytest.raises(LitGPTError, match="of its own"):
        set_up(TextFiles(path, characters=True), tokenizer)


def test_shakespeare_is_cut_as_nanogpt_cuts_it(shared_assets: Path) -> None:
    path = shared_assets / "text" / "tinyshakespeare.txt"
    module, _ = set_up(TextFiles(path, characters=True, val_split_fraction=0.1), None, length=256)
    sizes = (len(module.train_dataset.tokens), len(module.val_dataset.tokens), module.vocab_size)
    assert sizes == (1_003_854, 111_540, 65)
    assert len(module.val_dataset) == -(-111_539 // 256)


def test_shakespeare_has_the_tokens_that_nanogpt_counts(shared_assets: Path, tmp_path: Path) -> None:
    text = (shared_assets / "text" / "tinyshakespeare.txt").read_text(encoding="utf-8")
    (tmp_path / "train.txt").write_text(text[: int(0.9 * len(text))], encoding="utf-8")
    (tmp_path / "val.txt").write_text(text[int(0.9 * len(text)) :], encoding="utf-8")
    gpt2 = Tokenizer(shared_assets / "tokenizers" / "gpt2")
    module, _ = set_up(TextFiles(tmp_path / "train.txt", tmp_path / "val.txt"), gpt2, length=256)
    ends = [int(token in (gpt2.bos_id, gpt2.eos_id)) for token in module.train_dataset.tokens[[0, -1]]]
    sizes = [len(dataset.tokens) - sum(ends) for dataset in (module.train_dataset, module.val_dataset)]
    assert sizes == [301_966, 36_059]

"""`litgpt tokenizer train`: a vocabulary of one's own texts, by the library `tokenizers`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from litgpt.checkpoint.atomic import atomic_folder
from litgpt.data.storage.data_files import DATA_SUFFIXES, files_below, is_data, read_text, read_texts
from litgpt.errors import ExistingFileError, LitGPTError, UsageError, is_quiet, progress

if TYPE_CHECKING:
    import tokenizers

    from litgpt.tokenizer import Tokenizer

BYTES = 256
"""The least tokens of a byte-level vocabulary."""
MEASURED = 64
"""Texts by which the tokenizer is measured."""
END = "<|endoftext|>"


def train_tokenizer(
    data_path: Path,
    out_dir: Path = Path("tokenizer"),
    kind: Literal["bpe", "characters"] = "bpe",
    vocab_size: int = 32768,
    text_key: str = "text",
    special_tokens: tuple[str, ...] = (END,),
    max_characters: int | None = None,
) -> dict[str, float]:
    """Make a tokenizer of texts, for `litgpt pretrain --tokenizer_dir`.

    Args:
        data_path: A file, or a folder with files: `.txt` is one text each; `.jsonl`, `.json`, `.csv` and `.parquet`
            have one in each row.
        out_dir: The folder to write, which `transformers` opens too.
        kind: bpe: byte-level byte-pair encoding, which any text can be written in, words cut as GPT-2 does; characters:
            each character of the texts is a token, others are an error.
        vocab_size: Tokens of `bpe`, special ones included; where texts have too few pairs, it has fewer.
        text_key: What the text of a row is called.
        special_tokens: Tokens that no text is cut into. The first begins and ends documents. None with characters.
        max_characters: Stop reading after so many. Unset: read all.

    Raises:
        LitGPTError: A file can't be read, there is no text, or the folder holds a tokenizer already.

    Example:
        litgpt tokenizer train my_texts --vocab_size 16384 --out_dir tokenizer
    """
    from litgpt.tokenizer import Tokenizer, char_tokenizer, save_tokenizer

    special = tuple(dict.fromkeys(special_tokens)) if kind == "bpe" else ()
    if kind == "bpe" and vocab_size < BYTES + len(special):
        raise UsageError(
            f"vocab_size is {vocab_size}; a byte for each value and {len(special)} special tokens take "
            f"{BYTES + len(special)} at least."
        )
    if max_characters is not None and max_characters < 1:
        raise UsageError(f"max_characters is {max_characters}; give at least 1.")
    if (out_dir / "tokenizer.json").exists():
        raise ExistingFileError(f"{out_dir} holds a tokenizer already; choose another --out_dir, or delete it.")
    sources = _files(data_path)
    texts = _limited(_texts(sources, text_key), max_characters)
    if kind == "bpe":
        made = _bpe(texts, vocab_size, special)
    else:
        made = char_tokenizer("".join(sorted({character for text in texts for character in text})))
    settings = {"bos_token": special[0], "eos_token": special[0]} if special else {}
    with atomic_folder(out_dir) as folder:
        save_tokenizer(made, folder, **settings)
    found = _measured(Tokenizer(out_dir), islice(_limited(_texts(sources, text_key), max_characters), MEASURED))
    fewer = kind == "bpe" and found["tokens"] < vocab_size
    more = f", fewer than the {vocab_size:,} asked for: the texts have no more pairs" if fewer else ""
    progress(f"{out_dir}: {found['tokens']:,} tokens{more}; {found['bytes_per_token']:.2f} bytes of text a token.")
    return found


def _files(path: Path) -> list[Path]:
    """The files to read, by name."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise LitGPTError(f"There is no file or folder {path} with texts.")
    files = [path / name for name in files_below(path) if name.suffix.lower() == ".txt" or is_data(name)]
    if not files:
        raise LitGPTError(f"{path} has no texts: files of the kinds .txt, {', '.join(DATA_SUFFIXES)}.")
    return files


def _texts(files: Iterable[Path], key: str) -> Iterator[str]:
    for file in files:
        if is_data(file):
            yield from read_texts(file, key)
        else:
            yield read_text(file)


def _limited(texts: Iterable[str], most: int | None) -> Iterator[str]:
    """The texts up to so many characters."""
    for text in texts:
        yield text if most is None else text[:most]
        if most is not None:
            most -= len(text)
            if most <= 0:
                return


def _bpe(texts: Iterable[str], vocab_size: int, special: tuple[str, ...]) -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty() and not is_quiet(),
    )
    read = 0

    def counted() -> Iterator[str]:
        nonlocal read
        for text in texts:
            read += len(text)
            yield text

    made.train_from_iterator(counted(), trainer)
    if not read:
        raise LitGPTError("The files have no text to make a tokenizer of.")
    return made


def _measured(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, float]:
    """How many tokens there are, and how many bytes of these texts one stands for."""
    n_bytes = n_tokens = 0
    for text in texts:
        ids = tokenizer.encode(text, bos=False)
        n_bytes, n_tokens = n_bytes + len(text.encode()), n_tokens + len(ids)
    return {"tokens": len(tokenizer), "bytes_per_token": n_bytes / n_tokens if n_tokens else 0.0}

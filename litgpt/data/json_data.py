"""Instruction data from the user's own JSON files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from litgpt.data.base import Row, SFTModule, split_rows
from litgpt.errors import LitGPTError
from litgpt.prompts import PromptStyle

NEEDED = ("instruction", "output")
DEFAULT_VAL_FRACTION = 0.05


@dataclass
class JSON(SFTModule):
    """Instructions and answers from a JSON or JSON Lines file, or from a folder with two of them."""

    json_path: Path
    """A `.json` file (a list of objects), a `.jsonl` file (an object a line), or a folder with `train` and `val`
    ones. Each object has `instruction` and `output`, perhaps `input`, and anything else the prompt style uses."""
    mask_prompt: bool = False
    """Learn the answers only, not the prompts."""
    val_split_fraction: float | None = None
    """Share of the samples to validate on, 0 to 1; null: 0.05. A folder has its own validation file."""
    prompt_style: str | PromptStyle = "alpaca"
    """How a sample is put into words: a style's name, or `chat` for the tokenizer's own chat template."""
    ignore_index: int = -100
    """The label of tokens that are not learned."""
    seed: int = 42
    """Of the split, and of the order in `train_dataloader()`."""
    num_workers: int = 4
    """Processes that `train_dataloader()` and `val_dataloader()` load with."""

    def __post_init__(self) -> None:
        self.json_path = Path(self.json_path)
        if isinstance(self.prompt_style, str):
            self.prompt_style = PromptStyle.from_name(self.prompt_style)
        if self.val_split_fraction is not None and self.json_path.is_dir():
            raise LitGPTError(
                f"{self.json_path} is a folder with its own validation file, so val_split_fraction must not be given."
            )

    def rows(self) -> tuple[list[Row], list[Row]]:
        if self.json_path.is_dir():
            return read_samples(self._file_in_folder("train")), read_samples(self._file_in_folder("val"))
        samples = read_samples(self.json_path)
        fraction = self.val_split_fraction
        if fraction is None:
            fraction = DEFAULT_VAL_FRACTION
            self.say(
                f"{fraction:.0%} of {self.json_path.name} is kept for validation (data.val_split_fraction changes it)."
            )
        return split_rows(samples, fraction, self.seed)

    def _file_in_folder(self, name: str) -> Path:
        for suffix in (".json", ".jsonl"):
            if (self.json_path / f"{name}{suffix}").is_file():
                return self.json_path / f"{name}{suffix}"
        raise LitGPTError(
            f"{self.json_path} has no {name}.json or {name}.jsonl; give a folder with train and val files, or one file."
        )


def read_samples(path: Path) -> list[Row]:
    """The samples of a `.json` or `.jsonl` file.

    Raises:
        LitGPTError: No such file, not JSON, not UTF-8, or a sample without its keys; says in which line.
    """
    readers = {".json": _read_list, ".jsonl": _read_lines}
    if path.suffix not in readers:
        raise LitGPTError(
            f"{path} is neither a .json nor a .jsonl file{'' if path.exists() else ', and does not exist'}."
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise LitGPTError(f"There is no data file {path}.") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise LitGPTError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8.") from None
    samples = []
    for line, sample in readers[path.suffix](path, text):
        _check(path, line, sample)
        samples.append(sample)
    if not samples:
        raise LitGPTError(f"{path} holds no samples.")
    return samples


def _read_lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise LitGPTError(f"{path}, line {number}: not valid JSON ({error.msg}).") from None


def _read_list(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """One sample after the other, so that the line of each is known."""
    decoder = json.JSONDecoder()
    position, line = _skip_space(text, 0), 1
    if text[position : position + 1] != "[":
        raise LitGPTError(f"{path} holds no list of samples; a file with one object a line is to be called .jsonl.")
    line += text.count("\n", 0, position)
    start, position = position, _skip_space(text, position + 1)
    while text[position : position + 1] != "]":
        line += text.count("\n", start, position)
        start = position
        try:
            sample, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise LitGPTError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}).") from None
        yield line, sample
        position = _skip_space(text, position)
        if text[position : position + 1] == ",":
            position = _skip_space(text, position + 1)
        elif text[position : position + 1] != "]":
            bad = text.count("\n", 0, position) + 1
            raise LitGPTError(f"{path}, line {bad}: not valid JSON (a comma or the end of the list is missing).")


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _check(path: Path, line: int, sample: Any) -> None:
    if not isinstance(sample, dict):
        raise LitGPTError(f"{path}, line {line}: a sample must be an object with the keys {' and '.join(NEEDED)}.")
    for key in NEEDED:
        if key not in sample:
            found = ", ".join(map(repr, sample)) or "none"
            raise LitGPTError(f"{path}, line {line}: the sample has no key {key!r} (its keys: {found}).")
        if not isinstance(sample[key], str):
            raise LitGPTError(f"{path}, line {line}: {key!r} is {type(sample[key]).__name__}, not text.")

"""Instruction data from the user's own JSON files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from litgpt.data.sft.data_module import SFTModule, in_litgpts_order
from litgpt.data.storage.data_files import DATA_SUFFIXES, check_suffix, format_suffix, listed
from litgpt.errors import LitGPTError, MissingFileError

SUFFIXES = (".json", ".jsonl")


@in_litgpts_order
@dataclass
class JSON(SFTModule):
    """Instructions and answers from a JSON or JSON Lines file, or from a folder with two of them."""

    json_path: Path
    """A `.json` file (a list of objects), a `.jsonl` file (an object a line), or a folder with `train` and `val`
    ones. Each object has `instruction` and `output`, perhaps `input`, and anything else the prompt style uses."""
    val_split_fraction: float | None = None
    """Share of the samples to validate on, 0 to 1; null: 0.05. A folder has its own validation file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.json_path = Path(self.json_path)
        if self.val_split_fraction is not None and self.json_path.is_dir():
            raise LitGPTError(
                f"{self.json_path} is a folder with its own validation file, so val_split_fraction must not be given."
            )

    def files(self) -> tuple[list[Path], list[Path]]:
        if self.json_path.is_dir():
            found = {name: self._file_in_folder(name) for name in ("train", "val")}
            unread = [file.name for file in self._candidates() if file not in found.values()]
            if unread:
                self.log(f"Not read of {self.json_path}: {listed(unread)}; --data Conversations reads them.")
            return [found["train"]], [found["val"]]
        check_suffix(self.json_path, SUFFIXES, "; --data Conversations reads others")
        return [self.json_path], []

    def val_fraction(self) -> float:
        fraction = super().val_fraction()
        if self.val_split_fraction is None:
            self.log(
                f"{fraction:.0%} of {self.json_path.name} is kept for validation (data.val_split_fraction changes it)."
            )
        return fraction

    def _candidates(self) -> list[Path]:
        return sorted(file for file in self.json_path.iterdir() if format_suffix(file) in DATA_SUFFIXES)

    def _file_in_folder(self, name: str) -> Path:
        """The file called `name`, in whatever case, perhaps compressed."""
        own = [file for file in self._candidates() if file.name.casefold().partition(".")[0] == name]
        found = [file for file in own if format_suffix(file) in SUFFIXES]
        if len(found) > 1:
            raise LitGPTError(f"{self.json_path} has {found[0].name} and {found[1].name}; keep one of them.")
        if found:
            return found[0]
        raise MissingFileError(
            f"{self.json_path} has no {name}.json or {name}.jsonl; give a folder with train and val files, or one file."
        )

"""TinyStories: short stories that small models learn to write."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from litgpt.data.lit_data import has_chunks, read_chunks
from litgpt.data.storage.blocks import TokenModule
from litgpt.data.storage.data_files import read_texts
from litgpt.data.storage.download import fetch_file
from litgpt.data.storage.token_cache import cache_folder
from litgpt.errors import LitGPTError

if TYPE_CHECKING:
    import numpy as np

URL = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/TinyStories_all_data.tar.gz"
FOLDER = "TinyStories_all_data"


@dataclass
class TinyStories(TokenModule):
    """The TinyStories, each one document; the first of their files validates."""

    data_path: Path = Path("data/tinystories")
    """Where the stories are kept; they are downloaded where they aren't there."""
    seed: int = 42
    """Of where the blocks start in each epoch, and of the order in `train_dataloader()`."""
    num_workers: int = 8
    """Steps that training reads ahead; processes of `train_dataloader()` and `val_dataloader()`. 0: none."""
    cache_dir: Path | None = None
    """Where tokens are kept; null: `$LITGPT_CACHE`, else `litgpt` in your cache folder; off: nowhere."""

    @property
    def _chunks(self) -> list[Path]:
        """Where LitGPT keeps the tokens that it has prepared; they are read where there are no stories."""
        return [Path(self.data_path) / name for name in ("train", "val")]

    @property
    def _is_prepared(self) -> bool:
        stories = any((Path(self.data_path) / FOLDER).glob("*.json"))
        return not stories and has_chunks(*self._chunks)

    def prepare_data(self) -> None:
        if self._is_prepared:
            return
        folder = Path(self.data_path) / FOLDER
        if not any(folder.glob("*.json")):
            archive = Path(self.data_path) / f"{FOLDER}.tar.gz"
            fetch_file(URL, archive)
            unpack(archive, folder)
        if cache_folder(self.cache_dir) is not None:
            for files in self._files():
                self._tokens(files)

    def setup(self, stage: str = "") -> None:
        if self._is_prepared:
            return read_chunks(self, *self._chunks)
        val, train = map(self._tokens, self._files())
        self.cut(train, val, Path(self.data_path))

    def _files(self) -> tuple[list[Path], list[Path]]:
        """To validate on, to train on."""
        files = sorted((Path(self.data_path) / FOLDER).glob("*.json"))
        if len(files) < 2:
            raise LitGPTError(
                f"{Path(self.data_path) / FOLDER} has {len(files)} *.json files; at least two are needed."
            )
        return files[:1], files[1:]

    def _tokens(self, files: list[Path]) -> np.ndarray:
        return self.tokenize(b"stories 1", files, stories, "Stories")


def stories(file: Path) -> Iterator[str]:
    """The stories of a file, without white space around them."""
    return (story.strip() for story in read_texts(file, "story"))


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks an archive's `*.json` files into `folder`, all or none.

    Raises:
        LitGPTError: The archive is damaged.
    """
    from litgpt.checkpoint.atomic import atomic_folder

    try:
        with atomic_folder(folder) as temporary, tarfile.open(archive) as packed:
            for member in packed:
                file = packed.extractfile(member) if member.isfile() and member.name.endswith(".json") else None
                if file is not None:
                    with (temporary / Path(member.name).name).open("wb") as target:
                        while piece := file.read(1 << 20):
                            target.write(piece)
    except LitGPTError:
        raise
    except (tarfile.TarError, EOFError, OSError) as error:
        raise LitGPTError(f"{archive} is damaged ({error}); delete it, it is downloaded anew.") from None

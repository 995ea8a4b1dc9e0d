"""The texts of many files as LitData's chunks of tokens, one stream in which every document ends with the end token."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from litgpt.data.sft.formats import Row
from litgpt.data.storage.data_files import read_rows, text_in
from litgpt.errors import ExistingFileError, LitGPTError, MissingFileError, MissingPackageError
from litgpt.hub_client import CHECKPOINTS
from litgpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FileTokens:
    """The documents of a data file as tokens; a process that LitData starts makes them."""

    tokenizer_path: Path
    key: str
    """Where a row has its text."""
    leaves_out: Callable[[Row], bool] | None = None
    """Whether a row is left out."""

    def __call__(self, file: str) -> Iterator[Tensor]:
        tokenizer = _tokenizer(self.tokenizer_path)
        for line, row in read_rows(Path(file)):
            if self.leaves_out is None or not self.leaves_out(row):
                yield tokenizer.encode(text_in(row, self.key, Path(file), line), bos=False, eos=True)


_tokenizer = lru_cache(maxsize=1)(Tokenizer)


def write_chunks(
    input_dir: Path,
    pattern: str,
    key: str,
    output_dir: Path,
    tokenizer_path: Path,
    chunk_size: int,
    fast_dev_run: bool,
    leaves_out: Callable[[Row], bool] | None = None,
) -> None:
    """Writes the texts under `key` in the files below `input_dir` that `pattern` matches into `output_dir`.

    Raises:
        LitGPTError: There is no such file or tokenizer, litdata isn't installed, or the chunks are there already.
    """
    try:
        from litdata import optimize
        from litdata.streaming import TokensLoader
    except ImportError:
        raise MissingPackageError(
            "Chunks of tokens are written by litdata; install it by: pip install 'litgpt[litdata]'."
        ) from None
    files = sorted(str(file) for file in input_dir.rglob(pattern))
    if not files:
        raise MissingFileError(f"There is no file {pattern} in {input_dir} or below; give another --input_dir.")
    if (output_dir / "index.json").exists():
        raise ExistingFileError(f"{output_dir} holds chunks already; remove it, or give another --output_dir.")
    below = CHECKPOINTS / tokenizer_path
    folder = below if below.is_dir() and not tokenizer_path.is_dir() else tokenizer_path
    Tokenizer(folder)  # says what is wrong before processes are started
    texts = FileTokens(folder, key, leaves_out)
    try:
        optimize(
            fn=texts,
            inputs=files,
            output_dir=str(output_dir),
            chunk_size=chunk_size,
            item_loader=TokensLoader(),
            num_workers=min(len(files), os.cpu_count() or 1),
            fast_dev_run=fast_dev_run,
        )
    except RuntimeError as error:  # has the traceback of the process that failed
        ours = re.findall(rf"^{LitGPTError.__module__}\.\w+: (.*)", str(error), re.MULTILINE)
        raise (LitGPTError(ours[0]) if ours else error) from None

"""A tokenizer whose tokens are the characters of a text, as an ordinary tokenizer folder."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from litgpt.data.storage.token_cache import content_hash

if TYPE_CHECKING:
    from litgpt.tokenizer import Tokenizer


def character_tokenizer(symbols: str, cache: Path | None) -> Tokenizer:
    """The tokenizer of these characters, ids in their order; its folder is made in `cache` if it isn't there.

    Without a cache the folder is gone with the tokenizer.
    """
    from litgpt.checkpoint.atomic import atomic_folder
    from litgpt.tokenizer import Tokenizer, char_tokenizer, save_tokenizer

    parent = cache or Path(tempfile.mkdtemp(prefix="litgpt-"))
    folder = parent / "tokenizers" / f"characters-{content_hash(symbols.encode())}"
    if not folder.is_dir():
        with atomic_folder(folder) as temporary:
            save_tokenizer(char_tokenizer(symbols), temporary)
    tokenizer = Tokenizer(folder)
    if cache is None:
        weakref.finalize(tokenizer, shutil.rmtree, parent, ignore_errors=True)
    return tokenizer

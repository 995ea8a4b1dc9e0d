"""`litgpt prepare_slimpajama`: SlimPajama's files as the chunks that `--data TinyLlama` and `MicroLlama` read."""

from __future__ import annotations

from pathlib import Path

from litgpt.data.sft.formats import Row
from litgpt.data.storage.litdata_chunks import write_chunks

CODE = "RedPajamaGithub"
"""The part that StarCoder has too."""


def prepare(
    input_dir: Path = Path("data/SlimPajama-627B/train"),
    output_dir: Path = Path("data/slimpajama/train"),
    tokenizer_path: Path = Path("checkpoints/Llama-2-7b-hf/"),
    chunk_size: int = 2049 * 16384,
    fast_dev_run: bool = False,
) -> None:
    """Tokenize SlimPajama's files for pretraining TinyLlama; its source code is left out, as StarCoder has it.

    Args:
        input_dir: The folder with `*.jsonl.zst` files, which may lie in folders below.
        output_dir: The folder to write.
        tokenizer_path: A folder with a tokenizer.
        chunk_size: Tokens of a chunk, a file of its own.
        fast_dev_run: Write a little of it only, to see that it works.

    Example:
        litgpt prepare_slimpajama --input_dir data/slimpajama/train --output_dir data/chunks --tokenizer_path tokenizer
    """
    write_chunks(input_dir, "*.zst", "text", output_dir, tokenizer_path, chunk_size, fast_dev_run, is_code)


def is_code(row: Row) -> bool:
    """Whether a row is source code, which StarCoder has better."""
    meta = row.get("meta")
    return isinstance(meta, dict) and meta.get("redpajama_set_name") == CODE


if __name__ == "__main__":
    # LitGPT's tutorial runs this file; the command line is one that the layers above read.
    import os
    import sys

    os.execv(sys.executable, [sys.executable, "-m", "litgpt", "prepare_slimpajama", *sys.argv[1:]])

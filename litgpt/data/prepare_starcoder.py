"""`litgpt prepare_starcoder`: StarCoder's files as the chunks that `--data TinyLlama` reads."""

from __future__ import annotations

from pathlib import Path

from litgpt.data.storage.litdata_chunks import write_chunks


def prepare(
    input_dir: Path = Path("data/starcoderdata"),
    output_dir: Path = Path("data/starcoder"),
    tokenizer_path: Path = Path("checkpoints/Llama-2-7b-hf/"),
    chunk_size: int = 2049 * 8192,
    fast_dev_run: bool = False,
) -> None:
    """Tokenize StarCoder's files for pretraining TinyLlama.

    Args:
        input_dir: The folder with `*.parquet` files, which may lie in folders below; their column `content` is read.
        output_dir: The folder to write.
        tokenizer_path: A folder with a tokenizer.
        chunk_size: Tokens of a chunk, a file of its own.
        fast_dev_run: Write a little of it only, to see that it works.

    Example:
        litgpt prepare_starcoder --input_dir data/starcoder --output_dir data/chunks --tokenizer_path tokenizer
    """
    write_chunks(input_dir, "*.parquet", "content", output_dir, tokenizer_path, chunk_size, fast_dev_run)


if __name__ == "__main__":
    # LitGPT's tutorial runs this file; the command line is one that the layers above read.
    import os
    import sys

    os.execv(sys.executable, [sys.executable, "-m", "litgpt", "prepare_starcoder", *sys.argv[1:]])

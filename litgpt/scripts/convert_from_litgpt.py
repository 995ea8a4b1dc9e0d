"""`litgpt convert_from_litgpt`: a LitGPT checkpoint as a Hugging Face folder, or as a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def convert_from_litgpt(
    checkpoint_dir: Path,
    output_dir: Path,
    output_format: Literal["hf", "gguf-f16", "gguf-q8_0"] = "hf",
) -> None:
    """Convert a LitGPT checkpoint to a Hugging Face folder or a GGUF file.

    A Hugging Face folder gets all that `transformers` opens: configuration, safetensors, tokenizer, generation
    settings. A GGUF file, for llama.cpp and what is built on it, holds all of this itself.

    Args:
        checkpoint_dir: The folder with `lit_model.pth`; for GGUF, a Hugging Face folder does too.
        output_dir: The folder to write.
        output_format: `hf`, or `model-TYPE.gguf` in the folder: `gguf-f16` has 16 bits a weight, `gguf-q8_0` 8.5.
    """
    if output_format == "hf":
        from litgpt.checkpoint.convert import to_hf

        to_hf(checkpoint_dir, output_dir)
    else:
        from litgpt.checkpoint.gguf_writer import write_gguf

        dtype = output_format.removeprefix("gguf-")
        write_gguf(checkpoint_dir, output_dir / f"model-{dtype}.gguf", dtype)

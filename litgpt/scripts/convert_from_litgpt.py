"""`litgpt convert_from_litgpt`: a LitGPT checkpoint as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path


def convert_from_litgpt(checkpoint_dir: Path, output_dir: Path) -> None:
    """Convert a LitGPT checkpoint to a Hugging Face folder.

    Writes all that `transformers` opens: configuration, safetensors, tokenizer, generation settings.

    Args:
        checkpoint_dir: The folder with `lit_model.pth`.
        output_dir: The folder to write.
    """
    from litgpt.checkpoint.convert import to_hf

    to_hf(checkpoint_dir, output_dir)

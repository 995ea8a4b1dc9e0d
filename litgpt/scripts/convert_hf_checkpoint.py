"""LitGPT's path to what `litgpt convert_to_litgpt` does."""

from __future__ import annotations

from pathlib import Path

from litgpt.scripts.convert_to_litgpt import convert_to_litgpt


def convert_hf_checkpoint(
    checkpoint_dir: Path,
    *,
    model_name: str | None = None,
    dtype: str | None = None,
    debug_mode: bool | None = False,
) -> None:
    """Writes LitGPT's files beside Hugging Face's; see `convert_to_litgpt`."""
    convert_to_litgpt(checkpoint_dir, model_name, dtype, debug_mode)

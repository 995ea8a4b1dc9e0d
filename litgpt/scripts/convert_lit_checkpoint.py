"""LitGPT's path to what `litgpt convert_from_litgpt` does."""

from __future__ import annotations

from pathlib import Path

from litgpt.scripts.convert_from_litgpt import convert_from_litgpt


def convert_lit_checkpoint(checkpoint_dir: Path, output_dir: Path) -> None:
    """Writes a complete Hugging Face folder; LitGPT writes `model.pth` alone."""
    convert_from_litgpt(checkpoint_dir, output_dir)

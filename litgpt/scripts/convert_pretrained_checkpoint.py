"""`litgpt convert_pretrained_checkpoint`: the weights of a training checkpoint, without what training adds."""

from __future__ import annotations

import sys
from pathlib import Path


def convert_pretrained_checkpoint(checkpoint_dir: Path, output_dir: Path) -> None:
    """Strip a pretraining checkpoint of its training state.

    Writes the weights alone, with configuration and tokenizer, to a folder of their own.

    Args:
        checkpoint_dir: A folder that `litgpt pretrain` saved.
        output_dir: The folder to write.

    Example:
        litgpt convert_pretrained_checkpoint out/pretrain/final out/pretrained
    """
    from litgpt.checkpoint.convert import to_weights_only

    print(f"Wrote the weights alone to {to_weights_only(checkpoint_dir, output_dir)}.", file=sys.stderr)

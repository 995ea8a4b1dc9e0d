"""`litgpt data preview`: shows what a model would learn from data, before it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from litgpt.data import DataModule


def data_preview(
    checkpoint_dir: Path,
    data: DataModule | None = None,
    max_seq_length: int | None = None,
    samples: int = 3,
    color: Literal["auto", "always", "never"] = "auto",
    pretraining: bool = False,
    access_token: str | None = None,
    tokens: bool = False,
) -> dict[str, Any]:
    """Show samples as a model gets them: what is learned, how long they are, what is cut.

    Args:
        checkpoint_dir: Folder of the model, or of its tokenizer alone.
        data: What to learn from, with the flags of the finetuning commands. Unset: Alpaca, as there.
        max_seq_length: Tokens of a sample at most, as train.max_seq_length. Unset: the model's context, if the folder
            says it.
        samples: How many samples to show.
        color: Show what is learned in green: auto (on a screen), always, or never (then it stands between ⟦ and ⟧).
        pretraining: Show the data as `litgpt pretrain` reads it, in blocks of max_seq_length tokens.
        access_token: For checkpoints on the hub that ask for one.
        tokens: Show each token with its id and its label, the id that is learned there, or -100 for none.

    Example:
        litgpt data preview HuggingFaceTB/SmolLM2-135M-Instruct --data JSON --data.json_path my_data.jsonl
    """
    from litgpt.data.sft.preview import Preview
    from litgpt.errors import LitGPTError

    if samples < 0:
        raise LitGPTError(f"samples must be at least 0, not {samples}.")
    return Preview.of(checkpoint_dir, data, max_seq_length, pretraining, access_token).show(samples, color, tokens)

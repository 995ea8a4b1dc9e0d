"""`litgpt convert_to_litgpt`: LitGPT's files beside Hugging Face's."""

from __future__ import annotations

from pathlib import Path


def convert_to_litgpt(
    checkpoint_dir: Path,
    model_name: str | None = None,
    dtype: str | None = None,
    debug_mode: bool | None = False,
) -> None:
    """Convert a Hugging Face folder to a LitGPT checkpoint.

    Writes `lit_model.pth` and `model_config.yaml` into the folder; every command takes the folder without that, too.

    Args:
        checkpoint_dir: The folder with the `*.safetensors` or `*.bin` files.
        model_name: The known model it is; unset: what its `config.json` says.
        dtype: Type to convert weights to: float32, float16, bfloat16 or float64; unset: as stored.
        debug_mode: Print each tensor as it is converted.

    Example:
        litgpt convert_to_litgpt HuggingFaceTB/SmolLM2-135M-Instruct
    """
    from litgpt.checkpoint.convert import to_litgpt
    from litgpt.checkpoint.dtypes import dtype_of

    to_litgpt(checkpoint_dir, model_name, dtype_of(dtype), bool(debug_mode))

"""`litgpt download`: a checkpoint, or a tokenizer alone, from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from litgpt.checkpoint.atomic import gigabytes
from litgpt.checkpoint.dtypes import WEIGHT_BYTES, check_dtype
from litgpt.checkpoint.hub import fetch, known_ids
from litgpt.checkpoint.layout import find_checkpoint, hf_weight_files
from litgpt.config import Config
from litgpt.errors import LitGPTError

COMMON_WIDTH = 2
"""Bytes of a weight in most repositories."""


def download(
    repo_id: str,
    access_token: str | None = None,
    tokenizer_only: bool = False,
    convert_checkpoint: bool = True,
    dtype: str | None = None,
    checkpoint_dir: Path = Path("checkpoints"),
    model_name: str | None = None,
) -> None:
    """Download weights or tokenizer data from the Hugging Face Hub.

    A repository whose architecture is known needs to be on no list. The folder can be used as it arrives;
    `convert_checkpoint` adds LitGPT's own format, for tools that want it.

    Args:
        repo_id: `ORG/NAME` on the hub; `list` prints those known by name.
        access_token: Token for gated or private repositories; unset: `HF_TOKEN`, else the one of `hf auth login`.
        tokenizer_only: Download the tokenizer, no weights.
        convert_checkpoint: Write `lit_model.pth` beside the downloaded weights.
        dtype: Type to convert weights to: float32, float16, bfloat16 or float64; unset: as downloaded.
        checkpoint_dir: The folder that `ORG/NAME` is put in.
        model_name: The known model whose configuration to convert by; unset: the repository's `config.json`.

    Example:
        litgpt download HuggingFaceTB/SmolLM2-135M-Instruct
    """
    if repo_id == "list":
        print("\n".join(known_ids()))
        return
    width = WEIGHT_BYTES[check_dtype(dtype)] / COMMON_WIDTH if dtype else 1.0
    if model_name is not None:
        Config.from_name(model_name)  # refuse an unknown name before the download, not after it
    folder = checkpoint_dir / repo_id
    convert = convert_checkpoint and not tokenizer_only
    fetch(repo_id, folder, access_token, tokenizer_only, width if convert else 0.0)
    if tokenizer_only:
        print(f"The tokenizer of {repo_id} is in {folder}.")
        return
    if convert and hf_weight_files(folder):
        _convert(folder, model_name, dtype)
    print(f"{repo_id} is in {folder} ({gigabytes(find_checkpoint(folder).nbytes)}). Try: litgpt chat {folder}")


download_from_hub = download
"""LitGPT's name for it."""


def _convert(folder: Path, model_name: str | None, dtype: str | None) -> None:
    from litgpt.checkpoint.convert import to_litgpt
    from litgpt.checkpoint.dtypes import dtype_of

    try:
        to_litgpt(folder, model_name, dtype_of(dtype))
    except LitGPTError as error:
        raise LitGPTError(f"{folder} is downloaded but not converted: {error}") from None

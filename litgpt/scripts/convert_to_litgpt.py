"""`litgpt convert_to_litgpt`: LitGPT's files beside Hugging Face's."""

from __future__ import annotations

from pathlib import Path


def convert_to_litgpt(
    checkpoint_dir: Path,
    model_name: str | None = None,
    dtype: str | None = None,
    debug_mode: bool | None = False,
) -> None:
    """Convert a Hugging Face folder, or nanoGPT's `ckpt.pt`, to a LitGPT checkpoint.

    Writes `lit_model.pth` and `model_config.yaml` into the folder; every command takes Hugging Face's without that.
    Where nanoGPT's `meta.pkl` is beside the file, or in `data/`, its characters become the tokenizer.

    Args:
        checkpoint_dir: The folder with the `*.safetensors` or `*.bin` files, or with `ckpt.pt`.
        model_name: The known model it is; unset: what its `config.json` says.
        dtype: Type to convert weights to: float32, float16, bfloat16 or float64; unset: as stored.
        debug_mode: Print each tensor as it is converted.

    Example:
        litgpt convert_to_litgpt HuggingFaceTB/SmolLM2-135M-Instruct
    """
    from litgpt.checkpoint.convert import to_litgpt
    from litgpt.checkpoint.dtypes import dtype_of
    from litgpt.checkpoint.layout import NANOGPT_CHECKPOINT, existing_folder, hf_weight_files

    folder = existing_folder(checkpoint_dir)
    if model_name is None and (folder / NANOGPT_CHECKPOINT).is_file() and not hf_weight_files(folder):
        _convert_nanogpt(folder, dtype)
        return
    to_litgpt(checkpoint_dir, model_name, dtype_of(dtype), bool(debug_mode))


def _convert_nanogpt(folder: Path, dtype: str | None) -> None:
    from litgpt.checkpoint.dtypes import dtype_of
    from litgpt.checkpoint.nanogpt import from_nanogpt
    from litgpt.data.token_files import characters_of_meta, read_meta
    from litgpt.tokenizer import char_tokenizer, save_tokenizer

    settings = from_nanogpt(folder, dtype_of(dtype))
    data = folder.resolve().parent / "data" / str(settings.get("dataset", ""))
    symbols = next(filter(None, (characters_of_meta(read_meta(place / "meta.pkl")) for place in (folder, data))), "")
    if symbols:
        save_tokenizer(char_tokenizer(symbols), folder)
        print(f"{folder} is a LitGPT folder now, with the {len(symbols)} characters of meta.pkl as its tokenizer.")
    else:
        print(
            f"{folder} is a LitGPT folder now. There is no meta.pkl with characters; for GPT-2's tokens, "
            f"`litgpt download openai-community/gpt2 --tokenizer_only true` and copy tokenizer.json into it."
        )

"""`litgpt convert_from_litgpt`: a LitGPT checkpoint as a Hugging Face folder, a GGUF file, or a PEFT folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal


def convert_from_litgpt(
    checkpoint_dir: Path,
    output_dir: Path,
    output_format: Literal["hf", "gguf-f16", "gguf-q8_0", "peft"] = "hf",
) -> None:
    """Convert a LitGPT checkpoint to a Hugging Face folder, a GGUF file, or LoRA's updates to a PEFT folder.

    A Hugging Face folder gets all that `transformers` opens: configuration, safetensors, tokenizer, generation
    settings. A GGUF file, for llama.cpp and what is built on it, holds all of this itself.

    Args:
        checkpoint_dir: The folder with `lit_model.pth`; for GGUF, a Hugging Face folder does too; for PEFT, the one
            with `lit_model.pth.lora`.
        output_dir: The folder to write.
        output_format: `hf`, or `model-TYPE.gguf` in the folder: `gguf-f16` has 16 bits a weight, `gguf-q8_0` 8.5; or
            `peft`, the updates alone.

    Example:
        litgpt convert_from_litgpt out/finetune/lora/final out/mine-hf
    """
    if output_format == "hf":
        from litgpt.checkpoint.convert import to_hf

        to_hf(checkpoint_dir, output_dir)
    elif output_format == "peft":
        from litgpt.checkpoint.peft_folder.writer import to_peft

        print(f"Wrote {to_peft(checkpoint_dir, output_dir)}, for `peft.PeftModel.from_pretrained`.")
    else:
        from litgpt.checkpoint.atomic import gigabytes
        from litgpt.checkpoint.gguf.writer import write_gguf

        dtype = output_format.removeprefix("gguf-")
        file = output_dir / f"model-{dtype}.gguf"
        write_gguf(checkpoint_dir, file, dtype)
        print(f"Wrote {file}, {gigabytes(file.stat().st_size)}.", file=sys.stderr)

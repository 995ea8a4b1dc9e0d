"""`litgpt quantize`: a model in few bits, as a file or folder that other tools open."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from litgpt.errors import UsageError


def quantize_checkpoint(
    checkpoint_dir: Path,
    to: Literal["gguf-q4_k_m", "gguf-q5_k_m", "gguf-q6_k", "gguf-q8_0", "gptq", "awq", "w4a16", "int8", "fp8"]
    | None = None,
    data: Path | None = None,
    out_dir: Path | None = None,
    group_size: int | None = None,
    samples: int = 128,
    sequence_length: int = 512,
    seed: int = 1337,
    precision: str | None = None,
    device: str = "auto",
) -> None:
    """Write a model in few bits: as a GGUF file, or as a Hugging Face folder.

    Without data, weights are rounded to the nearest. With data, they are rounded by what the layers are given on it:
    gptq, w4a16 and int8 by GPTQ, awq by AWQ, the GGUF mixtures by an importance matrix.

    Args:
        checkpoint_dir: The model: a checkpoint folder of any kind, or a GGUF file.
        to: gguf-q4_k_m, gguf-q5_k_m, gguf-q6_k or gguf-q8_0 for llama.cpp; gptq, awq, or compressed-tensors' w4a16,
            int8 and fp8 for transformers and vLLM. It has to be said.
        data: Texts like those the model will see: a text file, or rows with `text`.
        out_dir: The folder to write. Unset: out/quantized/MODEL-TO.
        group_size: Columns that share a scale, for 4 bits. Unset: 128, 64 or 32, the first that divides all layers.
        samples: Pieces of the data that are looked at.
        sequence_length: Tokens of a piece.
        seed: Of the choice of pieces.
        precision: Arithmetic for the data: 32-true, bf16-true. Unset: the model's own where the device computes in it.
        device: Where the data goes through the model.

    Raises:
        LitGPTError: There is no such format, the model can't be stored in it, or data would change nothing.

    Example:
        litgpt quantize HuggingFaceTB/SmolLM2-135M-Instruct --to gguf-q4_k_m --data my_texts.txt
    """
    if to is None:
        raise UsageError("Say what to write: --to gguf-q4_k_m for llama.cpp, --to w4a16 for transformers and vLLM.")
    given = dict(locals())
    from litgpt.scripts.quantize.steps import Quantization

    Quantization(**given).run()

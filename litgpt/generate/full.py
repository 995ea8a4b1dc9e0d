"""`litgpt generate_full`: answers a prompt with a fully finetuned model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litgpt.args import inherits
from litgpt.generate.options import finetuned_flags


@inherits(finetuned_flags)
def main(
    sys_prompt: str | None = None,
    finetuned_path: Path = Path("out/finetune/full/final/lit_model.pth"),
    **flags: Any,
) -> None:
    """Generate text with a fully finetuned model.

    The prompt is put into the prompt style of the finetuning. Prints the answer, and to standard error what it cost.

    Args:
        finetuned_path: The finetuned weights, or the folder they are in.

    Example:
        litgpt generate_full HuggingFaceTB/SmolLM2-135M-Instruct --prompt "Name three rivers."
    """
    from litgpt.generate.answer import answer_finetuned
    from litgpt.peft import Full

    answer_finetuned(Full(), finetuned_path, sys_prompt=sys_prompt, **flags)

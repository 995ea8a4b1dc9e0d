"""`litgpt generate_adapter`: answers a prompt with a model finetuned with LLaMA-Adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litgpt.args import inherits
from litgpt.generate.options import finetuned_flags


@inherits(finetuned_flags)
def main(
    sys_prompt: str | None = None,
    adapter_path: Path = Path("out/finetune/adapter/final/lit_model.pth.adapter"),
    **flags: Any,
) -> None:
    """Generate text with a model finetuned with LLaMA-Adapter.

    The prompt is put into the prompt style of the finetuning. Prints the answer, and to standard error what it cost.

    Args:
        adapter_path: The adapter, or the folder it is in.

    Example:
        litgpt generate_adapter HuggingFaceTB/SmolLM2-135M-Instruct --prompt "Name three rivers."
    """
    from litgpt.adapter import Adapter
    from litgpt.generate.answer import answer_finetuned

    answer_finetuned(Adapter(), adapter_path, sys_prompt=sys_prompt, **flags)

"""`litgpt generate_adapter_v2`: answers a prompt with a model finetuned with LLaMA-Adapter V2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litgpt.args import inherits
from litgpt.generate import adapter


@inherits(adapter.main)
def main(
    adapter_path: Path = Path("out/finetune/adapter-v2/final/lit_model.pth.adapter_v2"),
    **flags: Any,
) -> None:
    """Generate text with a model finetuned with LLaMA-Adapter V2.

    The prompt is put into the prompt style of the finetuning. Prints the answer, and to standard error what it cost.

    Args:
        adapter_path: The adapter, or the folder it is in.

    Example:
        litgpt generate_adapter_v2 HuggingFaceTB/SmolLM2-135M-Instruct --prompt "Name three rivers."
    """
    from litgpt.adapter_v2 import AdapterV2
    from litgpt.generate.answer import answer_finetuned

    answer_finetuned(AdapterV2(), adapter_path, **flags)

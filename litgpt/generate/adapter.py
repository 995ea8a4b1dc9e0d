"""`litgpt generate_adapter`: answers a prompt with a model finetuned with LLaMA-Adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litgpt.args import Quantization, inherits
from litgpt.generate.options import Options


@inherits(Options)
def main(
    checkpoint_dir: Path,
    prompt: str = "What food do llamas eat?",
    input: str = "",
    sys_prompt: str | None = None,
    adapter_path: Path = Path("out/finetune/adapter/final/lit_model.pth.adapter"),
    quantize: Quantization | None = None,
    max_new_tokens: int = 100,
    top_k: int | None = 50,
    top_p: float = 1.0,
    temperature: float = 0.8,
    precision: str | None = None,
    **options: Any,
) -> None:
    """Generate text with a model finetuned with LLaMA-Adapter.

    The prompt is put into the prompt style of the finetuning. Prints the answer, and to standard error what it cost.

    Args:
        checkpoint_dir: The folder of the model that was finetuned, LitGPT's or Hugging Face's.
        prompt: The instruction to answer.
        input: Further context of the instruction.
        sys_prompt: The system prompt, for prompt styles that have one.
        adapter_path: The adapter, or the folder it is in.
        quantize: Keep the weights in 4 or 8 bits: bnb.* by bitsandbytes; int8 and int4 are faster on CPUs.
        max_new_tokens: The most tokens the answer may have.
        top_k: Choose among this many most likely tokens; null: all.
        top_p: Choose among the most likely tokens that have this much probability together.
        temperature: Higher is more random; 0 always takes the most likely token.
        precision: 32-true, bf16-true, 16-true, bf16-mixed or 16-mixed; null: 16 bits where the device has them.
    """
    arguments = dict(locals())
    from litgpt.adapter import Adapter
    from litgpt.generate.finetuned import print_answer

    print_answer(Adapter(), adapter_path, arguments)

"""`litgpt generate_tp`: every layer of one model split over several devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litgpt.args import SplitQuantization, inherits
from litgpt.generate.base import PROMPT, answer
from litgpt.generate.options import Options


@inherits(Options)
def main(
    checkpoint_dir: Path,
    prompt: str = PROMPT,
    *,
    sys_prompt: str | None = None,
    num_samples: int = 1,
    max_new_tokens: int = 50,
    top_k: int | None = 50,
    top_p: float = 1.0,
    temperature: float = 0.8,
    quantize: SplitQuantization | None = None,
    precision: str | None = None,
    compile: bool = False,
    **options: Any,
) -> None:
    """Generate text with every layer split over several devices.

    Each GPU that there is holds its share of every layer, and all compute together (tensor parallel). Under `torchrun`
    its processes do, on CPUs too. With a single device it is `litgpt generate`.

    Args:
        checkpoint_dir: The checkpoint folder, LitGPT's or Hugging Face's.
        prompt: What to answer or continue.
        sys_prompt: The system prompt, for prompt styles that have one.
        num_samples: How many answers to generate.
        max_new_tokens: The most tokens an answer may have.
        top_k: Choose among this many most likely tokens; null: all.
        top_p: Choose among the most likely tokens that have this much probability together.
        temperature: Higher is more random; 0 always takes the most likely token.
        quantize: Keep the weights in 4 bits (bitsandbytes); on one device alone.
        precision: 32-true, bf16-true, 16-true, bf16-mixed or 16-mixed; null: 16 bits where the device has them.
        compile: Compile the model first; on one device alone.
    """
    arguments = dict(locals())
    from litgpt.engine.inference_model import InferenceModel
    from litgpt.engine.tensor_parallel import only_first_rank_prints

    with only_first_rank_prints():
        answer(
            arguments,
            lambda: InferenceModel.load(checkpoint_dir, "auto", precision, quantize, compile, "tensor_parallel"),
        )

"""`litgpt generate_tp`: every layer of one model split over several devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litgpt.args import SplitQuantization, inherits
from litgpt.generate import base


@inherits(base.main)
def main(
    checkpoint_dir: Path, *, quantize: SplitQuantization | None = None, compile: bool = False, **flags: Any
) -> None:
    """Generate text with every layer split over several devices.

    Each GPU that there is holds its share of every layer, and all compute together (tensor parallel). Under `torchrun`
    its processes do, on CPUs too. With a single device it is `litgpt generate`.

    Args:
        quantize: Keep the weights in 4 bits (bitsandbytes); on one device alone.
        compile: Compile the model first; on one device alone.

    Example:
        litgpt generate_tp HuggingFaceTB/SmolLM2-135M-Instruct --prompt "Name three rivers."
    """
    from functools import partial

    from litgpt.engine.inference_model import InferenceModel
    from litgpt.engine.tensor_parallel import only_first_rank_prints
    from litgpt.generate.answer import answer

    load = partial(InferenceModel.load, checkpoint_dir, strategy="tensor_parallel")
    with only_first_rank_prints():
        answer(load, quantize=quantize, compile=compile, **flags)

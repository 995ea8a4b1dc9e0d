"""`litgpt generate_sequentially`: the layers of one model on several devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litgpt.args import SplitQuantization, inherits
from litgpt.generate import base


@inherits(base.main)
def main(
    checkpoint_dir: Path, *, quantize: SplitQuantization | None = None, compile: bool = False, **flags: Any
) -> None:
    """Generate text with the layers spread over several devices.

    For a model that fits into no single one: each GPU that there is gets a run of its layers, and tokens pass from one
    to the next. With a single device it is `litgpt generate`.

    Args:
        quantize: Keep the weights in 4 bits (bitsandbytes).
        compile: Compile the model first; on one device alone.

    Example:
        litgpt generate_sequentially HuggingFaceTB/SmolLM2-135M-Instruct --prompt "Name three rivers."
    """
    from functools import partial

    from litgpt.engine.inference_model import InferenceModel
    from litgpt.generate.answer import answer

    load = partial(InferenceModel.load, checkpoint_dir, strategy="sequential")
    answer(load, quantize=quantize, compile=compile, **flags)

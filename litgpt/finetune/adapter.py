"""`litgpt finetune_adapter`: trains learned prompts for the upper layers of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litgpt.args import EvalArgs, TrainedQuantization, arguments_of, inherits
from litgpt.finetune.full import setup as full


@inherits(full, last=["resume", "resize_vocab", "loss"])
def setup(
    out_dir: Path = Path("out/finetune/adapter"),
    precision: str | None = None,
    quantize: TrainedQuantization | None = None,
    eval: EvalArgs = EvalArgs(interval=100, max_new_tokens=100, max_iters=100),
    **inherited: Any,
) -> None:
    """Finetune a model with LLaMA-Adapter: learned prompts for the upper layers, frozen weights.

    Args:
        quantize: Keep the frozen weights in 4 or 8 bits, by bitsandbytes.
        seed: Of the start of the prompts and the order of the samples.

    Example:
        litgpt finetune_adapter HuggingFaceTB/SmolLM2-135M-Instruct --data JSON --data.json_path my_data.jsonl
    """
    arguments = arguments_of(setup, locals())
    from litgpt.adapter import Adapter
    from litgpt.finetune.base import finetune

    finetune(Adapter(), arguments)

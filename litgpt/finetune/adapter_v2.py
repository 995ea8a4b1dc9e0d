"""`litgpt finetune_adapter_v2`: trains prompts, norms, and a scale and a bias on every linear layer of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from litgpt.args import arguments_of, inherits
from litgpt.finetune.adapter import setup as adapter


@inherits(
    adapter, last="data train eval log optimizer logger_name seed access_token resize_vocab loss strategy".split()
)
def setup(
    out_dir: Path = Path("out/finetune/adapter-v2"),
    resume: bool | Literal["auto"] | Path | None = False,
    **inherited: Any,
) -> None:
    """Finetune a model with LLaMA-Adapter V2: learned prompts, norms, and a scale and a bias on every linear layer.

    Example:
        litgpt finetune_adapter_v2 HuggingFaceTB/SmolLM2-135M-Instruct --data JSON --data.json_path my_data.jsonl
    """
    arguments = {**arguments_of(setup, locals()), "resume": resume or False}
    from litgpt.adapter_v2 import AdapterV2
    from litgpt.finetune.base import finetune

    finetune(AdapterV2(), arguments)

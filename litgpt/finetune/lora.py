"""`litgpt finetune_lora` (and `litgpt finetune`): trains low-rank updates of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from litgpt.args import EvalArgs, LogArgs, arguments_of, inherits
from litgpt.finetune.adapter import setup as adapter

OWN = "resume lora_target lora_rank_pattern lora_alpha_pattern lora_rslora lora_dora lora_init lora_plus_ratio".split()


@inherits(adapter, last=[*OWN, "lora_modules_to_save", "loss"])
def setup(
    out_dir: Path = Path("out/finetune/lora"),
    num_nodes: int = 1,
    lora_r: int = 8,
    lora_alpha: int = 16,
    lora_dropout: float = 0.05,
    lora_query: bool = True,
    lora_key: bool = False,
    lora_value: bool = True,
    lora_projection: bool = False,
    lora_mlp: bool = False,
    lora_head: bool = False,
    lora_target: list[str] | str | None = None,
    lora_rank_pattern: dict[str, int] | None = None,
    lora_alpha_pattern: dict[str, float] | None = None,
    lora_rslora: bool = False,
    lora_dora: bool = False,
    lora_init: Literal["default", "pissa", "pissa-fast"] = "default",
    lora_plus_ratio: float | None = None,
    lora_modules_to_save: list[str] | str | None = None,
    log: LogArgs = LogArgs(),
    eval: EvalArgs = EvalArgs(interval=100, max_new_tokens=100, max_iters=100),
    **inherited: Any,
) -> None:
    """Finetune a model with LoRA: low-rank updates beside frozen weights.

    Args:
        checkpoint_dir: Folder of the model to start from, LitGPT's or Hugging Face's; or one that holds updates only
            (`step-*`, or PEFT's), which are trained on, with their settings.
        lora_r: Rank of the updates.
        lora_alpha: Updates are scaled by lora_alpha / lora_r.
        lora_dropout: Share of an update's input that is dropped in training.
        lora_query: Update the query projection.
        lora_key: Update the key projection.
        lora_value: Update the value projection.
        lora_projection: Update the output projection of the attention.
        lora_mlp: Update the linear layers of the MLPs.
        lora_head: Update the output head.
        lora_target: Update the linear layers that these patterns match, in place of the six switches above, such as
            `attn.query,attn.value,mlp.*`; `*` stands for anything, and `re:` begins a regular expression.
        lora_rank_pattern: Other ranks for some layers, such as `{attn.proj: 16}`.
        lora_alpha_pattern: Other values of lora_alpha for some layers, likewise.
        lora_rslora: Scale by lora_alpha / sqrt(lora_r), so that high ranks learn as fast (rsLoRA).
        lora_dora: Learn the size of each row of the weights beside its direction (DoRA).
        lora_init: How updates start: at zero, or with the largest singular values of the weights (PiSSA; fast:
            approximately).
        lora_plus_ratio: Learning rate of B, as a multiple of A's (LoRA+), such as 16.
        lora_modules_to_save: Train the modules that these patterns match whole, such as `lm_head,wte,norm_*`.
        seed: Of the start of the updates, the order of the samples and dropout.

    Example:
        litgpt finetune_lora HuggingFaceTB/SmolLM2-135M-Instruct --data JSON --data.json_path my_data.jsonl
        litgpt chat out/finetune/lora/final
    """
    arguments = arguments_of(setup, locals())
    from litgpt.finetune.base import finetune
    from litgpt.lora import LoRA

    own = {name.removeprefix("lora_"): arguments.pop(name) for name in list(arguments) if name.startswith("lora_")}
    finetune(LoRA(**own), arguments)

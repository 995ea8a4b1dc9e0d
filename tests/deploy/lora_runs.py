"""Folders as `litgpt finetune_lora` leaves them, without a run."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from litgpt.checkpoint.reader import load_model
from litgpt.checkpoint.writer import save_state
from litgpt.lora import LoRA
from litgpt.model import GPT
from litgpt.peft import owned_state
from litgpt.prompts import save_prompt_style


def make_run(out: Path, base: Path, seed: int, style: str | None = None, **settings: int | bool) -> Path:
    """An update of `base` that changes what it says, by `seed`; `settings` are LoRA's."""
    out.mkdir(parents=True, exist_ok=True)
    method, model = LoRA(**settings), load_model(base, dtype=torch.float32)
    attach_random(model, method, seed)
    save_state(out / "lit_model.pth.lora", owned_state(model, method.owns))
    told = {f"lora_{key}": value for key, value in settings.items()} | {"checkpoint_dir": str(base)}
    (out / "hyperparameters.yaml").write_text(yaml.safe_dump(told))
    if style:
        save_prompt_style(style, out)
    return out


def attach_random(model: GPT, method: LoRA, seed: int) -> None:
    """Puts an update of random values beside the model's weights."""
    method.attach(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if method.owns(name):
                parameter.add_(torch.randn_like(parameter), alpha=0.3)

"""Pretrain, finetune, run and serve language models; the names below are imported when first used."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from litgpt.api import LLM as LLM
    from litgpt.config import Config as Config
    from litgpt.finetune.trainer import Trainer as Trainer
    from litgpt.model import GPT as GPT
    from litgpt.prompts import PromptStyle as PromptStyle
    from litgpt.scripts.validate import CheckpointValidationResult as CheckpointValidationResult
    from litgpt.scripts.validate import estimate_model_memory as estimate_model_memory
    from litgpt.scripts.validate import validate_checkpoint as validate_checkpoint
    from litgpt.tokenizer import Tokenizer as Tokenizer

__version__ = "1.0.0rc1"

_HOME = {
    "LLM": "litgpt.api",
    "GPT": "litgpt.model",
    "Config": "litgpt.config",
    "PromptStyle": "litgpt.prompts",
    "Tokenizer": "litgpt.tokenizer",
    "Trainer": "litgpt.finetune.trainer",
    "CheckpointValidationResult": "litgpt.scripts.validate",
    "validate_checkpoint": "litgpt.scripts.validate",
    "estimate_model_memory": "litgpt.scripts.validate",
}

__all__ = [
    "GPT",
    "LLM",
    "CheckpointValidationResult",
    "Config",
    "PromptStyle",
    "Tokenizer",
    "Trainer",
    "estimate_model_memory",
    "validate_checkpoint",
]


def __getattr__(name: str) -> Any:
    if not name.startswith("_") and find_spec(f"litgpt.{name}"):  # after LitGPT's `import litgpt`, all of it is there
        return import_module(f"litgpt.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'litgpt' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})

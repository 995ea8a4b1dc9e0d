"""Where training samples come from: one small module a source, each imported when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from litgpt.data.base import DataModule, SFTDataset, get_sft_collate_fn
from litgpt.data.lightning_module import lightning
from litgpt.data.registry import MODULES, find_module
from litgpt.data.sft.data_module import SFTModule

if TYPE_CHECKING:
    from litgpt.data.alpaca import Alpaca as Alpaca
    from litgpt.data.alpaca_2k import Alpaca2k as Alpaca2k
    from litgpt.data.alpaca_gpt4 import AlpacaGPT4 as AlpacaGPT4
    from litgpt.data.conversations import Conversations as Conversations
    from litgpt.data.deita import Deita as Deita
    from litgpt.data.flan import FLAN as FLAN
    from litgpt.data.json_data import JSON as JSON
    from litgpt.data.lima import LIMA as LIMA
    from litgpt.data.lit_data import LitData as LitData
    from litgpt.data.longform import LongForm as LongForm
    from litgpt.data.microllama import MicroLlama as MicroLlama
    from litgpt.data.mixture import Mixture as Mixture
    from litgpt.data.openwebtext import OpenWebText as OpenWebText
    from litgpt.data.preferences import Preferences as Preferences
    from litgpt.data.prompts_to_answer import Prompts as Prompts
    from litgpt.data.text_files import TextFiles as TextFiles
    from litgpt.data.tinyllama import TinyLlama as TinyLlama
    from litgpt.data.tinystories import TinyStories as TinyStories
    from litgpt.data.token_files import TokenFiles as TokenFiles

__all__ = ["MODULES", "DataModule", "SFTDataset", "SFTModule", "get_sft_collate_fn", "lightning", *MODULES]


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module 'litgpt.data' has no attribute '{name}'")
    value = globals()[name] = find_module(name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})

"""The data modules by name."""

from __future__ import annotations

from importlib import import_module

from litgpt.data.base import DataModule

MODULES: dict[str, str] = {
    "Alpaca": "litgpt.data.alpaca:Alpaca",
    "Alpaca2k": "litgpt.data.alpaca_2k:Alpaca2k",
    "AlpacaGPT4": "litgpt.data.alpaca_gpt4:AlpacaGPT4",
    "Conversations": "litgpt.data.conversations:Conversations",
    "Deita": "litgpt.data.deita:Deita",
    "FLAN": "litgpt.data.flan:FLAN",
    "JSON": "litgpt.data.json_data:JSON",
    "LIMA": "litgpt.data.lima:LIMA",
    "LitData": "litgpt.data.lit_data:LitData",
    "LongForm": "litgpt.data.longform:LongForm",
    "MicroLlama": "litgpt.data.microllama:MicroLlama",
    "Mixture": "litgpt.data.mixture:Mixture",
    "OpenWebText": "litgpt.data.openwebtext:OpenWebText",
    "Preferences": "litgpt.data.preferences:Preferences",
    "Prompts": "litgpt.data.prompts_to_answer:Prompts",
    "TextFiles": "litgpt.data.text_files:TextFiles",
    "TinyLlama": "litgpt.data.tinyllama:TinyLlama",
    "TinyStories": "litgpt.data.tinystories:TinyStories",
    "TokenFiles": "litgpt.data.token_files:TokenFiles",
}
"""Name as in `--data NAME` -> `module:Class`."""


def find_module(name: str) -> type[DataModule]:
    """The data module that `--data NAME` means, imported when it is asked for; a `KeyError` if there is none."""
    module, _, attribute = MODULES[name].partition(":")
    found: type[DataModule] = getattr(import_module(module), attribute)
    return found

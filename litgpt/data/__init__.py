"""Where training samples come from: one small module a source, each imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from litgpt.data.base import DataModule, SFTDataset, SFTModule, get_sft_collate_fn

if TYPE_CHECKING:
    from litgpt.data.json_data import JSON as JSON
    from litgpt.data.text_files import TextFiles as TextFiles
    from litgpt.data.token_files import TokenFiles as TokenFiles

MODULES: dict[str, str] = {
    "JSON": "litgpt.data.json_data:JSON",
    "TextFiles": "litgpt.data.text_files:TextFiles",
    "TokenFiles": "litgpt.data.token_files:TokenFiles",
}
"""Name as in `--data NAME` -> `module:Class`."""

__all__ = ["MODULES", "DataModule", "SFTDataset", "SFTModule", "get_sft_collate_fn", *MODULES]


def __getattr__(name: str) -> Any:
    if name not in MODULES:
        raise AttributeError(f"module 'litgpt.data' has no attribute {name!r}")
    module, cls = MODULES[name].split(":")
    value = getattr(import_module(module), cls)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *MODULES})

"""What the files of a tokenizer say, besides the vocabulary."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from litgpt.config import read_json
from litgpt.errors import LitGPTError

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_MODEL = "tokenizer.model"
TOKENIZER_CONFIG = "tokenizer_config.json"

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def special_tokens(folder: Path) -> dict[str, str]:
    """The tokens that `tokenizer_config.json`, else `special_tokens_map.json`, names: `{"bos_token": "<s>", …}`."""
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        content = read_json(folder / name) if (folder / name).is_file() else {}
        more = content.get("extra_special_tokens")
        entries = {key: content.get(key) for key in SPECIAL_TOKENS} | (more if isinstance(more, dict) else {})
        for key, token in entries.items():
            text = token.get("content") if isinstance(token, dict) else token
            if isinstance(text, str):
                found.setdefault(key, text)
    return found


def generation_config(folder: Path) -> dict[str, Any]:
    """`generation_config.json`; some were published with a comma too many, which is overlooked."""
    file = folder / "generation_config.json"
    try:
        return optional_json(file)
    except LitGPTError as error:
        try:
            content = json.loads(re.sub(r",(\s*[}\]])", r"\1", file.read_text(encoding="utf-8", errors="replace")))
        except json.JSONDecodeError:
            raise error from None
        return content if isinstance(content, dict) else {}


def optional_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file; an empty one where there is no file."""
    return read_json(file) if file.is_file() else {}

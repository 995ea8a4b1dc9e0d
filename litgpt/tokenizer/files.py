"""What the files of a tokenizer say, besides the vocabulary."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from litgpt.errors import LitGPTError
from litgpt.reading import optional_json, read_text, reading

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_MODEL = "tokenizer.model"
TOKENIZER_CONFIG = "tokenizer_config.json"

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def special_tokens(folder: Path) -> dict[str, str]:
    """The tokens that `tokenizer_config.json`, else `special_tokens_map.json`, names: `{"bos_token": "<s>", …}`."""
    found: dict[str, str] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        content = optional_json(folder / name)
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
        content = None
        with suppress(LitGPTError), reading(file, "no JSON"):
            content = json.loads(re.sub(r",(\s*[}\]])", r"\1", read_text(file, "no JSON file")))
        if not isinstance(content, dict):
            raise error from None
        return content

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
    """The special tokens that have a name: `{"bos_token": "<s>", …}`."""
    return {key: _content(token) for key, token in _named(_settings(folder)).items()}


def added_tokens(folder: Path) -> list[dict[str, Any]]:
    """The tokens that any of the files adds to a vocabulary, in the order in which `transformers` does.

    Each has its `content`, whether it is `special`, how it is matched (`lstrip`, `rstrip`, `single_word`,
    `normalized`), and `id` where a file gives one.
    """
    settings = _settings(folder)
    named, listed = _named(settings), settings.get("extra_special_tokens") or settings.get("additional_special_tokens")
    others = listed if isinstance(listed, list) else []
    own = {_content(token) for token in named.values()}
    # `transformers` doesn't look into the tables of the settings here, and so matches such a token in normalized text.
    plain = [token for token in [*(named.get(key) for key in SPECIAL_TOKENS), *others] if "__type" not in (token or "")]
    standard = {_content(token) for token in plain}
    found = [
        {**token, "id": index, "special": bool(token.get("special")) or _content(token) in own}
        for index, token in sorted(_numbered(folder, settings, standard).items())
    ]
    known = {token["content"] for token in found}
    for token in [*named.values(), *others]:
        if (content := _content(token)) and content not in known:
            known.add(content)
            found.append({**(token if isinstance(token, dict) else {}), "content": content, "special": True})
    return found


def _settings(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json`; `special_tokens_map.json` comes before it where it lists no added tokens itself."""
    settings = optional_json(folder / TOKENIZER_CONFIG)
    older = {} if "added_tokens_decoder" in settings else optional_json(folder / "special_tokens_map.json")
    return {**settings, **{key: value for key, value in older.items() if value}}


def _named(settings: dict[str, Any]) -> dict[str, Any]:
    """The special tokens by name, a text or a table each; models add names of their own (`image_token`)."""
    more = settings.get("extra_special_tokens")
    own = {key: token for key, token in settings.items() if key.endswith("_token") and isinstance(token, str)}
    named = {key: settings.get(key) for key in SPECIAL_TOKENS} | own | (more if isinstance(more, dict) else {})
    return {key: token for key, token in named.items() if _content(token)}


def _numbered(folder: Path, settings: dict[str, Any], special: set[str]) -> dict[int, dict[str, Any]]:
    """The added tokens that have ids of their own."""
    if "added_tokens_decoder" in settings:
        listed = settings["added_tokens_decoder"] or {}
        return {int(index): token for index, token in listed.items() if _content(token)}
    older = optional_json(folder / "added_tokens.json")
    return {
        int(index): {"content": token, "special": token in special, "normalized": token not in special}
        for token, index in older.items()
    }


def _content(token: Any) -> str:
    """A token's text; empty where it is none."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


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

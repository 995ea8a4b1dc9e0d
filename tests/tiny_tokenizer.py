"""A small tokenizer: characters are tokens, `<s>` opens a text, `</s>` ends one; with a chat template."""

from __future__ import annotations

import string
from pathlib import Path

from litgpt.tokenizer import char_tokenizer, save_tokenizer

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
SIZE = len(string.printable) + 2
"""Ids it has."""


def write_tokenizer(folder: Path) -> Path:
    """Puts its files into `folder`."""
    processor = char_tokenizer(string.printable)
    processor.add_special_tokens(["<s>", "</s>"])
    tokens = dict(bos_token="<s>", eos_token="</s>", add_bos_token=True)
    save_tokenizer(processor, folder, **tokens, chat_template=CHAT_TEMPLATE)
    return folder

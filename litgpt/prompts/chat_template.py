"""A tokenizer's own chat template: Jinja text that came with a checkpoint, rendered as `transformers` renders it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from litgpt.errors import LitGPTError, one_line, quoted
from litgpt.prompts.base import Message
from litgpt.prompts.rendering import TemplateFailure, ask
from litgpt.reading import optional_json, read_text, reading

MAX_TEMPLATE = 1_000_000
RESERVED_VARIABLES = ("messages", "add_generation_prompt", "self")
"""Variables that every template is given."""
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which messages carry their reasoning; templates read the first, gpt-oss' the second."""


def read_templates(folder: Path) -> dict[str, str]:
    """The chat templates of a folder by name, `default` among them; empty when it has none.

    `chat_template.jinja` and `additional_chat_templates/` come before `chat_template.json` and `tokenizer_config.json`.
    """
    if (folder / "chat_template.jinja").exists():
        others = sorted((folder / "additional_chat_templates").glob("*.jinja"))
        files = {"default": folder / "chat_template.jinja"} | {file.stem: file for file in others}
        return {name: read_text(file, "no chat template") for name, file in files.items()}
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = optional_json(folder / name).get("chat_template")
        if found:
            with reading(folder / name, "no JSON file with a chat template"):
                return _by_name(found)
    return {}


def _by_name(found: Any) -> dict[str, str]:
    """What `chat_template` says: a text, a table, or a list of names with texts."""
    if isinstance(found, str):
        return {"default": found}
    named = {entry["name"]: entry["template"] for entry in found} if isinstance(found, list) else dict(found)
    if not all(isinstance(text, str) for text in (*named, *named.values())):
        raise TypeError("a template or its name is no text")
    return named


@dataclass(frozen=True)
class Template:
    """A chat template, ready to render.

    Raises:
        LitGPTError: It is no Jinja template.
    """

    source: str
    """Its Jinja text."""
    tokens: Mapping[str, str]
    """The special tokens it may name (`bos_token`, …)."""
    where: str
    """What an error says about where it came from."""

    def __post_init__(self) -> None:
        if len(self.source) > MAX_TEMPLATE:
            raise LitGPTError(f"{self.where} has {len(self.source)} characters, more than any chat template.")
        try:
            _check_syntax(self.source)
        except TemplateFailure as error:
            raise LitGPTError(f"{self.where} is no Jinja template: {error}.") from None

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False, **variables: Any) -> str:
        """The text of a conversation.

        Args:
            messages: The conversation; keys whose value is None count as absent.
            add_generation_prompt: Go on to where the assistant's next answer begins.
            variables: What else the template reads: `tools`, `documents`, `enable_thinking` …

        Raises:
            LitGPTError: No message, or the template refuses the conversation or misbehaves.
        """
        return self.render_with_spans(messages, add_generation_prompt=add_generation_prompt, **variables)[0]

    def render_with_spans(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = False, **variables: Any
    ) -> tuple[str, list[tuple[int, int]]]:
        """`render`'s text, and where in it the assistant's words stand: characters `[start, end)`.

        That is what the template has inside `{% generation %}` blocks; few templates have any.
        """
        if not messages:
            raise LitGPTError("A conversation needs at least one message.")
        given = {"tools": None, "documents": None} | variables
        try:
            context = {
                **self.tokens,
                **{key: _plain(value) for key, value in given.items()},
                "messages": [_message(message) for message in messages],
                "add_generation_prompt": add_generation_prompt,
            }
            found = ask(self.source, context)
        except (TemplateFailure, RecursionError) as error:
            raise LitGPTError(f"{self.where} refuses this conversation: {one_line(error)}.") from None
        return found["text"], [(start, end) for start, end in found["spans"]]


def check_variables(given: Any, where: str) -> None:
    """Raises a LitGPTError where `given` is not what data may say to a chat template; `where` names it."""
    if not isinstance(given, Mapping):
        raise LitGPTError(f"{where} is an object with what the chat template reads.")
    if taken := [name for name in RESERVED_VARIABLES if name in given]:
        raise LitGPTError(f"{where} has {quoted(taken[0])}, which is not for the data to say.")


@lru_cache(maxsize=32)
def _check_syntax(source: str) -> None:
    ask(source, None)


def _message(message: Any) -> dict[str, Any]:
    """A message as templates see it: plain, without empty entries, its reasoning under every name in use."""
    if not isinstance(message, Mapping):
        raise LitGPTError(f"A message is a table with `role` and `content`, not {quoted(message)}.")
    plain = {key: _plain(value) for key, value in message.items() if value is not None}
    reasoning = next((plain[key] for key in REASONING if key in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """`value` made of str, int, float, bool, None, list, tuple and dict alone: a template may call what it reaches."""
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value) if type(value) is not kind else value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else [_plain(item) for item in value]
    return f"<{type(value).__name__}>"

"""The prompt style of a checkpoint folder: chosen, read and written."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from litgpt.errors import LitGPTError, quoted
from litgpt.prompts.base import PromptStyle, by_path, public_path
from litgpt.prompts.chat_template import read_templates
from litgpt.prompts.styles import ChatTemplate
from litgpt.reading import read_yaml, reading

if TYPE_CHECKING:
    from litgpt.config import Config

PROMPT_STYLE_FILE = "prompt_style.yaml"
ADVICE = "it should read `class_path: litgpt.prompts.Alpaca`, say"


def prompt_style_for(checkpoint_dir: str | Path, config: Config) -> PromptStyle:
    """The style that a checkpoint is prompted with.

    What it was finetuned with (`prompt_style.yaml`), else its tokenizer's own template, else what its family knows for
    its name, else the prompt as it is.
    """
    if has_prompt_style(checkpoint_dir):
        return load_prompt_style(checkpoint_dir)
    if read_templates(Path(checkpoint_dir)):
        return ChatTemplate(checkpoint_dir)
    return PromptStyle.from_config(config)


def save_prompt_style(style: str | PromptStyle, checkpoint_dir: str | Path) -> None:
    """Write `prompt_style.yaml`. For `ChatTemplate` it is the template that is written, if the folder hasn't got it."""
    import yaml

    folder = Path(checkpoint_dir)
    style = PromptStyle.from_name(style) if isinstance(style, str) else style
    if isinstance(style, ChatTemplate):
        (folder / PROMPT_STYLE_FILE).unlink(missing_ok=True)
        source = style.template().source if style.templates else None
        if source is not None and read_templates(folder).get("default") != source:
            (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
        return
    content: dict[str, Any] = {"class_path": public_path(type(style))}
    if settings := style.settings():
        content["init_args"] = settings
    (folder / PROMPT_STYLE_FILE).write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")


def load_prompt_style(checkpoint_dir: str | Path) -> PromptStyle:
    """The style that `prompt_style.yaml` names: one of this module, or one of the user's that is imported already.

    Nothing is imported because a checkpoint says so.

    Raises:
        LitGPTError: Not YAML, or no such style.
    """
    file = Path(checkpoint_dir) / PROMPT_STYLE_FILE
    content = read_yaml(file, "no prompt style", ADVICE)
    with reading(file, "no prompt style", ADVICE):
        path, arguments = content["class_path"], content.get("init_args") or {}
        if not isinstance(path, str) or path not in by_path:
            raise LitGPTError(
                f"{file} names no prompt style that is known here ({quoted(path)}); import a style of your own before "
                "loading it."
            )
        return by_path[path](**arguments).for_checkpoint(checkpoint_dir)


def has_prompt_style(checkpoint_dir: str | Path) -> bool:
    """Whether the folder holds a `prompt_style.yaml`."""
    return (Path(checkpoint_dir) / PROMPT_STYLE_FILE).exists()

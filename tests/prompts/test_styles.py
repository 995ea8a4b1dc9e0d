"""Prompt styles: LitGPT's texts to the byte, conversations, where answers stop, which style a checkpoint gets."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import litgpt.prompts
from litgpt.config import Config
from litgpt.errors import LitGPTError
from litgpt.prompts import (
    ChatML,
    ChatTemplate,
    Default,
    Llama3,
    PromptStyle,
    has_prompt_style,
    load_prompt_style,
    prompt_style_for,
    prompt_styles,
    save_prompt_style,
)
from litgpt.tokenizer import Tokenizer
from tests import tokenizers_made_here as made
from tests.paths import GOLDEN

STYLES: dict[str, dict[str, str]] = json.loads((GOLDEN / "prompt_styles.json").read_text(encoding="utf-8"))
BY_MODEL: dict[str, list[str]] = json.loads((GOLDEN / "prompt_style_by_model.json").read_text(encoding="utf-8"))
MISTAKES = {
    "CodeLlama-34b-Instruct-hf": "CodeLlama",  # LitGPT's pattern for Llama 3 finds "Llama-34b"
    **{
        name: "OLMo" for name in BY_MODEL["Llama3"] if name.startswith("OLMo-2")
    },  # Llama 3's tokens are not in its vocabulary
}
"""Where LitGPT's choice is wrong, and ours."""

SYSTEM = {"role": "system", "content": "Be brief."}
CHAT = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "What is 2+2?"},
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a chat template whose EOS is not what ends an answer there."""
    settings = {"chat_template": CHAT_TEMPLATE, "bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return made.byte_level(tmp_path_factory.mktemp("chat"), **settings)


# -------------------------------------------------------------------------------------------- texts


@pytest.mark.parametrize("name", STYLES)
def test_litgpts_texts_are_ours(name):
    style, expected = PromptStyle.from_name(name), STYLES[name]
    assert type(style) is getattr(litgpt.prompts, expected["class"])
    assert style.apply("What is 2+2?") == expected["plain"]
    assert style.apply("What is 2+2?", sys_prompt="") == expected["plain"]
    assert style.apply("Translate to French.", input="Good morning") == expected["with_input"]
    with_system = expected["with_system"].replace("Be brief.###", "Be brief.\n\n###")  # which LitGPT joins
    assert style.apply("What is 2+2?", sys_prompt="Be brief.") == with_system
    if "chat" in expected:
        assert style.apply([SYSTEM, *CHAT]) == expected["chat"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Default", "Q"),
        ("default", "Q"),
        ("Falcon3", "<|user|>\nQ<|endoftext|>\n<|assistant|>\n"),
        ("R1Base", "<｜User｜>Q<｜Assistant｜>"),
        ("ChatML", "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_styles_litgpt_has_no_name_for_have_one_here(name, text):
    assert PromptStyle.from_name(name).apply("Q") == text


def test_an_unknown_style_names_the_closest():
    with pytest.raises(LitGPTError, match=r"Unknown prompt style 'lama3'. Closest: llama3"):
        PromptStyle.from_name("lama3")


def test_chatml_takes_a_system_message():
    assert ChatML("Be kind.").apply("Q") == ChatML().apply("Q", sys_prompt="Be kind.")
    assert ChatML("Be kind.").system_message == "Be kind."


@pytest.mark.parametrize("name", [*STYLES, "default"])
@pytest.mark.parametrize("prompt", ["{prompt} {0} {", "%s %d", "\\n", "{{ bos_token }}"])
def test_prompts_are_never_read_as_templates(name, prompt):
    assert prompt in PromptStyle.from_name(name).apply(prompt, sys_prompt="{text} {x}")


@pytest.mark.parametrize("name", [*STYLES, "default"])
def test_no_key_of_a_sample_is_in_the_way(name):
    """LitGPT crashes on the key `prompt`."""
    sample = {"instruction": "Q", "input": "", "output": "A", "prompt": "no", "self": 1, "id": None, "sys_prompt": None}
    style = PromptStyle.from_name(name)
    assert style.apply_sample(sample) == style.apply("Q")


def test_a_samples_input_and_system_message_are_used():
    sample = {"instruction": "Q", "input": "I", "sys_prompt": "S", "output": "A"}
    style = PromptStyle.from_name("alpaca")
    assert style.apply_sample(sample) == style.apply("Q", input="I", sys_prompt="S")


# -------------------------------------------------------------------------------------------- conversations


@pytest.mark.parametrize("name", [*STYLES, "default", "falcon3", "r1", "chatml"])
def test_every_style_writes_a_conversation(name):
    style = PromptStyle.from_name(name)
    text = style.apply_messages([SYSTEM, *CHAT])
    assert text.startswith(style.apply("Hi", sys_prompt="Be brief."))
    assert text.index("Hi") < text.index("Hello!") < text.index("What is 2+2?")
    assert text.endswith(style.reply)
    assert style.apply_messages(CHAT[:1]) == style.apply("Hi")
    without = style.apply_messages(CHAT, add_generation_prompt=False)
    assert without + style.reply == style.apply_messages(CHAT)


def test_an_answer_is_closed_as_the_model_closes_it():
    assert "Hello!<|im_end|>\n<|im_start|>user" in PromptStyle.from_name("qwen3").apply_messages(CHAT)
    assert "Hello!<end_of_turn>\n<start_of_turn>user" in PromptStyle.from_name("gemma").apply_messages(CHAT)
    assert "Hello!<｜end▁of▁sentence｜><｜User｜>" in PromptStyle.from_name("r1").apply_messages(CHAT)


def test_a_system_prompt_goes_before_messages():
    assert Llama3().apply(CHAT, sys_prompt="Be brief.") == STYLES["llama3"]["chat"]
    assert Llama3().apply([SYSTEM, *CHAT], sys_prompt="No.") == STYLES["llama3"]["chat"]


def test_text_parts_are_joined():
    message = {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "2+2?"}]}
    assert Llama3().apply_messages([message]) == Llama3().apply("What is 2+2?")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        ([{"content": "no role"}], "`role` and `content`"),
        (["text"], "`role` and `content`"),
        ([*CHAT, {"role": "tool", "content": "4"}], "not 'tool'"),
        ([*CHAT, SYSTEM], "not 'system'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "other than text"),
    ],
)
def test_a_conversation_that_cannot_be_written_is_one_sentence(messages, message):
    with pytest.raises(LitGPTError, match=message):
        Llama3().apply_messages(messages)


def test_tools_need_the_tokenizers_own_template():
    with pytest.raises(LitGPTError, match="Llama3 has no place for tools"):
        Llama3().apply_messages(CHAT, tools=[{"type": "function"}])


class Shouted(PromptStyle):
    """A user's own style, LitGPT's way."""

    def apply(self, prompt: Any, *, sys_prompt: str | None = None, **kwargs: Any) -> str:
        return f"{(sys_prompt or '').upper()}{prompt.upper()}"


def test_a_style_of_ones_own_needs_apply_alone():
    assert Shouted().apply_messages([SYSTEM, CHAT[0]]) == "BE BRIEF.HI"
    with pytest.raises(LitGPTError, match="single prompts, not conversations"):
        Shouted().apply_messages(CHAT)


# -------------------------------------------------------------------------------------------- where answers stop


class Vocabulary:
    """As much of a tokenizer as `stop_tokens` asks for."""

    stop_ids = (99, 98)

    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens

    def token_to_id(self, token: str) -> int:
        if token not in self.tokens:
            raise LitGPTError(f"no token {token!r}")
        return self.tokens.index(token)


@pytest.mark.parametrize(
    ("name", "tokens", "expected"),
    [
        ("default", (), ()),
        ("gemma", ("<end_of_turn>",), ([0],)),
        ("phi-3", ("<|end|>",), ([0],)),
        ("phi-4", ("<|im_end|>",), ([0],)),
        ("phi-4-mini", ("<|end|>",), ([0],)),
        ("llama3", ("<|eot_id|>",), ([0],)),
        ("qwen2.5", ("<|im_end|>",), ([0],)),
        ("tinyllama", ("</s>",), ([0],)),
        ("r1", ("<｜end▁of▁sentence｜>",), ([0],)),
        ("falcon", ("User", ":", "Ċ"), ([0, 1], [2, 0])),
        ("phi-1", ("Answer", ":", "Ċ"), ([0, 1], [2, 0, 1])),
        ("stablelm-alpha", ("<|SYSTEM|>", "<|ASSISTANT|>", "<|USER|>"), ([0], [1], [2])),
    ],
)
def test_an_answer_stops_at_the_tokenizers_ends_and_the_styles(name, tokens, expected):
    style: Any = PromptStyle.from_name(name)
    assert style.stop_tokens(Vocabulary(*tokens)) == ([99], [98], *expected)


@pytest.mark.parametrize("name", prompt_styles)
def test_a_stop_token_the_vocabulary_lacks_does_not_count(name):
    """LitGPT's `chat` fails with OLMo 2 for it."""
    style: Any = PromptStyle.from_name(name)
    assert style.stop_tokens(Vocabulary()) == ([99], [98])


def test_what_the_template_puts_after_an_answer_stops_it(folder):
    tokenizer = Tokenizer(folder)
    assert ChatTemplate(folder).stop_tokens(tokenizer) == ([tokenizer.eos_id], [tokenizer.token_to_id("<|im_end|>")])


# -------------------------------------------------------------------------------------------- which style


@pytest.mark.parametrize("name", [name for names in BY_MODEL.values() for name in names])
def test_a_named_model_has_litgpts_style(name):
    golden = next(style for style, names in BY_MODEL.items() if name in names)
    assert type(PromptStyle.from_config(Config.from_name(name))).__name__ == MISTAKES.get(name, golden)


def test_every_other_model_litgpt_names_has_the_default_style():
    golden = json.loads((GOLDEN / "configs.json").read_text(encoding="utf-8"))["configs"]
    others = set(golden) - {name for names in BY_MODEL.values() for name in names}
    assert len(others) == 66
    assert {type(PromptStyle.from_config(Config.from_name(name))) for name in others} == {Default}


def test_a_checkpoint_is_prompted_as_it_was_finetuned_else_as_its_tokenizer_says_else_by_family(folder, tmp_path):
    config = Config.from_name("pythia-14m")
    assert isinstance(prompt_style_for(tmp_path, config), Default)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert isinstance(prompt_style_for(tmp_path, config), ChatTemplate)
    save_prompt_style("alpaca", tmp_path)
    assert isinstance(prompt_style_for(tmp_path, config), litgpt.prompts.Alpaca)


# -------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", [name for name in prompt_styles if name != "chat"])
def test_a_saved_style_is_the_same_when_loaded(tmp_path, name):
    assert not has_prompt_style(tmp_path)
    save_prompt_style(name, tmp_path)
    assert has_prompt_style(tmp_path)
    content = yaml.safe_load((tmp_path / "prompt_style.yaml").read_text())
    assert content == {"class_path": f"litgpt.prompts.{prompt_styles[name].__name__}"}
    assert type(load_prompt_style(tmp_path)) is prompt_styles[name]


def test_a_styles_arguments_are_kept(tmp_path):
    """LitGPT loses them."""
    save_prompt_style(ChatML("Sé amable."), tmp_path)
    assert load_prompt_style(tmp_path).apply("Q") == ChatML("Sé amable.").apply("Q")


def test_the_tokenizers_template_is_saved_as_such(folder, tmp_path):
    save_prompt_style("alpaca", tmp_path)
    save_prompt_style(ChatTemplate(folder), tmp_path)
    assert not has_prompt_style(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == CHAT_TEMPLATE


def test_a_template_that_is_there_is_not_written_again(folder, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    save_prompt_style(ChatTemplate(folder), tmp_path)
    assert not (tmp_path / "chat_template.jinja").exists()


def test_a_checkpoint_imports_nothing(tmp_path):
    """LitGPT imports and calls whatever the file says."""
    (tmp_path / "evil_style.py").write_text("raise SystemExit('imported')")
    (tmp_path / "prompt_style.yaml").write_text("class_path: evil_style.Style\n")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(LitGPTError, match="names no prompt style that is known here"):
            load_prompt_style(tmp_path)
    finally:
        sys.path.remove(str(tmp_path))
    assert "evil_style" not in sys.modules


def test_a_style_of_ones_own_loads_once_it_is_imported(tmp_path):
    save_prompt_style(Shouted(), tmp_path)
    assert type(load_prompt_style(tmp_path)) is Shouted


@pytest.mark.parametrize(
    "content",
    [
        "class_path: os.system",
        "class_path: litgpt.prompts.PromptStyles",
        "class_path: litgpt.prompts.Path",
        "class_path: [1]",
        "class_path: litgpt.prompts.Alpaca\ninit_args: {x: 1}",
        "",
        "- a",
        "{",
        "!!python/object/apply:os.system ['true']",
    ],
)
def test_a_bad_file_is_one_sentence(tmp_path, content):
    (tmp_path / "prompt_style.yaml").write_text(content)
    with pytest.raises(LitGPTError, match=r"prompt_style.yaml (is no|names no) prompt style"):
        load_prompt_style(tmp_path)

"""Chat templates: the text `transformers` gives, from wherever a folder has them, and one sentence when they refuse."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from litgpt.errors import LitGPTError
from litgpt.prompts import ChatTemplate, PromptStyle
from litgpt.prompts.chat_template import Template, read_templates
from litgpt.tokenizer.files import special_tokens

SYSTEM = {"role": "system", "content": "Be brief.\nIn <English> & no other."}
USER = {"role": "user", "content": '  Hi "there" 😀 '}
ANSWER = {"role": "assistant", "content": "Hello!\n"}
QUESTION = {"role": "user", "content": "What is 2+2?"}
REASONED = {"role": "assistant", "content": "4", "reasoning_content": "Two and two."}
THOUGHT = {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\n4"}
CALL = {"id": "abcdef123", "type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": 2}}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "abcdef123", "name": "add", "content": "4"}
NUMBER = {"type": "number", "description": "One é."}
PARAMETERS = {"type": "object", "properties": {"a": NUMBER, "b": NUMBER}, "required": ["a", "b"]}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": PARAMETERS}}]
PARTS = {"role": "user", "content": [{"type": "text", "text": "hey"}]}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ANSWER, QUESTION],
    "answered": [USER, ANSWER, QUESTION, THOUGHT],
    "reasoned": [USER, REASONED, QUESTION],
    "tools": [SYSTEM, QUESTION, CALLING, RESULT],
    "parts": [PARTS],
    "assistant first": [ANSWER, USER],
    "two systems": [SYSTEM, SYSTEM, USER],
}
CHATML = (
    "{% for m in messages %}\n    {% if m.role == 'assistant' %}\n{% generation %}{{ m.content }}{% endgeneration %}\n"
    "    {% else %}\n[{{ m.role }}]{{ m.content }}\n    {% endif %}\n{% endfor %}\n"
    "{% if add_generation_prompt %}>{% endif %}"
)


def template(source: str, **tokens: str) -> Template:
    return Template(source, tokens, "The template")


# -------------------------------------------------------------------------------------------- as transformers


@pytest.fixture(scope="module")
def peer(shared_assets: Path) -> Any:
    """A tokenizer of `transformers`, to render with."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared_assets / "models" / "stories260k")


def rendered(render: Callable[[], str], errors: type[Exception]) -> str | None:
    """The text, or None where it is refused."""
    try:
        return render()
    except errors:
        return None


def asked_of(name: str) -> list[dict[str, Any]]:
    """The ways to render a conversation: with and without a prompt for the answer, with and without tools.

    `functions` and `datetime` are what one of the templates reads instead of tools.
    """
    tools = (TOOLS,) if name == "tools" else (None, TOOLS)
    more = {"functions": json.dumps(TOOLS), "datetime": "Monday"}
    return [dict(add_generation_prompt=prompt, tools=given, **more) for prompt in (False, True) for given in tools]


@pytest.mark.parametrize("number", range(70))
def test_a_real_template_gives_the_text_of_transformers(shared_assets, peer, number):
    file = sorted((shared_assets / "chat_templates").glob("*.jinja"))[number]
    source = file.read_text(encoding="utf-8")
    ours = Template(source, peer.special_tokens_map, file.name)
    theirs = partial(peer.apply_chat_template, chat_template=source, tokenize=False)
    expected, found = [], []
    for name, messages in CONVERSATIONS.items():
        for asked in asked_of(name):
            expected.append((name, rendered(partial(theirs, messages, **asked), Exception)))
            found.append((name, rendered(partial(ours.render, messages, **asked), LitGPTError)))
    assert found == expected
    assert any(text for _, text in expected)


def test_the_places_of_the_assistants_words_are_those_of_transformers(peer):
    messages = CONVERSATIONS["answered"]
    text, spans = template(CHATML).render_with_spans(messages)
    assert [text[start:end] for start, end in spans] == [ANSWER["content"], THOUGHT["content"]]
    assert text == template(CHATML).render(messages)
    theirs = peer.apply_chat_template(
        messages, chat_template=CHATML, return_dict=True, return_assistant_tokens_mask=True
    )
    assert sum(theirs["assistant_masks"]) > 0
    assert peer.apply_chat_template(messages, chat_template=CHATML, tokenize=False) == text


def test_a_folder_written_by_transformers_gives_its_text(peer, tmp_path):
    source = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content | trim }}{{ eos_token }}\n{% endfor %}"
    peer.chat_template = source
    peer.save_pretrained(tmp_path)
    expected = peer.apply_chat_template([SYSTEM, USER], tokenize=False)
    assert ChatTemplate(tmp_path).apply(USER["content"], sys_prompt=SYSTEM["content"]) == expected


# -------------------------------------------------------------------------------------------- what templates see


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ messages[0].content }}", USER["content"]),
        ("{{ bos_token }}|{{ eos_token }}|{{ pad_token }}", "<s>|</s>|"),
        ("{{ messages|length }}{{ tools is none }}{{ documents is none }}", "1TrueTrue"),
        ("{{ {'b': 1, 'a': '<é>'}|tojson }}", '{"b": 1, "a": "<é>"}'),
        ("{{ {'b': 1, 'a': 2}|tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{% for a in 'ab' %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{% endfor %}", "1False22True2"),
        ("{% set ns = namespace(x=1) %}{% set ns.x = ns.x + 1 %}{{ ns.x }}{{ dict(a=1).a }}", "21"),
        ("{% set x = ('a' ~ 1 ~ none)[1:] * 2 %}{{ x.replace('N', 'n') }}", "1none1none"),
        ("{{ '%s-%d' % ('a', 3) }}{{ '{:>3}'.format(7) }}{{ ['x', 'y']|join(', ') }}", "a-3  7x, y"),
        ("{% macro f(n) %}{{ n }}{% if n %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(2) }}", "210"),
        ("{{ strftime_now('%Y')|length }}", "4"),
        ("{{ missing }}{{ missing is defined }}", "False"),
    ],
)
def test_what_a_template_can_say(source, expected):
    assert template(source, bos_token="<s>", eos_token="</s>").render([USER]) == expected


def test_reasoning_goes_by_every_name():
    source = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }}"
    for name in ("reasoning_content", "thinking", "reasoning"):
        assert template(source).render([{"role": "assistant", name: "so"}]) == "so so"


def test_further_variables_reach_the_template():
    assert template("{{ enable_thinking }}").render([USER], enable_thinking=False) == "False"


def test_a_template_sees_plain_data_only():
    class Text(str):
        def secret(self) -> str:
            return "no"

    class Thing:
        value = "no"

    seen = template("{{ messages[0].content.secret }}{{ messages[0].thing }}")
    assert seen.render([{"role": "user", "content": Text("x"), "thing": Thing()}]) == "<Thing>"


# -------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('Only users may speak.') }}", "refuses this conversation: Only users may speak."),
        ("{{ messages[7].content + 'x' }}", "refuses this conversation"),
        ("{{ 1 / 0 }}", "refuses this conversation: division by zero"),
        ("{% include 'other' %}", "refuses this conversation"),
    ],
)
def test_a_refusal_is_one_sentence(source, message):
    with pytest.raises(LitGPTError, match=message) as raised:
        template(source).render([USER])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ 'a'|nofilter }}", "{% endif %}", "{{" + "(" * 5000 + ")" * 5000 + "}}"]
)
def test_a_broken_template_is_one_sentence(source):
    with pytest.raises(LitGPTError, match="The template is no Jinja template"):
        template(source)


@pytest.mark.parametrize("messages", [[], ["text"]])
def test_a_conversation_that_is_none_is_one_sentence(messages):
    with pytest.raises(LitGPTError, match=r"at least one message|`role` and `content`"):
        template("{{ messages }}").render(messages)


# -------------------------------------------------------------------------------------------- where folders have them


def write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


A, B = {"chat_template": "a"}, {"chat_template": "b"}
NAMED = {"chat_template": [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "t"}]}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {}),
        ({"tokenizer_config.json": {"chat_template": None}}, {}),
        ({"tokenizer_config.json": A}, {"default": "a"}),
        ({"tokenizer_config.json": A, "chat_template.json": B}, {"default": "b"}),
        ({"tokenizer_config.json": A, "chat_template.jinja": "c"}, {"default": "c"}),
        ({"tokenizer_config.json": NAMED}, {"default": "a", "tool_use": "t"}),
        (
            {"chat_template.jinja": "c", "additional_chat_templates/tool_use.jinja": "t"},
            {"default": "c", "tool_use": "t"},
        ),
    ],
)
def test_a_folders_templates(tmp_path, files, expected):
    assert read_templates(write(tmp_path, files)) == expected


def test_a_folders_special_tokens(tmp_path):
    settings = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "pad_token": None, "add_bos_token": True}
    others = {"eos_token": "<no>", "unk_token": "<unk>"}
    write(tmp_path, {"tokenizer_config.json": settings, "special_tokens_map.json": others})
    # The second file wins where the first lists no added tokens, as in transformers.
    assert special_tokens(tmp_path) == {"bos_token": "<s>", "eos_token": "<no>", "unk_token": "<unk>"}
    write(tmp_path, {"tokenizer_config.json": {**settings, "added_tokens_decoder": {}}})
    assert special_tokens(tmp_path) == {"bos_token": "<s>", "eos_token": "</s>"}


def test_the_style_renders_the_folders_template(tmp_path):
    turns = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    source = "{{ bos_token }}" + turns + "{{ '>' if add_generation_prompt }}"
    write(tmp_path, {"tokenizer_config.json": {"chat_template": source, "bos_token": "<s>"}})
    style = PromptStyle.from_name("chat").for_checkpoint(tmp_path)
    assert style.adds_bos
    assert style.apply("Hi") == "<s>[user]Hi>"
    assert style.apply("Hi", sys_prompt="S", input="I", other=1) == "<s>[system]S[user]Hi\n\nI>"
    assert style.apply([USER], sys_prompt="S") == f"<s>[system]S[user]{USER['content']}>"
    assert style.apply_messages([QUESTION], add_generation_prompt=False) == "<s>[user]What is 2+2?"


def test_tools_go_to_the_template_for_tools(tmp_path):
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools[0].function.name }}"}]
    style = ChatTemplate(write(tmp_path, {"tokenizer_config.json": {"chat_template": named}}))
    assert (style.apply_messages([USER]), style.apply_messages([USER], tools=TOOLS)) == ("plain", "add")


def test_templates_without_a_default_one_are_named(tmp_path):
    named = [{"name": "rag", "template": "x"}, {"name": "agent", "template": "x"}]
    style = ChatTemplate(write(tmp_path, {"tokenizer_config.json": {"chat_template": named}}))
    with pytest.raises(LitGPTError, match="chat templates agent, rag and no default one"):
        style.apply("Hi")


def test_chat_without_a_template_is_one_sentence(tmp_path):
    with pytest.raises(LitGPTError, match="has no chat template; choose a prompt style: alpaca"):
        PromptStyle.from_name("chat").for_checkpoint(tmp_path)
    with pytest.raises(LitGPTError, match="no checkpoint is given"):
        PromptStyle.from_name("chat").apply("Hi")


def test_a_template_from_text():
    assert ChatTemplate.from_source("{{ bos_token }}{{ messages[0].content }}", bos_token="<s>").apply("Hi") == "<s>Hi"


def test_what_is_nested_too_deeply_is_refused_in_a_sentence() -> None:
    deep: dict[str, Any] = {}
    for _ in range(sys.getrecursionlimit()):
        deep = {"a": deep}
    style = ChatTemplate.from_source("{{ messages[0].content }}")
    with pytest.raises(LitGPTError, match="refuses this conversation: it is nested too deeply"):
        style.apply_messages([{"role": "user", "content": "q"}], tools=[deep])

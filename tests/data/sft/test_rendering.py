"""Which words of a conversation are learned: marks, prefix differences, styles, and templates that don't tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from litgpt.data.sft.encoding import Encoder
from litgpt.data.sft.formats import Conversation, parse_conversation
from litgpt.data.sft.rendering import Renderer
from litgpt.errors import LitGPTError
from litgpt.prompts import ChatTemplate, PromptStyle
from litgpt.tokenizer import Tokenizer
from tests.paths import ROOT

TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "2?"},
    {"role": "assistant", "content": "4"},
]
CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<end>"
    "{% endgeneration %}{% else %}{{ m.content }}<end>{% endif %}{% endfor %}"
)
KEEPS_REASONING_OF_THE_LAST = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' and loop.last %}<think>"
    "{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
OPENS_REASONING = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)
ALWAYS_PROMPTS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<end>{% endfor %}<|assistant|>"
BACKWARDS = (
    "{% for m in messages|reverse %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ALWAYS_DIFFERENT = (
    "{% for m in messages %}{{ messages|length }}{{ m.role }}: {{ m.content }}{{ messages|length }}{% endfor %}"
)


def learned(source: str, messages: list[dict[str, Any]], turns: str = "all") -> list[str]:
    """The words that are learned of a conversation in a template."""
    part = Renderer(ChatTemplate.from_source(source), turns).render(parse_conversation({"messages": messages})).parts[0]
    assert not isinstance(part.target, bool)
    return [part.text[start:end] for start, end in part.target]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (CHATML, ["Yo<end>\n", "4<end>\n"]),
        (MARKED, ["Yo<end>", "4<end>"]),
        (KEEPS_REASONING_OF_THE_LAST, ["Yo<end>", "<think></think>4<end>"]),
        (OPENS_REASONING, ["Yo<end>", "4<end>"]),
        (ALWAYS_PROMPTS, ["Yo<end><|", "4<end><|assistant|>"]),
    ],
)
def test_each_answer_is_found_in_the_whole(source: str, expected: list[str]) -> None:
    assert learned(source, TURNS) == expected


@pytest.mark.parametrize("source", [BACKWARDS, ALWAYS_DIFFERENT])
def test_a_template_that_does_not_tell_is_an_error_that_names_it(source: str) -> None:
    with pytest.raises(LitGPTError, match=r"The chat template has no generation marks"):
        learned(source, TURNS)


@pytest.mark.parametrize("source", [CHATML, MARKED])
def test_turns_can_be_chosen(source: str) -> None:
    assert [words.strip() for words in learned(source, TURNS, "last")] == ["4<end>"]
    unlearned = [TURNS[0], TURNS[1], TURNS[2], {**TURNS[3], "weight": 0}]
    assert [words.strip() for words in learned(source, unlearned)] == ["Yo<end>"]


def test_an_answer_that_begins_like_a_prompt_is_learned_whole() -> None:
    assert learned(OPENS_REASONING, [TURNS[0], {"role": "assistant", "content": "<thing>"}]) == ["<thing><end>"]
    assert learned(OPENS_REASONING, [TURNS[0], {"role": "assistant", "content": "a"}]) == ["a<end>"]


def test_a_conversation_without_an_answer_is_refused() -> None:
    with pytest.raises(LitGPTError, match="no message of the assistant"):
        learned(CHATML, TURNS[:1])


@pytest.mark.parametrize("role", ["tool", "user"])
def test_what_the_template_leaves_out_is_told(role: str) -> None:
    silent = CHATML.replace("{{ m.content }}", "{% if m.role == 'assistant' %}{{ m.content }}{% endif %}")
    with pytest.raises(LitGPTError, match=f"leaves out what '{role}' says"):
        learned(silent, [{"role": role, "content": "Where?"}, TURNS[1]])


def test_a_template_that_leaves_out_calls_is_told() -> None:
    call = {"function": {"name": "f", "arguments": {}}}
    with pytest.raises(LitGPTError, match="does not write the functions"):
        learned(CHATML, [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [call]}])


def test_arguments_go_as_text_to_a_template_that_expects_it() -> None:
    source = CHATML.replace("<end>", "{% for c in m.tool_calls or [] %}{{ c.function.name + c.function.arguments }}"
                            "{% endfor %}<end>")  # fmt: skip
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    assert learned(source, [TURNS[0], {"role": "assistant", "tool_calls": [call]}]) == ['f{"x": 1}<end>\n']


def test_tools_and_variables_reach_the_template() -> None:
    source = "{{ tools|length }}{{ mood }}" + CHATML
    row = {"messages": TURNS, "tools": [{"name": "f"}], "chat_template_kwargs": {"mood": "calm"}}
    text = Renderer(ChatTemplate.from_source(source)).render(parse_conversation(row)).parts[0].text
    assert text.startswith("1calm<|user|>")


def test_a_style_writes_several_turns_as_one_text_up_to_the_last_answer() -> None:
    asked, answered = Renderer(PromptStyle.from_name("chatml")).render(Conversation(TURNS)).parts
    assert asked.text == PromptStyle.from_name("chatml").apply_messages(TURNS[:3])
    assert not isinstance(asked.target, bool)
    assert [asked.text[start:end] for start, end in asked.target] == ["Yo<|im_end|>"]
    assert answered == ("4", True)


def test_a_style_that_knows_no_turns_is_told() -> None:
    class Question(PromptStyle):
        def apply(self, prompt: Any, *, sys_prompt: str | None = None, **kwargs: Any) -> str:
            return f"Q: {prompt} A: "

    assert Renderer(Question()).render(Conversation(TURNS[:2])).parts == [("Q: Hi A: ", False), ("Yo", True)]
    with pytest.raises(LitGPTError, match="single prompts, not conversations"):
        Renderer(Question()).render(Conversation(TURNS))


def test_marks_and_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    """`transformers` is the oracle: ids, and the mask of the assistant's tokens."""
    from transformers import PreTrainedTokenizerFast

    assets = ROOT / "litgpt" / "assets" / "austen-2m"
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(assets / "tokenizer.json"))
    messages = [
        {"role": "user", "content": "Où est Mr. Darcy? 😀"},
        {"role": "assistant", "content": "  In the garden — with Elizabeth.\n"},
        {"role": "user", "content": "And\nthen?"},
        {"role": "assistant", "content": "Tea"},
    ]
    expected = theirs.apply_chat_template(
        messages, chat_template=MARKED, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    renderer = Renderer(ChatTemplate.from_source(MARKED))
    (found,) = Encoder(renderer.style, Tokenizer(assets)).encode([renderer.render(Conversation(messages))])
    ids, spans = found
    mask = [int(any(start <= i < end for start, end in spans)) for i in range(len(ids))]
    assert ids == expected["input_ids"] and mask == expected["assistant_masks"]


def test_without_offsets_a_place_is_where_the_tokens_part(stories260k: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((stories260k / name).read_bytes())
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.backend == "sentencepiece"
    renderer = Renderer(ChatTemplate.from_source(CHATML))
    (found,) = Encoder(renderer.style, tokenizer).encode([renderer.render(Conversation(TURNS))])
    ids, spans = found
    assert [tokenizer.decode(ids[start:end]).strip() for start, end in spans] == ["Yo<end>", "4<end>"]
    assert ids[-1] == tokenizer.eos_id

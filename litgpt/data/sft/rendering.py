"""A conversation put into words by a prompt style, and which of the words are learned.

What a style writes before an assistant's answer is found by writing the conversation up to there. A chat template with
`{% generation %}` marks says it itself; without, see `answers`. A template for which neither tells is an error: nothing
is ever learned that should only be read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from litgpt.data.sft.assistant_spans import Answers, Span, writes_calls
from litgpt.data.sft.formats import Conversation, Message, with_arguments_as_texts
from litgpt.errors import LitGPTError
from litgpt.prompts import ChatTemplate, PromptStyle

if TYPE_CHECKING:
    from litgpt.prompts.chat_template import Template

MARK = re.compile(r"\{%[-+]?\s*generation\b")
WORD = re.compile(r"\w+")
PLACE = "\ue000"
"""A character that no text has, to see where a style puts something."""


class Part(NamedTuple):
    """A text that is tokenized by itself."""

    text: str
    learned: bool | Sequence[Span]
    """All, nothing, or these characters."""


class Wording(NamedTuple):
    """A sample as text, before it is tokens."""

    parts: Sequence[Part]
    opens: bool
    """Begin with BOS where the tokenizer's files say so."""
    ends: bool
    """End with EOS."""
    marked: bool = False
    """The template says itself what is learned; else a learned span ends with its last end token."""


class Writer:
    """Writes conversations in one style.

    Args:
        style: A prompt style, or the tokenizer's own template.
        turns: Which of the assistant's turns are learned: all that the data doesn't exclude, or the last one only.
    """

    def __init__(self, style: PromptStyle, turns: str = "all") -> None:
        self.style, self.turns = style, turns
        self._places_input: bool | None = None

    def write(self, conversation: Conversation) -> Wording:
        """The conversation in words.

        Raises:
            LitGPTError: The style can't write it, or doesn't tell what the assistant said.
        """
        if conversation.text is not None:
            return Wording([Part(conversation.text, True)], opens=True, ends=True)
        answers = self._answers(conversation)
        if isinstance(self.style, ChatTemplate):
            return self._by_template(conversation, answers)
        if conversation.tools:
            self.style.apply_messages(conversation.messages, tools=conversation.tools)  # which refuses them
        parts, done, messages = list[Part](), "", self._messages(conversation)
        for number, (place, is_learned) in enumerate(answers):
            prompt = self.prompt(conversation, place)
            if not prompt.startswith(done):
                raise LitGPTError(
                    f"the prompt style {type(self.style).__name__} rewrites earlier turns, so what the assistant said "
                    "can't be told from it; choose another."
                )
            # What closes an earlier answer is the model's to say, a line break is not.
            closing = self.style.end.rstrip() if number < len(answers) - 1 else ""
            answer = f"{messages[place].get('content') or ''}{closing}"
            parts += [Part(prompt[len(done) :], False), Part(answer, is_learned)]
            done = prompt + answer
        return Wording(parts, opens=not self.style.adds_bos, ends=True)

    def prompt(self, conversation: Conversation, place: int) -> str:
        """The text that the assistant's message at `place` follows."""
        before = self._messages(conversation)[:place]
        if isinstance(self.style, ChatTemplate):
            return self.style.apply_messages(before, tools=conversation.tools, **conversation.variables)
        roles = [message["role"] for message in before]
        if roles not in (["user"], ["system", "user"]):
            return self.style.apply_messages(before)
        text, system = before[-1].get("content"), before[0].get("content") if len(before) == 2 else None
        if not isinstance(text, str) or not isinstance(system, str | None):
            return self.style.apply_messages(before)
        fields = {key: value for key, value in conversation.fields.items() if not (key == "input" and not value)}
        if not self._has_own_place(conversation):
            fields.pop("input", None)
        return self.style.apply(text, **({"sys_prompt": system} if system else {}), **fields)

    def _messages(self, conversation: Conversation) -> Sequence[Message]:
        """The messages; an instruction's `input` follows it where the style has no place for it, so that nothing is
        lost."""
        given = conversation.fields.get("input")
        if not given or self._has_own_place(conversation):
            return conversation.messages
        last = max(place for place, message in enumerate(conversation.messages) if message["role"] == "user")
        return [
            {**message, "content": f"{message['content']}\n\n{given}"} if place == last else message
            for place, message in enumerate(conversation.messages)
        ]

    def _has_own_place(self, conversation: Conversation) -> bool:
        """Whether the style writes an instruction's `input` itself."""
        if isinstance(self.style, ChatTemplate) or sum(m["role"] == "user" for m in conversation.messages) > 1:
            return False
        if self._places_input is None:
            self._places_input = has_place_for_input(self.style)
        return self._places_input

    def _answers(self, conversation: Conversation) -> list[tuple[int, bool]]:
        """The places of the assistant's messages, and whether each is learned."""
        places = [place for place, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        if not places:
            raise LitGPTError("the conversation has no message of the assistant, so there is nothing to learn from it.")
        last_only = self.turns == "last"
        return [
            (place, place not in conversation.unlearned and not (last_only and place != places[-1])) for place in places
        ]

    # -- chat templates

    def _by_template(self, conversation: Conversation, answers: list[tuple[int, bool]]) -> Wording:
        assert isinstance(self.style, ChatTemplate)
        template = self.style.template("tool_use" if conversation.tools else "default")
        messages = self._messages(conversation)
        given: Mapping[str, Any] = {"tools": conversation.tools, **conversation.variables}
        try:
            return self._written(template, messages, given, answers)
        except LitGPTError:
            as_texts = with_arguments_as_texts(messages)  # which some templates expect
            if as_texts == messages:
                raise
            return self._written(template, as_texts, given, answers)

    def _written(
        self,
        template: Template,
        messages: Sequence[Message],
        given: Mapping[str, Any],
        answers: list[tuple[int, bool]],
    ) -> Wording:

        def write(said: Sequence[Message], prompted: bool) -> str:
            return template.render(said, add_generation_prompt=prompted, **given)

        if not writes_calls(messages, write):
            raise LitGPTError(
                f"{template.where} does not write the functions that the assistant calls, so they could not be "
                "learned; choose another data.prompt_style or data.chat_template."
            )
        if MARK.search(template.source):
            text, spans = template.render_with_spans(messages, **given)
            _check_all_is_said(template, messages, text)
            learned = [is_learned for _, is_learned in answers]
            if len(spans) == len(answers) or (spans and all(learned)):
                chosen = spans if all(learned) else [span for span, own in zip(spans, learned, strict=True) if own]
                return Wording([Part(text, _filled(chosen))], opens=False, ends=False, marked=True)
        found = Answers(messages, write)
        _check_all_is_said(template, messages, found.text)
        spans = []
        for place, is_learned in answers:
            span = found.span(place) if is_learned else (0, 0)
            if span is None and messages[-1]["role"] != "assistant":
                # A question that is not answered comes in the way of telling where the answer before it ends.
                return self._written(template, messages[: answers[-1][0] + 1], given, answers)
            if span is None:
                raise LitGPTError(
                    f"{template.where} has no generation marks and writes this conversation so that what the assistant "
                    "said can't be told from the rest; choose another data.prompt_style, or give the template marks."
                )
            spans.append(span)
        return Wording([Part(found.text, _filled(spans))], opens=False, ends=True)


def _check_all_is_said(template: Template, messages: Sequence[Message], text: str) -> None:
    """Raises a LitGPTError where a template leaves out what the user, the system or a tool says (it knows no such role,
    say); of what the assistant said before, many leave out some."""
    for message in messages:
        content = message.get("content")
        word = max(WORD.findall(content), key=len, default="") if isinstance(content, str) else ""
        if message["role"] != "assistant" and word not in text:
            raise LitGPTError(
                f"{template.where} leaves out what {message['role']!r} says; choose another data.prompt_style or "
                "data.chat_template, or name the role otherwise."
            )


def has_place_for_input(style: PromptStyle) -> bool:
    """Whether the style writes the `input` of an instruction."""
    return style.apply("a", input=PLACE) != style.apply("a", input="")


def with_input_placed(style: PromptStyle, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """An instruction's row; its `input` follows the instruction where the style has no place for it."""
    if row.get("input") and (isinstance(style, ChatTemplate) or not has_place_for_input(style)):
        return {**row, "instruction": f"{row['instruction']}\n\n{row['input']}", "input": ""}
    return row


def _filled(spans: Sequence[Span]) -> list[Span]:
    return [span for span in spans if span[0] < span[1]]

"""A conversation put into words by a prompt style, and which of the words are learned.

What a style or template writes before an assistant's answer is found by writing the conversation up to there: where
that is a beginning of the whole, the answer starts at its end (the prefix difference). A chat template with
`{% generation %}` marks says it itself. A template for which neither tells is an error: nothing is ever learned that
should only be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from litgpt.data.formats import Conversation, Message
from litgpt.errors import LitGPTError
from litgpt.prompts import ChatTemplate, PromptStyle

Span = tuple[int, int]
"""`[start, end)`."""
MARK = re.compile(r"\{%[-+]?\s*generation\b")
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
        if MARK.search(template.source):
            text, spans = template.render_with_spans(messages, **given)
            if len(spans) == len(answers):
                spans = [span for span, (_, is_learned) in zip(spans, answers, strict=True) if is_learned]
                return Wording([Part(text, _filled(spans))], opens=False, ends=False, marked=True)
            if spans and all(is_learned for _, is_learned in answers):
                return Wording([Part(text, _filled(spans))], opens=False, ends=False, marked=True)
        text = template.render(messages, **given)

        def written(count: int, prompt: bool) -> str:
            return template.render(messages[:count], add_generation_prompt=prompt, **given) if count else ""

        spans = []
        for place, is_learned in answers:
            if is_learned:
                span = _difference(text, place, messages, written)
                if span is None:
                    raise LitGPTError(
                        f"{template.where} rewrites what was said before and has no generation marks, so what the "
                        "assistant said can't be told from it; choose another data.prompt_style, or give marks to the "
                        "template."
                    )
                spans.append(span)
        return Wording([Part(text, _filled(spans))], opens=False, ends=True)


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


def _difference(text: str, place: int, messages: Sequence[Message], written: Callable[[int, bool], str]) -> Span | None:
    """Where in `text` the assistant's message at `place` stands, what closes it included; None where the template
    doesn't tell.

    Args:
        text: The whole conversation as written.
        place: Of the message.
        messages: The conversation.
        written: Its first messages as written, with or without what stands before the next answer.
    """
    start = _start(text, place, messages[place], written)
    if start is None or place == len(messages) - 1:
        return None if start is None else (start, len(text))
    as_last = written(place + 1, False)
    if len(as_last) >= start and text.startswith(as_last):
        return start, len(as_last)
    # Some keep less of a turn once another follows (not its reasoning): its end is the same.
    shorter = (as_last[at:] for at in range(min(start, len(as_last)), len(as_last)))
    kept = next((end for end in shorter if text.startswith(end, start)), "")
    if kept.strip():
        return start, start + len(kept)
    # Some close the last turn, or open the next one, whether asked to or not.
    same = _common(as_last, text)
    extra = as_last[same:]
    closes = text.endswith(extra) or written(place, True).endswith(extra)
    return (start, same) if same > start and closes else None


def _start(text: str, place: int, message: Message, written: Callable[[int, bool], str]) -> int | None:
    """Where in `text` the assistant's message at `place` starts; None where the template doesn't tell."""
    content = _content(message)
    if not place:  # nothing stands before it that could be written
        return text.find(content) if content and content in text else None
    prompt = written(place, True)
    if text.startswith(prompt):
        return len(prompt)
    # Some go on differently (to its reasoning) for an answer to come than for one that was given: from there on it is
    # the model's to say.
    before = written(place, False)
    if not text.startswith(before) or not prompt.startswith(before):
        return None
    rest = text[len(before) :]
    same = rest[: _common(prompt[len(before) :], rest)]
    if not same.strip():
        return None
    # What is said may happen to begin like what would have come.
    begun = (at for at in range(len(same)) if content.startswith(same[at:]) and rest.startswith(content, at))
    return len(before) + next(begun, len(same))


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _content(message: Message) -> str:
    """A message's text as templates write it, without white space around it."""
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content).strip()

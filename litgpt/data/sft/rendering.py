"""A conversation rendered by a prompt style, and which parts of the text are targets.

What a style writes before an assistant's answer is found by rendering the conversation up to there. A chat template
with `{% generation %}` marks says it itself; without, see `assistant_spans`. A template for which neither works is an
error: nothing is ever a target that should only be read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from litgpt.data.sft.assistant_spans import AssistantSpans, CharSpan, answer_text, renders_calls
from litgpt.data.sft.formats import EMPTY, Conversation, with_arguments_as_texts
from litgpt.errors import LitGPTError, quoted
from litgpt.prompts import ChatTemplate, PromptStyle
from litgpt.prompts.base import Message
from litgpt.prompts.chat_template import REASONING

if TYPE_CHECKING:
    from litgpt.prompts.chat_template import Template

GENERATION_MARK = re.compile(r"\{%[-+]?\s*generation\b")
WORD = re.compile(r"\w+")
MESSAGE_KEYS = {"role", "content", "tool_calls", "tool_call_id", "id"}
"""Keys of a message that need no reader: they are always rendered, or only tell messages apart."""
PROBE = "\ue000"
"""A character that no text has, to see whether a style writes something."""


class RenderedPart(NamedTuple):
    """A text that is tokenized by itself."""

    text: str
    target: bool | Sequence[CharSpan]
    """All of it, nothing, or these characters."""


class RenderedSample(NamedTuple):
    """A sample as text, before it is tokens."""

    parts: Sequence[RenderedPart]
    opens: bool
    """Begin with BOS where the tokenizer's files say so."""
    ends: bool
    """End with EOS."""
    marked: bool = False
    """The template itself marks what is a target; else a target span ends with its last end token."""
    asked: Sequence[str] = ()
    """What the user says, without anything of the style."""


class Renderer:
    """Renders conversations in one style.

    Args:
        style: A prompt style, or the tokenizer's own template.
        turns: Which of the assistant's turns are targets: all that the data doesn't exclude, or the last one only.
        mask_template: What a chat template writes of itself before an answer is no target.
    """

    def __init__(self, style: PromptStyle, turns: str = "all", mask_template: bool = False) -> None:
        self.style, self.turns, self.mask_template = style, turns, mask_template

    def render(self, conversation: Conversation) -> RenderedSample:
        """The conversation as text.

        Raises:
            LitGPTError: The style can't render it, or what the assistant said can't be found in the text.
        """
        if conversation.text is not None:
            return RenderedSample([RenderedPart(conversation.text, True)], opens=True, ends=True)
        answers, said = self._answers(conversation), [m for m in conversation.messages if m["role"] == "user"]
        rendered = self._render(conversation, answers)
        return rendered._replace(asked=[text for m in said if isinstance(text := m.get("content"), str)])

    def _render(self, conversation: Conversation, answers: list[tuple[int, bool]]) -> RenderedSample:
        if isinstance(self.style, ChatTemplate):
            return self._render_by_template(conversation, answers)
        if conversation.tools:
            self.style.apply_messages(conversation.messages, tools=conversation.tools)  # which refuses them
        messages = self._placed(conversation)[0]
        if any(message.get("tool_calls") for message in messages):
            raise LitGPTError(
                f"the prompt style {type(self.style).__name__} has no place for the functions that the assistant "
                "calls; `chat`, the tokenizer's own, may have."
            )
        last, learned = answers[-1]
        prompt, spans = self.prompt(conversation, last), list[CharSpan]()
        # What closes an earlier answer is the model's to write, a line break is not.
        closing = self.style.end.rstrip()
        for index, is_target in answers[:-1]:
            before, answer = self.prompt(conversation, index), str(messages[index].get("content") or "")
            if not prompt.startswith(before + answer + closing):
                raise LitGPTError(
                    f"the prompt style {type(self.style).__name__} rewrites earlier turns, so what the assistant said "
                    "can't be told from it; choose another."
                )
            if is_target:
                spans.append((len(before), len(before) + len(answer) + len(closing)))
        # One text up to the last answer: a chat sends it as one, too, and tokens may reach over where turns meet.
        asked = RenderedPart(prompt, _filled(spans) if len(answers) > 1 else False)
        answered = RenderedPart(str(messages[last].get("content") or ""), learned)
        return RenderedSample([asked, answered], opens=not self.style.adds_bos, ends=True)

    def prompt(self, conversation: Conversation, index: int) -> str:
        """The text that the assistant's message at `index` follows."""
        messages, fields = self._placed(conversation)
        before = messages[:index]
        if isinstance(self.style, ChatTemplate):
            return self.style.apply_messages(before, tools=conversation.tools, **conversation.variables)
        roles = [message["role"] for message in before]
        if roles not in (["user"], ["system", "user"]):
            return self.style.apply_messages(before)
        text, system = before[-1].get("content"), before[0].get("content") if len(before) == 2 else None
        if not isinstance(text, str) or not isinstance(system, str | None):
            return self.style.apply_messages(before)
        return self.style.apply(text, **({"sys_prompt": system} if system else {}), **fields)

    def _placed(self, conversation: Conversation) -> tuple[Sequence[Message], Mapping[str, Any]]:
        """The messages, and what else the style reads: what a question is about follows it where the style has no place
        for it, so that nothing is lost."""
        messages, fields = conversation.messages, conversation.fields
        if conversation.context is None:
            return messages, fields
        key, about = conversation.context
        asked = [index for index, message in enumerate(messages) if message["role"] == "user"]
        if len(asked) == 1 and not isinstance(self.style, ChatTemplate):
            place = next((name for name in (key, "input") if self._reads(name)), None)
            if place is not None:
                return messages, {**fields, place: about}
        if not asked:
            raise LitGPTError(f"{quoted(key)} belongs to a question of the user, of which there is none.")
        question = messages[asked[-1]]
        placed = {**question, "content": f"{question['content']}\n\n{about}"}
        return [*messages[: asked[-1]], placed, *messages[asked[-1] + 1 :]], fields

    # -- what nothing reads

    def unread(self, conversation: Conversation) -> list[str]:
        """What of a row no text is made of, in words."""
        found = list(conversation.unread)
        if conversation.text is not None:
            return list(map(quoted, found))
        fields = [key for key, value in conversation.fields.items() if value not in EMPTY]
        given = [*conversation.variables, *(["tools"] if conversation.tools else [])]
        own = sorted({key for message in conversation.messages for key in message} - MESSAGE_KEYS)
        system = list[str]()
        if isinstance(self.style, ChatTemplate):
            words = _words(self.style.template("tool_use" if conversation.tools else "default").source)
            words = words | {*REASONING} if words & {*REASONING} else words
            given, own = ([key for key in keys if key not in words] for keys in (given, own))
        else:
            alone = sum(message["role"] == "user" for message in conversation.messages) == 1
            fields = [key for key in fields if not (alone and self._reads(key))]
            if not self._takes_system and any(message["role"] == "system" for message in conversation.messages):
                system = [f"the system message, for which the prompt style {type(self.style).__name__} has no place"]
        return [*map(quoted, [*found, *fields, *given]), *(f"{quoted(key)} of messages" for key in own), *system]

    def _reads(self, key: str) -> bool:
        """Whether the style reads a key of an instruction."""
        if key not in self._read_keys:
            self._read_keys[key] = reads(self.style, key)
        return self._read_keys[key]

    @cached_property
    def _read_keys(self) -> dict[str, bool]:
        return {}

    @cached_property
    def _takes_system(self) -> bool:
        return reads(self.style, "sys_prompt")

    def _answers(self, conversation: Conversation) -> list[tuple[int, bool]]:
        """The indices of the assistant's messages, and whether each is a target."""
        indices = [index for index, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        if not indices:
            raise LitGPTError("the conversation has no message of the assistant, so there is nothing to learn from it.")
        last_only = self.turns == "last"
        return [
            (index, index not in conversation.masked and not (last_only and index != indices[-1])) for index in indices
        ]

    # -- chat templates

    def _render_by_template(self, conversation: Conversation, answers: list[tuple[int, bool]]) -> RenderedSample:
        assert isinstance(self.style, ChatTemplate)
        template = self.style.template("tool_use" if conversation.tools else "default")
        messages = self._placed(conversation)[0]
        variables: Mapping[str, Any] = {"tools": conversation.tools, **conversation.variables}
        try:
            return self._render_template(template, messages, variables, answers)
        except LitGPTError:
            as_texts = with_arguments_as_texts(messages)  # which some templates expect
            if as_texts == messages:
                raise
            return self._render_template(template, as_texts, variables, answers)

    def _render_template(
        self,
        template: Template,
        messages: Sequence[Message],
        variables: Mapping[str, Any],
        answers: list[tuple[int, bool]],
    ) -> RenderedSample:
        def render(part: Sequence[Message], prompted: bool) -> str:
            return template.render(part, add_generation_prompt=prompted, **variables)

        if not renders_calls(messages, render):
            raise LitGPTError(
                f"{template.where} does not write the functions that the assistant calls, so they could not be "
                "learned; choose another data.prompt_style or data.chat_template."
            )
        if GENERATION_MARK.search(template.source):
            text, spans = template.render_with_spans(messages, **variables)
            _check_all_is_rendered(template, messages, text)
            targets = [is_target for _, is_target in answers]
            if len(spans) == len(answers) or (spans and all(targets)):
                if len(spans) == len(answers):
                    spans = [self._own(text, span, messages[i]) for span, (i, _) in zip(spans, answers, strict=True)]
                chosen = spans if all(targets) else [span for span, own in zip(spans, targets, strict=True) if own]
                return RenderedSample([RenderedPart(text, _filled(chosen))], opens=False, ends=False, marked=True)
        found = AssistantSpans(messages, render)
        _check_all_is_rendered(template, messages, found.text)
        spans = []
        for index, is_target in answers:
            span = found.span(index) if is_target else (0, 0)
            if span is None and messages[-1]["role"] != "assistant":
                # A question that is not answered comes in the way of telling where the answer before it ends.
                return self._render_template(template, messages[: answers[-1][0] + 1], variables, answers)
            if span is None:
                raise LitGPTError(
                    f"{template.where} has no generation marks and writes this conversation so that what the assistant "
                    "said can't be told from the rest; choose another data.prompt_style, or give the template marks."
                )
            spans.append(self._own(found.text, span, messages[index]))
        return RenderedSample([RenderedPart(found.text, _filled(spans))], opens=False, ends=True)

    def _own(self, text: str, span: CharSpan, message: Message) -> CharSpan:
        """An answer's span, with `mask_template` without what the template writes before the answer's text: an empty
        `<think></think>`, say. The tag that opens the answer's own reasoning stays."""
        content = answer_text(message)
        if not self.mask_template or not content or any(message.get(key) for key in REASONING):
            return span
        start = text.find(content, *span)
        return span if start < 0 else (start, span[1])


def _check_all_is_rendered(template: Template, messages: Sequence[Message], text: str) -> None:
    """Raises a LitGPTError where a template leaves out a message of the user, the system or a tool.

    It may not know the role, say. Many leave out some of the assistant's earlier messages.
    """
    for message in messages:
        content = message.get("content")
        word = max(WORD.findall(content), key=len, default="") if isinstance(content, str) else ""
        if message["role"] != "assistant" and word not in text:
            raise LitGPTError(
                f"{template.where} leaves out what {quoted(message['role'])} says; choose another data.prompt_style or "
                "data.chat_template, or name the role otherwise."
            )


def reads(style: PromptStyle, key: str) -> bool:
    """Whether the style renders a key of an instruction (`input`, `sys_prompt`)."""
    try:
        return style.apply("a", **{key: PROBE}) != style.apply("a", **{key: ""})
    except LitGPTError:
        raise
    except Exception:  # a style of the user's own that makes something of it
        return True


@lru_cache(maxsize=32)
def _words(source: str) -> frozenset[str]:
    return frozenset(WORD.findall(source))


def with_input_placed(style: PromptStyle, row: Mapping[str, Any]) -> Mapping[str, Any]:
    """An instruction's row; its `input` follows the instruction where the style has no place for it."""
    if row.get("input") and (isinstance(style, ChatTemplate) or not reads(style, "input")):
        return {**row, "instruction": f"{row['instruction']}\n\n{row['input']}", "input": ""}
    return row


def _filled(spans: Sequence[CharSpan]) -> list[CharSpan]:
    return [span for span in spans if span[0] < span[1]]

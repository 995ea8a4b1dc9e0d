"""Which characters of a conversation, as a chat template renders it, are the assistant's.

What the template renders up to an answer is a prefix of the whole, so the answer starts at its end (the prefix
difference). Many templates render earlier turns differently once others follow (without their reasoning, say): there
the comparison starts anew behind the message before, whose end a mark shows.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from litgpt.prompts.base import Message

CharSpan = tuple[int, int]
"""`[start, end)` in a text."""
PRIVATE = 0xF0000
"""The first of 131,072 characters that mean nothing of themselves; fonts of icons use some."""
FEW = 4
"""Messages up to which each answer is searched for by itself."""


class AssistantSpans:
    """The spans of the assistant's messages in a rendered conversation.

    To find one, all that comes before it is rendered again. In a long conversation that is done once for all answers
    that have the same surroundings, so that its cost does not grow with the square of the length.

    Args:
        messages: The whole conversation.
        render: Renders messages, with or without the generation prompt.
    """

    def __init__(self, messages: Sequence[Message], render: Callable[[Sequence[Message], bool], str]) -> None:
        self.messages, self.render = messages, render
        self.text = render(messages, False)
        self._found: dict[tuple[str, str], CharSpan | None] = {}
        """Surroundings of an answer -> its start from the end of the message before, its end from that of its own."""

    def span(self, index: int) -> CharSpan | None:
        """The span in `text` of the assistant's message at `index`, with what closes it; None where it can't be
        found."""
        surroundings = self._surroundings(index) if len(self.messages) > FEW else None
        if surroundings is None:
            return self.search(index)
        before, own = (self._unmarked(self._marks[which] + 1) for which in (index - 1, index))
        if surroundings not in self._found:
            span = self.search(index)
            self._found[surroundings] = span and (span[0] - before, span[1] - own)
        offsets = self._found[surroundings]
        return offsets and (before + offsets[0], own + offsets[1])

    def search(self, index: int) -> CharSpan | None:
        """As `span`, searched for by itself."""
        return self._by_prefix(index) or self._by_marks(index)

    def _surroundings(self, index: int) -> tuple[str, str] | None:
        """What stands between the content of the message before and that of the one at `index`, and between this and
        the next one's; None at either end of the conversation, or where that can't be found."""
        around = [self._marks.get(which) for which in (index - 1, index, index + 1)]
        if None in around:
            return None
        contents = [answer_text(self.messages[which]) for which in (index, index + 1)]
        spaces = [self._marked_text[a + 1 : b] for a, b in itertools.pairwise(around)]  # type: ignore[operator]
        before, after = (space.removesuffix(content) for space, content in zip(spaces, contents, strict=True))
        return before, after

    def _by_prefix(self, index: int) -> CharSpan | None:
        if not index:  # nothing comes before it that could be rendered
            return None
        prompt = self._rendered(index, True)
        start = len(prompt)
        if not self.text.startswith(prompt):
            start = _start(self.text, prompt, self._rendered(index, False), answer_text(self.messages[index]))
        if start < 0 or index == len(self.messages) - 1:
            return None if start < 0 else (start, len(self.text))
        as_last = self._rendered(index + 1, False)
        return (start, len(as_last)) if len(as_last) >= start and self.text.startswith(as_last) else None

    def _rendered(self, count: int, prompted: bool) -> str:
        return self.render(self.messages[:count], prompted)

    def _by_marks(self, index: int) -> CharSpan | None:
        text, own = self._marked_text, self._marks.get(index, -1)
        begin = self._marks.get(index - 1, -1) + 1
        if own < 0 or (index and not begin):
            return None
        start = self._marked_start(index, text[begin:own])
        end = self._marked_end(index, text[own + 1 :])
        if start < 0 or end < 0:
            return None
        return self._unmarked(begin + start), self._unmarked(own + 1 + end)

    def _marked_start(self, index: int, after: str) -> int:
        """Where the answer starts in `after`, the text between the end of the message before and that of its own
        content; -1 where that can't be found."""
        content = answer_text(self.messages[index])
        if not index:  # nothing comes before it that could be rendered
            return len(after) - len(content) if content and after.endswith(content) else -1
        prompt, before = (self._tail(index, prompted) for prompted in (True, False))
        if after.startswith(prompt):
            return len(prompt)
        found, header = _start(after, prompt, before, content), prompt.removeprefix(before)
        if found < 0 and header not in ("", prompt):
            # What closes the message before is rendered differently when an answer follows.
            found = _once(after, header)
        if found < 0 and not header:
            # Some open an answer always, and its reasoning.
            found = _parting(prompt, after)
            found = found if self._marked_text.endswith(prompt[found:]) else -1
        return found

    def _marked_end(self, index: int, after: str) -> int:
        """Where in `after`, what follows the answer's content, what closes it ends; -1 where that can't be found."""
        if index == len(self.messages) - 1:
            return len(after)
        closing = self._tail(index + 1, False)
        same = _common(closing, after)
        extra = closing[same:]
        # Some close the last turn otherwise, or open the next one, whether asked to or not.
        if not extra or (same and (self._marked_text.endswith(extra) or self._tail(index, True).endswith(extra))):
            return same
        return _once(after.partition(self._mark(index + 1))[0], extra.rstrip(), same)

    def _tail(self, count: int, prompted: bool) -> str:
        """What follows the content of the last of the first `count` messages."""
        return self.render(self._marked[:count], prompted).partition(self._mark(count - 1))[2]

    @cached_property
    def _marked(self) -> list[Message]:
        return [_with_mark(message, self._mark(index)) for index, message in enumerate(self.messages)]

    @cached_property
    def _marked_text(self) -> str:
        """The whole, with marks; nothing where they change it."""
        text = self.render(self._marked, False)
        return text if self._any_mark.sub("", text) == self.text else ""

    @cached_property
    def _first_mark(self) -> int:
        """The mark of message `i` is the character of this number + `i`."""
        return unused_characters(len(self.messages), self.text, self.messages)

    def _mark(self, index: int) -> str:
        return chr(self._first_mark + index)

    @cached_property
    def _any_mark(self) -> re.Pattern[str]:
        return re.compile(f"[{self._mark(0)}-{self._mark(len(self.messages) - 1)}]")

    @cached_property
    def _mark_indices(self) -> list[int]:
        return [found.start() for found in self._any_mark.finditer(self._marked_text)]

    @cached_property
    def _marks(self) -> dict[int, int]:
        """The first index of each message's mark in `_marked_text`."""
        return {ord(self._marked_text[at]) - self._first_mark: at for at in reversed(self._mark_indices)}

    def _unmarked(self, at: int) -> int:
        """The index in `text` of one in `_marked_text`."""
        return at - bisect_left(self._mark_indices, at)


def renders_calls(messages: Sequence[Message], render: Callable[[Sequence[Message], bool], str]) -> bool:
    """Whether a template renders the functions that the assistant calls."""
    if not any(message.get("tool_calls") for message in messages):
        return True
    mark = chr(unused_characters(1, render(messages, False), messages))
    marked, count = list[Message](), 0
    for message in messages:
        calls = [_with_marked_name(call, mark) for call in message.get("tool_calls") or ()]
        marked.append({**message, "tool_calls": calls} if calls else message)
        count += len(calls)
    return render(marked, False).count(mark) >= count


def unused_characters(count: int, text: str, messages: Sequence[Message]) -> int:
    """The number of the first of `count` consecutive private-use characters that occur in neither the text nor the
    messages."""
    written = text + json.dumps(messages, ensure_ascii=False, default=str)
    first = PRIVATE
    for taken in sorted(ord(character) for character in set(written) if ord(character) >= PRIVATE):
        if taken - first >= count:
            break
        first = taken + 1
    return min(first, sys.maxunicode + 1 - count)


def _with_mark(message: Message, mark: str) -> Message:
    """A message with a mark behind its content, or in the name of the function that it calls."""
    content, calls = message.get("content"), message.get("tool_calls")
    if isinstance(content, str) and (content.strip() or not calls):
        stripped = content.rstrip()
        return {**message, "content": f"{stripped}{mark}{content[len(stripped) :]}"}
    if isinstance(content, list) and content and isinstance(content[-1], Mapping) and content[-1].get("text"):
        return {**message, "content": [*content[:-1], _with_mark_at("text", content[-1], mark)]}
    if calls:
        return {**message, "tool_calls": [*calls[:-1], _with_marked_name(calls[-1], mark)]}
    return message


def _with_marked_name(call: Mapping[str, Any], mark: str) -> Mapping[str, Any]:
    return {**call, "function": _with_mark_at("name", call["function"], mark)}


def _with_mark_at(key: str, table: Mapping[str, Any], mark: str) -> Mapping[str, Any]:
    return {**table, key: f"{table[key]}{mark}"}


def _start(text: str, prompt: str, before: str, content: str) -> int:
    """Where an answer starts whose template goes on differently (to its reasoning) for an answer to come than for one
    that was given: from where they differ it is the model's to write. -1 where that can't be found."""
    if not text.startswith(before) or not prompt.startswith(before):
        return -1
    rest = text[len(before) :]
    parting = _parting(prompt[len(before) :], rest)
    if parting < 0:
        return -1
    # The content may happen to begin like what would have come.
    begun = (at for at in range(parting) if content.startswith(rest[at:parting]) and rest.startswith(content, at))
    return len(before) + next(begun, parting)


def _once(text: str, part: str, start: int = 0) -> int:
    """Where `part` ends in `text`, where it occurs once from `start` on; else -1."""
    return text.find(part, start) + len(part) if part.strip() and text.count(part, start) == 1 else -1


def _parting(prompt: str, text: str) -> int:
    """Where two texts part that begin alike, before a tag (`<think>`) that differs; -1 where they don't."""
    same = text[: _common(prompt, text)]
    opened = same.rfind("<")
    return -1 if not same.strip() else opened if opened > same.rfind(">") else len(same)


def _common(one: str, other: str) -> int:
    """How many characters two texts have in common at their beginning."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def answer_text(message: Message) -> str:
    """A message's text as templates write it, without white space around it."""
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content).strip()

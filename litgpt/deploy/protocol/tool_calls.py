"""Calls of tools in a model's answer: told from what is said, piece by piece, and the schema of one that has to be."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from litgpt.deploy.protocol.notations import NO_CALL, Call, ToolFormat, Unfinished
from litgpt.engine.detokenizer import partial_match
from litgpt.errors import LitGPTError

MAX_READ = 20_000_000
"""Characters read over and over for the end of one call, whose end mark stands in it many times; then it is none."""


@dataclass(frozen=True)
class Text:
    """Text of one kind."""

    kind: Literal["content", "reasoning"]
    text: str


class DeltaMessage:
    """A piece of an answer, its kinds parted, in the order in which they came."""

    def __init__(self, content: str = "", calls: Iterable[Call] = (), reasoning: str = "") -> None:
        texts = (Text("reasoning", reasoning), Text("content", content))
        self.parts: list[Text | Call] = [*(text for text in texts if text.text), *calls]

    @property
    def content(self) -> str:
        """What is said."""
        return self._text("content")

    @property
    def reasoning(self) -> str:
        """What is thought."""
        return self._text("reasoning")

    @property
    def calls(self) -> tuple[Call, ...]:
        """What is called."""
        return tuple(part for part in self.parts if isinstance(part, Call))

    def __add__(self, other: DeltaMessage) -> DeltaMessage:
        message = DeltaMessage()
        message.parts = [*self.parts]
        for part in other.parts:
            message.put(part)
        return message

    def put(self, part: Text | Call) -> None:
        """Takes a part in; text of the kind that came last goes on with it."""
        last = self.parts[-1] if self.parts else None
        if isinstance(part, Text) and isinstance(last, Text) and last.kind == part.kind:
            self.parts[-1] = Text(part.kind, last.text + part.text)
        else:
            self.parts.append(part)

    def _text(self, kind: str) -> str:
        return "".join(part.text for part in self.parts if isinstance(part, Text) and part.kind == kind)


class ToolCallParser:
    """Takes an answer piece by piece and parts what is said from what is called.

    What is no whole call is said, to the letter. White space alone before the first call, between calls or after the
    last one is notation.

    Args:
        notation: How calls are written.
        tools: The tools there are and the JSON schema of what each takes, or their names alone; a call of another
            stays in the text.
    """

    def __init__(self, notation: ToolFormat, tools: Mapping[str, Any] | Collection[str]) -> None:
        self._notation = notation
        self._tools = tools if isinstance(tools, Mapping) else dict.fromkeys(tools)
        self._held = self._space = ""
        self._inside: str | None = None
        """What the calls that are being read began with; None: none are."""
        self._found: tuple[list[Call], int] | None = None
        """Calls that the text held may be, and where they end in it."""
        self._searched = self._n_read = 0
        self._has_content = self._after_call = False
        self.n_calls = 0

    def push(self, text: str) -> DeltaMessage:
        """What is said and what is called, as far as it is certain."""
        self._held += text
        return self._read(final=False)

    def close(self) -> DeltaMessage:
        """What was held back, once the answer is complete."""
        message = self._read(final=True)
        space, self._space = "" if self.n_calls else self._space, ""
        return message + DeltaMessage(space)

    def _read(self, final: bool) -> DeltaMessage:
        message = DeltaMessage()
        while True:
            if self._inside is None:
                message += DeltaMessage(self._content(self._until_start(final)))
            if self._inside is None:
                return message
            calls = self._calls(final)
            if calls is None:
                return message
            if not calls:
                message += DeltaMessage(self._content(self._inside))
                self._has_content = True
            self._space = "" if calls else self._space
            self._inside, self._found, self._searched, self._n_read = None, None, 0, 0
            self._after_call = self._after_call or bool(calls)
            self.n_calls += len(calls)
            message += DeltaMessage(calls=tuple(calls))

    def _content(self, content: str) -> str:
        """What is said; white space that may be notation waits for what follows it."""
        if not (self._has_content and not self._after_call) and not content.strip():
            self._space += content
            return ""
        content, self._space = self._space + content, ""
        self._has_content, self._after_call = True, False
        return content

    def _until_start(self, final: bool) -> str:
        """What is said before a call begins; the rest stays held."""
        notation, held = self._notation, self._held
        if notation.only_first:
            text = held.lstrip()
            begins = any(start.startswith(text) or text.startswith(start) for start in notation.starts)
            start = next((start for start in notation.starts if text.startswith(start)), None)
            if self._has_content or self.n_calls or not begins or (final and start is None):
                self._held = ""
                return held
            if start is None:
                return ""
            # A bracket is part of the call, a mark isn't.
            self._inside = start if start.startswith("<") else ""
            self._held = text.removeprefix(self._inside)
            return held[: len(held) - len(text)]
        found = [(at, start) for start in notation.starts if (at := held.find(start)) >= 0]
        if found:
            at, self._inside = min(found)
            self._held = held[at + len(self._inside) :]
            return held[:at]
        certain = len(held) - (0 if final else partial_match(held, notation.starts))
        self._held = held[certain:]
        return held[:certain]

    def _calls(self, final: bool) -> list[Call] | None:
        """The calls that the text held begins with, taken from it; empty: none, None: that is not certain yet."""
        if self._notation.end is None:
            if final:
                self._try(len(self._held), whole=False)
            return self._accepted() if final else None
        while (at := self._held.find(self._notation.end, self._searched)) >= 0:
            if self._found is not None and self._starts_again(self._found[1], at):
                break
            self._searched = at + len(self._notation.end)
            self._n_read += at
            if not self._try(at, whole=True) or self._n_read > MAX_READ:
                return self._accepted()
        if final or (self._found is not None and self._starts_again(self._found[1], len(self._held))):
            return self._accepted()
        if self._found is None:
            self._searched = max(self._searched, len(self._held) - len(self._notation.end) + 1)
        return None

    def _try(self, at: int, whole: bool) -> bool:
        """Reads the text held up to `at`; False: what comes after it changes nothing.

        Args:
            at: Where a mark stands that seems to end the call.
            whole: Calls are all that stands before it.
        """
        try:
            calls, end = self._notation.parse(self._held[:at], self._tools)
        except Unfinished:  # the mark is part of a value
            return True
        except NO_CALL:
            return False
        if whole and self._held[end:at].strip():
            return False
        self._found = calls, self._searched if whole else end
        return not self._notation.is_certain(self._held)

    def _accepted(self) -> list[Call]:
        """The calls found, taken from the text; none where there are none."""
        calls, end = self._found or ([], 0)
        self._held = self._held[end:]
        return calls

    def _starts_again(self, begin: int, end: int) -> bool:
        """Whether another call starts in a part of the text."""
        return any(self._held.find(start, begin, end) >= 0 for start in self._notation.starts)


def forced_schema(notation: ToolFormat, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the JSON of a call to one of these functions keeps to.

    Args:
        notation: How calls are written.
        tools: `{"name": …, "parameters": schema}`.
    """
    name, arguments = notation.keys
    options = []
    for tool in tools:
        given = dict(tool.get("parameters") or {"type": "object"})
        definitions = {key: given.pop(key) for key in ("$defs", "definitions") if key in given}
        properties = {name: {"const": tool["name"]}, arguments: given}
        entry = {
            "type": "object",
            "properties": properties,
            "required": [name, arguments],
            "additionalProperties": False,
        }
        options.append((entry, definitions))
    merged: dict[str, Any] = {}
    for _, found in options:
        for key, named in found.items():
            if any(merged.get(key, {}).get(name, schema) != schema for name, schema in named.items()):
                raise LitGPTError(
                    f"Two tools have different definitions of one name in {key}; give them names of their own."
                )
            merged[key] = {**merged.get(key, {}), **named}
    schema: dict[str, Any] = options[0][0] if len(options) == 1 else {"anyOf": [entry for entry, _ in options]}
    if notation.wraps:
        schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": 1}
    return schema | merged

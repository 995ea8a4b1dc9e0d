"""Answers in channels, as gpt-oss writes them: what it thinks, what it says, what it calls.

`<|channel|>NAME[ to=RECIPIENT]<|message|>TEXT<|end|>`, one after another, the heads of all but the first behind
`<|start|>assistant` (https://cookbook.openai.com/articles/openai-harmony).
"""

from __future__ import annotations

import re
from collections.abc import Collection

from litgpt.deploy.protocol.arguments import arguments_text
from litgpt.deploy.protocol.notations import NO_CALL, Call, Unfinished, json_value
from litgpt.deploy.protocol.tool_calls import MAX_READ, DeltaMessage
from litgpt.engine.detokenizer import partial_match

SIGN = "<|channel|>"
"""It stands in the chat templates of models that write so, and opens an answer."""
MESSAGE = "<|message|>"
ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>")
MARKS = (SIGN, MESSAGE, *ENDS, "<|constrain|>")
"""Special tokens that belong to the notation."""
CALLED = re.compile(r"to=functions\.([\w.-]+)")
THOUGHT = "analysis"


class ChannelParser:
    """Takes an answer piece by piece and parts what is said, called and thought.

    Args:
        names: The tools there are; a call of another is said.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held = ""
        self._in_head = self._first = True
        self._ends: tuple[str, ...] = ENDS
        """What a message ends with; nothing where the answer is in no channel, as a grammar may have it."""
        self._channel = ""
        self._called: str | None = None
        self._arguments = ""
        self._n_read = 0

    def push(self, text: str) -> DeltaMessage:
        """What is said, called and thought, as far as it is certain."""
        self._held += text
        message = DeltaMessage()
        while not self._in_head or self._read_head():
            found = [(at, end) for end in self._ends if (at := self._held.find(end)) >= 0]
            if not found:
                return message + self._content(len(self._held) - partial_match(self._held, self._ends))
            at, end = min(found)
            if self._called is not None and self._is_unfinished(at):
                self._content(at + len(end))
                continue
            message = message + self._content(at) + self._call()
            self._held = self._held.removeprefix(end)
            self._in_head = True
        return message

    def close(self) -> DeltaMessage:
        """What was held back, once the answer is complete."""
        if self._in_head:
            return DeltaMessage(self._held) if self._first and SIGN not in self._held else DeltaMessage()
        return self._content(len(self._held)) + self._call()

    def _read_head(self) -> bool:
        """Reads on to where a message's text begins; False: that is still to come."""
        opens = any(self._held.startswith(start[: len(self._held)]) for start in (SIGN, " to="))
        head, mark, rest = self._held.partition(MESSAGE)
        if self._first and not opens:
            head, rest, self._ends = "", self._held, ()
        elif not mark:
            return False
        channel, called = head.partition(SIGN)[2].split(), CALLED.search(head)
        self._channel, self._called = channel[0] if channel else "", called[1] if called else None
        self._held, self._in_head, self._first = rest, False, False
        return True

    def _content(self, n: int) -> DeltaMessage:
        """What the next `n` characters of a message come to."""
        text, self._held = self._held[:n], self._held[n:]
        if self._called is not None:
            self._arguments += text
            return DeltaMessage()
        return DeltaMessage(reasoning=text) if self._channel == THOUGHT else DeltaMessage(text)

    def _call(self) -> DeltaMessage:
        """The call that a message was, if it was one."""
        name, arguments, self._called, self._arguments = self._called, self._arguments, None, ""
        if name is None:
            return DeltaMessage()
        try:
            call = Call(name, arguments_text(arguments)) if name in self._names else None
        except NO_CALL:
            call = None
        return DeltaMessage(arguments) if call is None else DeltaMessage(calls=(call,))

    def _is_unfinished(self, at: int) -> bool:
        """Whether the mark at `at` stands inside one of a call's values."""
        self._n_read += len(self._arguments) + at
        try:
            json_value(self._arguments + self._held[:at])
        except Unfinished:
            return self._n_read < MAX_READ
        except (ValueError, RecursionError):
            pass
        return False

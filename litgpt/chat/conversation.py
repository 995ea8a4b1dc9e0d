"""A conversation with a model: the turns so far, cut from the front when they outgrow the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from litgpt.chat_template import Message
from litgpt.generate.engine import Engine
from litgpt.generate.sampling import Sampling
from litgpt.generate.speaker import Speaker
from litgpt.generate.text import Reply


@dataclass
class Conversation:
    """Turns of a user and a model; `ask`, read the reply, then `note` what it said."""

    speaker: Speaker
    engine: Engine
    sampling: Sampling
    """Its seed is that of the first turn; the next one has the next number."""
    max_new_tokens: int
    system: str | None = None
    """The system prompt; it is never cut off. None: the prompt style's own, if it has one."""
    messages: list[Message] = field(default_factory=list)
    """The turns that the model still sees."""
    n_turns: int = 0

    def ask(self, text: str) -> tuple[Reply, int]:
        """Adds the user's turn; returns the reply to come and how many older messages had to go to make room for it.

        Raises:
            LitGPTError: `text` alone is longer than the context; the conversation is as before.
        """
        seen = self.messages if self.speaker.multi_turn else []
        messages: list[Message] = [*seen, {"role": "user", "content": text}]
        room = self.engine.length - self.max_new_tokens + 1
        while len(prompt := self._encode(messages)) > room and len(messages) > 1:
            messages = messages[2:]  # a question and its answer
        sampling = self.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + self.n_turns)
        reply = self.speaker.reply(self.engine, prompt, sampling, self.max_new_tokens)
        n_dropped = len(seen) + 1 - len(messages)
        self.messages = messages
        self.n_turns += 1
        return reply, n_dropped

    def note(self, answer: str) -> None:
        """Adds the model's turn; an empty one takes back the question, so that roles go on taking turns."""
        if answer:
            self.messages.append({"role": "assistant", "content": answer})
        else:
            self.messages.pop()

    def reset(self) -> None:
        """Forgets all turns; the system prompt stays."""
        self.messages = []

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return self.speaker.encode_messages([*system, *messages])

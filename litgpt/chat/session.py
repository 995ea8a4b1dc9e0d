"""A conversation with a model: the turns so far, cut from the front when they outgrow the context."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from litgpt.checkpoint.atomic import atomic_file
from litgpt.engine.detokenizer import TextStream
from litgpt.engine.engine import Engine
from litgpt.engine.inference_model import InferenceModel
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError, closest, quoted
from litgpt.prompts.base import Message
from litgpt.reading import read_text, reading

SETTINGS: dict[str, Callable[[str], float]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
    "max_new_tokens": int,
}
"""What `ChatSession.set` knows, and how each is read."""
NO_CONVERSATION, ADVICE = "no conversation that /save wrote", "give another file"


@dataclass
class ChatSession:
    """Turns of a user and a model; `ask`, read the reply, then `add_answer` what it said."""

    inference_model: InferenceModel
    engine: Engine
    sampling: Sampling
    """Its seed is that of the first turn; the next one has the next number."""
    max_new_tokens: int
    system: str | None = None
    """The system prompt; it is never cut off. None: the prompt style's own, if it has one."""
    messages: list[Message] = field(default_factory=list)
    """The turns that the model still sees."""
    n_turns: int = 0

    def ask(self, text: str) -> tuple[TextStream, int]:
        """Adds the user's turn; returns the reply to come and how many older messages had to go to make room for it.

        Raises:
            LitGPTError: `text` alone is longer than the context; the conversation is as before.
        """
        seen = self.messages if self.inference_model.multi_turn else []
        messages: list[Message] = [*seen, {"role": "user", "content": text}]
        room = self.engine.length - self.max_new_tokens + 1
        while len(prompt := self._encode(messages)) > room and len(messages) > 1:
            messages = messages[2:]  # a question and its answer
        sampling = self.sampling.of_sample(self.n_turns)
        reply = self.inference_model.reply(self.engine, prompt, sampling, self.max_new_tokens)
        n_dropped = len(seen) + 1 - len(messages)
        self.messages = messages
        self.n_turns += 1
        return reply, n_dropped

    def add_answer(self, answer: str) -> None:
        """Adds the model's turn; an empty one takes back the question, so that roles go on taking turns."""
        if answer:
            self.messages.append({"role": "assistant", "content": answer})
        else:
            self.messages.pop()

    def reset(self) -> None:
        """Forgets all turns; the system prompt stays."""
        self.messages = []

    def set_system_prompt(self, system: str | None) -> None:
        """Forgets all turns, and the system prompt for another one.

        Raises:
            LitGPTError: The prompt style has no place for one; the conversation is as before.
        """
        if system:
            self.inference_model.encode_messages(
                [{"role": "system", "content": system}, {"role": "user", "content": "Hi"}]
            )
        self.system = system or None
        self.reset()

    def set(self, name: str, text: str) -> None:
        """Changes a setting of the answers to come, written as text; `null` leaves it out.

        Raises:
            LitGPTError: There is no such setting, or the value is not one of it; all is as before.
        """
        if name not in SETTINGS:
            raise LitGPTError(f"There is no setting {quoted(name)}.{closest(name, SETTINGS)}")
        try:
            value = None if text.lower() in ("null", "none") else SETTINGS[name](text)
        except ValueError:
            raise LitGPTError(f"{name} can't be {quoted(text)}; give a number.") from None
        if name == "max_new_tokens":
            if not isinstance(value, int) or value < 1:
                raise LitGPTError(f"max_new_tokens is {text}; it must be 1 or more.")
            self.max_new_tokens = value
            return
        changes: dict[str, Any] = {name: value}
        self.sampling = replace(self.sampling, **changes)

    @property
    def settings(self) -> dict[str, float | None]:
        """What `set` changes, by name."""
        return {name: getattr(self if name == "max_new_tokens" else self.sampling, name) for name in SETTINGS}

    def save(self, file: str | Path) -> None:
        """Writes the turns and the system prompt to a JSON file.

        Raises:
            LitGPTError: It can't be written.
        """
        with atomic_file(Path(file).expanduser()) as temporary:
            content = {"system": self.system, "messages": self.messages}
            temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def load(self, file: str | Path) -> None:
        """Goes on with the conversation that `save` wrote.

        Raises:
            LitGPTError: The file can't be read, or is none; the conversation is as before.
        """
        path = Path(file).expanduser()
        text = read_text(path, NO_CONVERSATION, advice=ADVICE)
        with reading(path, NO_CONVERSATION, ADVICE):
            content = json.loads(text)
            system, messages = content["system"], content["messages"]
            turns = [(message["role"], message["content"]) for message in messages]
        roles = [role for role, _ in turns]
        texts = [text for _, text in turns] + ([] if system is None else [system])
        if roles != ["user", "assistant"] * (len(roles) // 2) or not all(isinstance(text, str) for text in texts):
            raise LitGPTError(f"{file} is no conversation of questions and answers in turns.")
        self.system = system
        self.messages = [{"role": role, "content": text} for role, text in turns]

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return self.inference_model.encode_messages([*system, *messages])

"""What a prompt style is: how an instruction or a conversation becomes the text that a model was trained to answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from litgpt.errors import LitGPTError, UnknownNameError, closest, quoted

if TYPE_CHECKING:
    from litgpt.config import Config
    from litgpt.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""`{"role": "system" | "user" | "assistant" | …, "content": text, …}`."""

prompt_styles: dict[str, type[PromptStyle]] = {}
"""Name on the command line → style."""
by_path: dict[str, type[PromptStyle]] = {}
"""`litgpt.prompts.Alpaca` → style; what a `prompt_style.yaml` may name."""


class PromptStyle:
    """A way to write prompts. Subclass it with a row like those below, or with an `apply` of your own."""

    begin: ClassVar[str] = ""
    """What a conversation begins with."""
    system: ClassVar[str] = ""
    """How a system message is written (`{text}`); nothing where the style has no place for one."""
    system_end: ClassVar[str] = ""
    """What a system message ends with, of itself or not."""
    default_system: str | None = None
    """The system message where none is given."""
    user: ClassVar[str] = ""
    """How a user's message (`{prompt}`) is written; `{system}`: the system message as written, in the first one."""
    reply: ClassVar[str] = ""
    """What stands before an answer."""
    end: ClassVar[str] = "\n\n"
    """What stands after an answer that another message follows."""
    stops: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Sequences of tokens that end an answer, besides the tokenizer's own EOS; those it hasn't got don't count."""
    adds_bos: bool = False
    """Whether the text carries its own BOS: encode it with `bos=False`."""

    def __init_subclass__(cls, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        by_path[public_path(cls)] = cls
        if name is not None:
            prompt_styles[name] = cls

    @classmethod
    def from_name(cls, name: str) -> PromptStyle:
        """The style called `name` on the command line (`alpaca`), or its class (`Alpaca`).

        Raises:
            LitGPTError: There is none.
        """
        found = prompt_styles.get(name) or by_path.get(f"litgpt.prompts.{name}")
        if found is None:
            raise UnknownNameError(
                f"Unknown prompt style {quoted(name)}.{closest(name, prompt_styles)} Known: {', '.join(prompt_styles)}."
            )
        return found()

    @classmethod
    def from_config(cls, config: Config) -> PromptStyle:
        """The style that the model's family knows for its name, else `Default`."""
        name = config.family.prompt_style(config.name)
        return PromptStyle.from_name(name or "default")

    def apply(self, prompt: str | Sequence[Message], *, sys_prompt: str | None = None, **kwargs: Any) -> str:
        """The text that an answer follows.

        Args:
            prompt: An instruction, or a conversation as messages.
            sys_prompt: A system message instead of the style's own; styles without a place for one leave it out.
            kwargs: The other keys of a sample; `Alpaca` reads `input`.
        """
        if not isinstance(prompt, str):
            messages = list(prompt)
            if sys_prompt and split_system(messages)[0] is None:
                messages.insert(0, {"role": "system", "content": sys_prompt})
            return self.apply_messages(messages)
        return self.begin + self._user(prompt, self._system(sys_prompt, kwargs), kwargs) + self.reply

    def apply_sample(self, sample: Mapping[str, Any]) -> str:
        """The prompt of an instruction sample: its `instruction`, with its other keys, whatever they are called."""
        others = {key: value for key, value in sample.items() if key not in ("instruction", "prompt", "self", "output")}
        return self.apply(sample["instruction"], **others)

    def apply_messages(
        self,
        messages: Sequence[Message],
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: At most one system message, at the start, then the user and the assistant in turn.
            add_generation_prompt: End with what stands before the next answer.
            tools: Only `ChatTemplate` has a place for them.

        Raises:
            LitGPTError: The style cannot write this conversation.
        """
        if tools:
            raise LitGPTError(
                f"The prompt style {type(self).__name__} has no place for tools; `chat`, the tokenizer's own, may have."
            )
        system, turns = split_system(messages)
        if not self.user:
            if len(turns) != 1 or not add_generation_prompt:
                raise LitGPTError(f"The prompt style {type(self).__name__} writes single prompts, not conversations.")
            return self.apply(_text(turns[0]), sys_prompt=system)
        text, waiting = self.begin, self._system(system, {})
        for message in turns:
            content = _text(message)
            if message["role"] == "user":
                text, waiting = text + self._user(content, waiting, {}), ""
            elif message["role"] == "assistant":
                text += self.reply + content + self.end
            else:
                raise LitGPTError(
                    f"The prompt style {type(self).__name__} knows the roles system (first), user and assistant, "
                    f"not {quoted(message['role'])}."
                )
        return text + self.reply if add_generation_prompt else text

    def stop_tokens(self, tokenizer: Tokenizer) -> tuple[list[int], ...]:
        """The sequences of ids that end an answer: the tokenizer's own, then the style's."""
        from litgpt.tokenizer import Tokenizer

        tokenizer = tokenizer if hasattr(tokenizer, "stop_ids") else Tokenizer.of(tokenizer)
        found = [[index] for index in tokenizer.stop_ids]
        for tokens in self.stops:
            try:
                ids = [tokenizer.token_to_id(token) for token in tokens]
            except LitGPTError:
                continue
            if ids not in found:
                found.append(ids)
        return tuple(found)

    def for_checkpoint(self, checkpoint_dir: str | Path) -> PromptStyle:
        """The style as it is with this checkpoint's tokenizer; only `ChatTemplate` differs."""
        return self

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments that make this style again."""
        return {}

    def _system(self, given: str | None, sample: Mapping[str, Any]) -> str:
        """The system message as it stands in the first user's message."""
        text = given or self.default_system
        if text is None:
            return ""
        text = text if text.endswith(self.system_end) else text.rstrip("\n") + self.system_end
        return self.system.format(text=text)

    def _user(self, prompt: str, system: str, sample: Mapping[str, Any]) -> str:
        return self.user.format(system=system, prompt=prompt)


def split_system(messages: Sequence[Message]) -> tuple[str | None, Sequence[Message]]:
    """The system message that a conversation begins with, if any, and the rest.

    Raises:
        LitGPTError: No message, or one without a role.
    """
    if not messages:
        raise LitGPTError("A conversation needs at least one message.")
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message:
            raise LitGPTError(f"A message is a table with `role` and `content`, not {quoted(message)}.")
    if messages[0]["role"] == "system":
        return _text(messages[0]), messages[1:]
    return None, messages


def _text(message: Message) -> str:
    """A message's text: a string, or the text parts of a list."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    text = join_text(content) if isinstance(content, list | tuple) else None
    if text is None:
        raise LitGPTError(f"A {message['role']} message holds something other than text: {quoted(content)}.")
    return text


def join_text(parts: Sequence[Any]) -> str | None:
    """The parts of a message's content as one text; None where one is something else."""
    texts = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type", "text") == "text"]
    known = [text for text in texts if isinstance(text, str)]
    return "".join(known) if len(known) == len(parts) else None


def protected_message(message: Message, protect: Callable[[str], str]) -> Message:
    """A message whose text went through `Tokenizer.protect`; the assistant's own is left as it is.

    What an assistant writes holds marks that are special tokens (of its reasoning, of its calls); nobody else may.
    """
    content = message.get("content")
    if message.get("role") == "assistant":
        return message
    if isinstance(content, str):
        return {**message, "content": protect(content)}
    if not isinstance(content, list | tuple):
        return message
    parts = [
        {**part, "text": protect(text)}
        if isinstance(part, Mapping) and isinstance(text := part.get("text"), str)
        else part
        for part in content
    ]
    text, protected = join_text(content), join_text(parts)
    if text is not None and protect(text) != protected:  # one begins in a part and ends in another
        parts = [{"type": "text", "text": protect(text)}]
    return {**message, "content": parts}


def public_path(style: type[PromptStyle]) -> str:
    """Where a style is imported from: `litgpt.prompts.Alpaca`, whichever of the package's files has it."""
    module = "litgpt.prompts" if style.__module__.startswith("litgpt.prompts.") else style.__module__
    return f"{module}.{style.__qualname__}"


def model_name_to_prompt_style(model_name: str) -> PromptStyle:
    """The style that goes with a model's name, known or not; `Default` where none does."""
    from litgpt.config import name_to_config
    from litgpt.families import BY_NAME, FAMILIES

    own = name_to_config.get(model_name, {}).get("family_name")
    found = (family.prompt_style(model_name) for family in ([BY_NAME[own]] if own else FAMILIES))
    return PromptStyle.from_name(next(filter(None, found), "default"))

"""The flags that every `generate*` command has beside LitGPT's, stated once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litgpt.errors import LitGPTError

if TYPE_CHECKING:
    from litgpt.engine.sampling import Sampling
    from litgpt.engine.structured import Grammar
    from litgpt.tokenizer import Tokenizer

SEED = 1234
"""Of the first sample; the next one has the next number."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How tokens are drawn beyond temperature, top-k and top-p, what ends an answer, and prompts from a file.

    Args:
        min_p: Leave out tokens less likely than this share of the best one's probability.
        repetition_penalty: Above 1, tokens of the prompt and the answer become less likely.
        presence_penalty: Taken off the score of every token that is in the answer.
        frequency_penalty: Taken off the score of a token each time it occurs in the answer.
        seed: Of the first sample; the next one has the next number.
        stop: Texts that end the answer and are not part of it.
        json_schema: A JSON schema, or a file with one, that the answer must keep to.
        regex: A regular expression that the answer must match as a whole.
        prompt_file: A file of prompts that are answered together, one a line; in a .jsonl file each line is an object
            with `prompt` or `messages`, and with any of these settings of its own.
        out_file: Write the answers to `prompt_file` here, one JSON object a line; null prints them.
    """

    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = SEED
    stop: str | list[str] | None = None
    json_schema: str | None = None
    regex: str | None = None
    prompt_file: Path | None = None
    out_file: Path | None = None

    def sampling(self, temperature: float, top_k: int | None, top_p: float) -> Sampling:
        """What these flags say of how tokens are drawn, but for the grammar, which needs a tokenizer.

        Raises:
            LitGPTError: A value is out of its range, or flags that don't go together are given.
        """
        from litgpt.engine.sampling import Sampling
        from litgpt.engine.text import stop_strings

        if self.out_file is not None and self.prompt_file is None:
            raise LitGPTError("out_file is for the answers to prompt_file; give that too.")
        if self.prompt_file is not None and self.out_file == self.prompt_file:
            raise LitGPTError("out_file would replace prompt_file; give another name.")
        stop_strings(self.stop)
        names = ("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed")
        own = {name: getattr(self, name) for name in names}
        return Sampling(temperature=temperature, top_k=top_k, top_p=top_p, **own)

    def grammar(self, tokenizer: Tokenizer) -> Grammar | None:
        """What `json_schema` or `regex` asks for."""
        return grammar_of(tokenizer, self.json_schema, self.regex)


def grammar_of(tokenizer: Tokenizer, json_schema: Any = None, regex: str | None = None) -> Grammar | None:
    """The grammar of a JSON schema (an object, its text, or a file with it) or of a regular expression, or None.

    Raises:
        LitGPTError: Both are given, or the one that is can't be used.
    """
    if json_schema is None and regex is None:
        return None
    if json_schema is not None and regex is not None:
        raise LitGPTError("An answer can keep to json_schema or to regex, not to both; leave one out.")
    from litgpt.engine.structured import Grammar

    if regex is not None:
        return Grammar.regex(regex, tokenizer)
    if isinstance(json_schema, str) and not json_schema.lstrip().startswith(("{", "[")):
        try:
            json_schema = Path(json_schema).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise LitGPTError(
                f"json_schema is {json_schema!r}, which is neither JSON nor a file that can be read."
            ) from None
    return Grammar.json_schema(json_schema, tokenizer)

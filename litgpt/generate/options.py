"""The flags of the `generate*` commands, stated once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litgpt.args import Quantization, inherits
from litgpt.errors import LitGPTError

if TYPE_CHECKING:
    from litgpt.engine.sampling import Sampling

PROMPT = "What food do llamas eat?"
SEED = 1234
"""Of the first sample; the next one has the next number."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every command has beside LitGPT's flags: how tokens are drawn beyond temperature, top-k and top-p, what ends
    an answer, and prompts from a file.

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
        deterministic: Give a prompt the answer that it gets alone, to the bit; slower among others.
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
    deterministic: bool = False

    @classmethod
    def of(cls, flags: Mapping[str, Any]) -> Options:
        """Those among a command's flags."""
        return cls(**{field.name: flags[field.name] for field in fields(cls)})

    def sampling(self, temperature: float, top_k: int | None, top_p: float) -> Sampling:
        """What these flags say of how tokens are drawn, but for the grammar, which needs a tokenizer.

        Raises:
            LitGPTError: A value is out of its range, or flags that don't go together are given.
        """
        from litgpt.engine.detokenizer import stop_strings
        from litgpt.engine.sampling import Sampling

        if self.out_file is not None and self.prompt_file is None:
            raise LitGPTError("out_file is for the answers to prompt_file; give that too.")
        if self.prompt_file is not None and self.out_file == self.prompt_file:
            raise LitGPTError("out_file would replace prompt_file; give another name.")
        stop_strings(self.stop)
        names = ("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed")
        own = {name: getattr(self, name) for name in names}
        return Sampling(temperature=temperature, top_k=top_k, top_p=top_p, **own)


@inherits(Options)
def prompt_flags(
    prompt: str = PROMPT,
    *,
    sys_prompt: str | None = None,
    num_samples: int = 1,
    max_new_tokens: int = 50,
    top_k: int | None = 50,
    top_p: float = 1.0,
    temperature: float = 0.8,
    quantize: Quantization | None = None,
    precision: str | None = None,
    compile: bool = False,
    **options: Any,
) -> None:
    """What the commands that print prompt and answer take besides a model; they inherit it.

    Args:
        prompt: What to answer or continue.
        sys_prompt: The system prompt, for prompt styles that have one.
        num_samples: How many answers to generate.
        max_new_tokens: The most tokens an answer may have.
        top_k: Choose among this many most likely tokens; null: all.
        top_p: Choose among the most likely tokens that have this much probability together.
        temperature: Higher is more random; 0 always takes the most likely token.
        quantize: Keep the weights in 4 or 8 bits: bnb.* by bitsandbytes; int8 and int4 are faster on CPUs.
        precision: 32-true, bf16-true, 16-true, bf16-mixed or 16-mixed; null: 16 bits where the device has them.
        compile: Compile the model first.
    """


@inherits(Options)
def finetuned_flags(
    checkpoint_dir: Path,
    prompt: str = PROMPT,
    input: str = "",
    sys_prompt: str | None = None,
    quantize: Quantization | None = None,
    max_new_tokens: int = 100,
    top_k: int | None = 50,
    top_p: float = 1.0,
    temperature: float = 0.8,
    precision: str | None = None,
    **options: Any,
) -> None:
    """What the commands for finetuned models take besides the file of what was learned; they inherit it.

    Args:
        checkpoint_dir: The folder of the model that was finetuned, LitGPT's or Hugging Face's.
        prompt: The instruction to answer.
        input: Further context of the instruction.
        sys_prompt: The system prompt, for prompt styles that have one.
        quantize: Keep the weights in 4 or 8 bits: bnb.* by bitsandbytes; int8 and int4 are faster on CPUs.
        max_new_tokens: The most tokens the answer may have.
        top_k: Choose among this many most likely tokens; null: all.
        top_p: Choose among the most likely tokens that have this much probability together.
        temperature: Higher is more random; 0 always takes the most likely token.
        precision: 32-true, bf16-true, 16-true, bf16-mixed or 16-mixed; null: 16 bits where the device has them.
    """

"""How text is cut into words before byte-level BPE, by the names that GGUF has for it (`tokenizer.ggml.pre`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

LLAMA_3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2_PATTERN = LLAMA_3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
O200K_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + CONTRACTION + "|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + CONTRACTION + "|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_3_PATTERNS = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """A way of cutting text into words before byte-level BPE."""

    names: tuple[str, ...]
    """`tokenizer.ggml.pre`; the first one is written."""
    patterns: tuple[str, ...] = ()
    """Words, as regular expressions, one after the other; none: GPT-2's."""
    digits: bool = False
    """Each digit is a word."""
    nfc: bool = False
    """Text is composed first (Unicode NFC)."""
    ignore_merges: bool = False
    """A word in the vocabulary is one token whatever the merges say."""
    adds_bos: bool = False
    """Texts open with BOS where the file doesn't say."""
    steps: Callable[[], list[Any]] | None = None
    """The cutting itself, where it is none of this."""

    def apply_to(self, processor: tokenizers.Tokenizer) -> None:
        """Makes a tokenizer cut text this way."""
        from tokenizers import Regex, normalizers, pre_tokenizers

        if self.nfc:
            processor.normalizer = normalizers.NFC()
        first: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self.patterns]
        first += [pre_tokenizers.Digits(individual_digits=True)] if self.digits else []
        steps = [*first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not self.patterns)]
        steps = self.steps() if self.steps else steps
        processor.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]

    def matches(self, state: Mapping[str, Any]) -> bool:
        """Whether a tokenizer, as `tokenizer.json` has it, cuts text this way."""
        from tokenizers import Tokenizer, models

        other = Tokenizer(models.BPE())
        self.apply_to(other)
        same_words = bool(state["model"].get("ignore_merges")) == self.ignore_merges
        return same_words and steps_before_model(state) == steps_before_model(json.loads(other.to_str()))


def falcon_steps() -> list[Any]:
    """Falcon cuts at punctuation first, and numbers last, every three digits."""
    from tokenizers import Regex, pre_tokenizers

    return [
        pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
    ]


PRE_TOKENIZERS = (
    PreTokenizer(("gpt-2",)),
    PreTokenizer(("olmo", "mpt"), nfc=True),
    PreTokenizer(("smollm", "starcoder", "refact", "command-r"), digits=True),
    PreTokenizer(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"),
        patterns=(LLAMA_3_PATTERN,),
        ignore_merges=True,
        adds_bos=True,
    ),
    PreTokenizer(("smaug-bpe",), patterns=(LLAMA_3_PATTERN,)),
    PreTokenizer(("qwen2", "deepseek-r1-qwen"), patterns=(QWEN_2_PATTERN,), nfc=True),
    PreTokenizer(("tekken",), patterns=(TEKKEN_PATTERN,), ignore_merges=True, adds_bos=True),
    PreTokenizer(("gpt-4o",), patterns=(O200K_PATTERN,), ignore_merges=True),
    PreTokenizer(("gpt-4o", "llama4"), patterns=(O200K_PATTERN,)),
    PreTokenizer(("deepseek-v3",), patterns=DEEPSEEK_3_PATTERNS),
    PreTokenizer(("falcon",), steps=falcon_steps),
)
PRE_TOKENIZER_BY_NAME = {name: pre for pre in PRE_TOKENIZERS for name in pre.names}


def steps_before_model(state: Mapping[str, Any]) -> list[Any]:
    """What a tokenizer, as `tokenizer.json` has it, does to a text before its model, as a flat list."""
    return [*_flat(state["normalizer"], "normalizers"), *_flat(state["pre_tokenizer"], "pretokenizers")]


def _flat(part: Mapping[str, Any] | None, inner: str) -> list[Any]:
    if part is None:
        return []
    if inner in part:
        return [step for other in part[inner] for step in _flat(other, inner)]
    return [{key: value for key, value in part.items() if key != "trim_offsets"}]  # which is about places, not ids

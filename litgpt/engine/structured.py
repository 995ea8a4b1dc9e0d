"""Answers that keep to a JSON schema or a regular expression: llguidance computes which tokens may come next.

V: scores a token can have, `padded_vocab_size` of the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from litgpt.errors import LitGPTError, MissingPackageError, quoted
from litgpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    import llguidance

WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"
"""Between the parts of a JSON text; small models that may write as much of it as they like never stop."""


class Grammar:
    """What an answer may look like, compiled for one tokenizer; `Sampling.grammar` takes it, for any number of answers.

    Make one with `json_schema`, `json_object`, `regex` or `of`.
    """

    def __init__(self, rules: str, tokenizer: Tokenizer, what: str) -> None:
        """Args: the grammar in llguidance's own form, the tokenizer, and what an error calls it.

        Raises:
            LitGPTError: llguidance is not installed, or the grammar is none.
        """
        matcher = _llguidance().LLMatcher
        self._vocabulary = _vocabulary(tokenizer)
        problem = matcher.validate_grammar(rules, self._vocabulary)
        if problem and not problem.startswith("WARNING"):
            raise _refused(what, problem)
        self._start = matcher(self._vocabulary, rules, log_level=0)
        if self._start.is_error():
            raise _refused(what, self._start.get_error())
        trial = self._start.deep_copy()
        trial.compute_bitmask()
        if trial.is_error():
            raise _refused(what, "no text could ever keep to it")

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str, tokenizer: Tokenizer) -> Grammar:
        """JSON that a schema describes.

        Args:
            schema: As an object, or as JSON text.
            tokenizer: The model's.

        Raises:
            LitGPTError: The schema is no JSON object, or says what can't be enforced; llguidance is not installed.
        """
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except json.JSONDecodeError as error:
                raise LitGPTError(f"The JSON schema is no valid JSON: {error}.") from None
        if not isinstance(schema, Mapping):
            raise LitGPTError(f"A JSON schema is an object, not {json.dumps(schema)[:80]}.")
        compiler = _llguidance().LLMatcher
        try:
            rules = compiler.grammar_from_json_schema(dict(schema), overrides={"whitespace_pattern": WHITESPACE})
        except (ValueError, TypeError) as error:
            raise _refused("The JSON schema", str(error)) from None
        return cls(rules, tokenizer, "The JSON schema")

    @classmethod
    def json_object(cls, tokenizer: Tokenizer) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"}, tokenizer)

    @classmethod
    def regex(cls, pattern: str, tokenizer: Tokenizer) -> Grammar:
        """Text that a regular expression matches as a whole.

        Raises:
            LitGPTError: The pattern is none, or uses what can't be enforced (look-around, backreferences); llguidance
                is not installed.
        """
        if not isinstance(pattern, str):
            raise LitGPTError(f"A regular expression is a text, not {quoted(pattern)}.")
        rules = _llguidance().LLMatcher.grammar_from_regex(pattern)
        return cls(rules, tokenizer, f"The regular expression {quoted(pattern)}")

    @classmethod
    def of(cls, tokenizer: Tokenizer, json_schema: Any = None, regex: str | None = None) -> Grammar | None:
        """The grammar of a JSON schema (an object, its text, or a file with it) or of a regular expression; None of
        neither.

        Raises:
            LitGPTError: Both are given, or the one that is can't be used.
        """
        if json_schema is not None and regex is not None:
            raise LitGPTError("An answer can keep to json_schema or to regex, not to both; leave one out.")
        if regex is not None:
            return cls.regex(regex, tokenizer)
        if isinstance(json_schema, str) and not json_schema.lstrip().startswith(("{", "[")):
            try:
                json_schema = Path(json_schema).expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                raise LitGPTError(
                    f"json_schema is {quoted(json_schema)}, which is neither JSON nor a file that can be read."
                ) from None
        return None if json_schema is None else cls.json_schema(json_schema, tokenizer)

    def accepts(self, tokens: Sequence[int]) -> bool:
        """Whether these tokens, as a whole, keep to it."""
        matcher = self._start.deep_copy()
        return bool(matcher.try_consume_tokens(list(tokens)) == len(tokens) and matcher.is_accepting())

    def start(self) -> Match:
        """The grammar before the first token of an answer."""
        return Match(self._start.deep_copy(), self._vocabulary)


class Match:
    """How far an answer has come in its grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, vocabulary: llguidance.LLTokenizer) -> None:
        self._matcher = matcher
        self._size: int = vocabulary.vocab_size
        self._ends = frozenset(vocabulary.eos_tokens)

    @property
    def complete(self) -> bool:
        """Whether nothing more may follow."""
        return bool(self._matcher.is_stopped())

    def restrict(self, scores: Tensor) -> None:
        """Takes every token that may not come next out of the scores `(V,)`, in place.

        Raises:
            LitGPTError: The grammar is too complex to go on with.
        """
        bits = torch.frombuffer(bytearray(self._matcher.compute_bitmask()), dtype=torch.uint8)
        if self._matcher.is_error():
            raise LitGPTError(f"The answer can't be held to its grammar: {_one_sentence(self._matcher.get_error())}.")
        allowed = (bits[:, None] >> torch.arange(8, dtype=torch.uint8) & 1).bool().flatten()  # (>= vocabulary,)
        known = min(self._size, scores.size(0))
        scores[known:] = float("-inf")
        scores[:known].masked_fill_(~allowed[:known].to(scores.device), float("-inf"))

    def accept(self, token: int) -> bool:
        """Goes on by a token that the last `restrict` left; whether it is text and not the mark of the end."""
        self._matcher.consume_token(token)
        return token not in self._ends


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise MissingPackageError(
            "Answers by a JSON schema or a regular expression need llguidance; install it with"
            " `pip install 'litgpt[structured]'`."
        ) from None
    return llguidance


@lru_cache(maxsize=4)  # a second of work for a large vocabulary
def _vocabulary(tokenizer: Tokenizer) -> llguidance.LLTokenizer:
    """The tokens as llguidance knows them; where the tokenizer has no end token, one beyond the last stands for it."""
    library = _llguidance()
    size, ends = len(tokenizer), list(tokenizer.stop_ids)
    if tokenizer.backend == "huggingface" and ends:
        try:
            return library.LLTokenizer(tokenizer.processor.to_str(), n_vocab=size, eos_token=ends)
        except ValueError:  # a kind of tokenizer that it can't read, one of single characters for example
            pass
    wrapper = library.TokenizerWrapper(_Pieces(tokenizer))
    return library.LLTokenizer(wrapper, n_vocab=len(wrapper.tokens), eos_token=ends or [size])


class _Pieces:
    """The bytes of every token, for tokenizers that llguidance can't read by itself."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        ends = tokenizer.stop_ids
        self.eos_token_id = ends[0] if ends else len(tokenizer)
        texts = [tokenizer.token_bytes(token, skip_special_tokens=True) for token in range(len(tokenizer))]
        self.tokens: Sequence[bytes] = texts + ([] if ends else [b"<end>"])
        self.special_token_ids = [self.eos_token_id, *(token for token, text in enumerate(self.tokens) if not text)]
        self._ids = {text: token for token, text in enumerate(self.tokens) if token not in self.special_token_ids}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes) -> list[int]:
        """Longest tokens first: text that a grammar forces stands in the middle of an answer, and the tokenizer itself
        would open it with a space."""
        ids, at = list[int](), 0
        while at < len(text):
            ends = range(min(at + self._longest, len(text)), at, -1)
            end = next((end for end in ends if text[at:end] in self._ids), None)
            if end is None:
                break
            ids.append(self._ids[text[at:end]])
            at = end
        return ids


def _refused(what: str, problem: str) -> LitGPTError:
    return LitGPTError(f"{what} can't be used: {_one_sentence(problem)}.")


def _one_sentence(problem: str) -> str:
    """What llguidance says, on one line and without its own preface; of the drawings that it makes of a regular
    expression, the line with the reason."""
    lines = [line.strip() for line in problem.splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("error: ")), (lines or ["unknown reason"])[0])
    return re.sub(r"^error: |\s+(?=\s)", "", reason, flags=re.IGNORECASE)[:200].rstrip(".")

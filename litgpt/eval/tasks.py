"""What tasks do that need a file and nothing else: `perplexity:FILE`, `choice:FILE`, `match:FILE`."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from litgpt.data.storage.data_files import DATA_SUFFIXES, format_suffix, location, read_rows, read_text, read_texts
from litgpt.errors import LitGPTError, quoted
from litgpt.eval.models import Answering, EvaluatedModel, Windows
from litgpt.eval.results import share
from litgpt.prompts.base import Message

PROMPTS = ("prompt", "question", "query", "context", "ctx", "instruction")
"""Keys of what is asked; the first that a row has counts."""
QUESTIONS = frozenset({"question"})
"""Those whose text is written as `Question: …` with `Answer:` below it."""
CHOICES = ("choices", "options", "endings")
ANSWERS = ("answer", "gold", "label", "target", "output")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SOLUTION = re.compile(r"####\s*(-?[\d.,]*\d)")
"""Where GSM8K (https://arxiv.org/abs/2110.14168) writes the result behind the way to it."""
NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")
ENDS = ("\n\n", "Question:", "</s>", "<|im_end|>")
"""What ends an answer that is not given in a chat."""


@dataclass(frozen=True)
class Settings:
    """What holds for all tasks of an evaluation."""

    limit: float | None = None
    """So many samples of each task, or below 1 that share of them; None: all."""
    num_fewshot: int | None = None
    """Samples that are shown with their answers before each other one; None: none."""
    seed: int = 1234
    """Chooses these samples."""
    windows: Windows = field(default_factory=Windows)
    max_new_tokens: int = 256
    """Of a free answer."""
    chat: bool = False
    """Whether what is answered freely is asked in the model's prompt style."""

    def first(self, samples: list[Any]) -> list[Any]:
        """Those that the limit leaves."""
        if self.limit is None:
            return samples
        count = math.ceil(self.limit * len(samples)) if self.limit < 1 else int(self.limit)
        return samples[:count]


@dataclass(frozen=True)
class Outcome:
    """What one task found."""

    results: dict[str, Any]
    """As lm-eval has them: `metric,filter` and `metric_stderr,filter`."""
    n_samples: int
    config: dict[str, Any]
    """How it was asked."""
    n_total: int
    """Samples there are."""


@dataclass(frozen=True)
class Sample:
    """A row of `choice` or `match`."""

    prompt: str
    """As a text that is continued."""
    asked: str
    """As a message of a chat."""
    answer: Any
    choices: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------------ perplexity


def perplexity(file: Path, model: EvaluatedModel, settings: Settings) -> Outcome:
    """How well the model predicts texts: of a text file all of it as one, of rows those under `text`."""
    has_rows = format_suffix(file) in DATA_SUFFIXES
    there = [text for text in (read_texts(file, "text") if has_rows else [read_text(file)]) if text]
    texts = settings.first(there)
    if not texts:
        raise LitGPTError(f"{file} has no text to predict.")
    found = model.rolling(texts, settings.windows)
    logprob, n_tokens = sum(one.logprob for one in found), sum(one.n_tokens for one in found)
    n_bytes, n_words = sum(len(text.encode()) for text in texts), sum(len(text.split()) for text in texts)
    if not n_tokens:
        raise LitGPTError(f"{file} has no token to predict.")
    measured = {
        "loss": -logprob / n_tokens,
        "perplexity": _exp(-logprob / n_tokens),
        "bits_per_byte": -logprob / n_bytes / math.log(2),
        "byte_perplexity": _exp(-logprob / n_bytes),
        "word_perplexity": _exp(-logprob / n_words) if n_words else math.nan,
        "n_tokens": n_tokens,
        "n_bytes": n_bytes,
        "n_words": n_words,
    }
    size = settings.windows.size or model.context
    windows = {"window": size, "stride": settings.windows.stride or size}
    return Outcome({f"{name},none": value for name, value in measured.items()}, len(texts), windows, len(there))


def _exp(nats: float) -> float:
    return math.exp(min(nats, 700.0))


# ---------------------------------------------------------------------------------------------- choices and matches


def read_samples(file: Path, choices: bool) -> list[Sample]:
    """The rows of a file, in order.

    Raises:
        LitGPTError: There are none, or one lacks a key or has an answer that is none of its choices.
    """
    samples = []
    for line, row in read_rows(file):
        try:
            samples.append(_sample(row, choices))
        except LitGPTError as error:
            raise LitGPTError(f"{location(file, line)}: {error}") from None
    if not samples:
        raise LitGPTError(f"{file} has no samples.")
    return samples


def _sample(row: Mapping[str, Any], wants_choices: bool) -> Sample:
    key = _key(row, PROMPTS, "what is asked")
    asked = row[key]
    if not isinstance(asked, str):
        raise LitGPTError(f"{key} is {quoted(asked)}; it must be a text.")
    if isinstance(row.get("input"), str) and row["input"]:
        asked = f"{asked}\n\n{row['input']}"
    prompt = f"Question: {asked}\nAnswer:" if key in QUESTIONS else asked
    given = row[_key(row, ANSWERS, "an answer")]
    if not wants_choices:
        if not isinstance(given, str | int | float) or isinstance(given, bool):
            raise LitGPTError(f"The answer is {quoted(given)}; it must be a text or a number.")
        return Sample(prompt, asked, str(given))
    choices = row[_key(row, CHOICES, "choices")]
    if isinstance(choices, Mapping):  # {"label": [...], "text": [...]}, as ARC has it
        labels, choices = choices.get("label"), choices.get("text")
        given = labels.index(given) if isinstance(labels, list) and given in labels else given
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(each, str) and each for each in choices):
        raise LitGPTError(f"The choices are {quoted(choices)}; they must be a list of at least two texts.")
    return Sample(prompt, asked, _index(given, choices), tuple(choices))


def _key(row: Mapping[str, Any], names: Sequence[str], what: str) -> str:
    found = next((name for name in names if name in row), None)
    if found is None:
        raise LitGPTError(f"There is no {what}, under one of {', '.join(names)}.")
    return found


def _index(given: Any, choices: Sequence[str]) -> int:
    """Which of the choices an answer is: its number from 0, its letter, or its text."""
    if isinstance(given, str) and given in choices:
        return choices.index(given)
    if isinstance(given, str) and len(given) == 1 and given.upper() in LETTERS[: len(choices)]:
        return LETTERS.index(given.upper())
    number = int(given) if isinstance(given, str) and given.isdecimal() and len(given) < 4 else given
    if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(choices):
        return number
    raise LitGPTError(
        f"The answer is {quoted(given)}, which is none of the {len(choices)} choices, by number from 0, letter or text."
    )


def _split(samples: list[Sample], settings: Settings) -> tuple[list[Sample], list[Sample]]:
    """Samples to show with their answers, the same before each of the others, and these.

    Raises:
        LitGPTError: There are not so many.
    """
    n = settings.num_fewshot or 0
    if n < 0 or n >= len(samples):
        raise LitGPTError(f"num_fewshot is {n}, and there are {len(samples)} samples; it must be 0 or more, and fewer.")
    shown = random.Random(settings.seed).sample(range(len(samples)), n)
    others = [sample for number, sample in enumerate(samples) if number not in set(shown)]
    return [samples[number] for number in shown], settings.first(others)


def _gap(text: str) -> str:
    """What stands between a prompt and what continues it."""
    return "" if text[-1:].isspace() else " "


def choice(file: Path, model: EvaluatedModel, settings: Settings) -> Outcome:
    """Whether the model holds the right one of several continuations most likely, as they are (`acc`) and by character
    (`acc_norm`)."""
    there = read_samples(file, choices=True)
    shown, samples = _split(there, settings)
    examples = "".join(f"{one.prompt}{_gap(one.prompt)}{one.choices[one.answer]}\n\n" for one in shown)
    pairs = [(examples + sample.prompt, _gap(sample.prompt) + text) for sample in samples for text in sample.choices]
    scores = iter(model.loglikelihood(pairs))
    right: list[float] = []
    right_by_character: list[float] = []
    for sample in samples:
        found = [next(scores).logprob for _ in sample.choices]
        by_character = [logprob / len(text) for logprob, text in zip(found, sample.choices, strict=True)]
        right.append(float(found.index(max(found)) == sample.answer))
        right_by_character.append(float(by_character.index(max(by_character)) == sample.answer))
    measured = share(right, "acc") | share(right_by_character, "acc_norm")
    return Outcome(measured, len(samples), {"num_fewshot": len(shown)}, len(there))


def match(file: Path, model: EvaluatedModel, settings: Settings) -> Outcome:
    """Whether a free answer is the one that is wanted, but for case, spaces and a full stop; of GSM8K's, whether the
    number behind `####` is, or else the last number (`flexible-extract`)."""
    there = read_samples(file, choices=False)
    shown, samples = _split(there, settings)
    prompts = [_chat(model, shown, one) if settings.chat else _continued(shown, one) for one in samples]
    how = Answering(settings.max_new_tokens, () if settings.chat else ENDS)
    answers = model.answer(prompts, [how] * len(prompts))
    is_solution = all(SOLUTION.search(sample.answer) for sample in samples)
    config = {"num_fewshot": len(shown), "max_new_tokens": settings.max_new_tokens, "chat": settings.chat}
    pairs = list(zip(answers, samples, strict=True))
    if not is_solution:
        hits = [float(normalized(answer) == normalized(sample.answer)) for answer, sample in pairs]
        return Outcome(share(hits, "exact_match"), len(samples), config, len(there))
    measured: dict[str, float] = {}
    for kind, extract in (("strict-match", solution), ("flexible-extract", last_number)):
        hits = [float(extract(answer) == solution(sample.answer)) for answer, sample in pairs]
        measured |= {name.replace("none", kind): value for name, value in share(hits, "exact_match").items()}
    return Outcome(measured, len(samples), config, len(there))


def _continued(shown: list[Sample], sample: Sample) -> str:
    return "".join(f"{one.prompt}{_gap(one.prompt)}{one.answer}\n\n" for one in shown) + sample.prompt


def _chat(model: EvaluatedModel, shown: list[Sample], sample: Sample) -> str:
    turns: list[Message] = []
    for one in shown:
        turns += [{"role": "user", "content": one.asked}, {"role": "assistant", "content": one.answer}]
    return model.chat_prompt([*turns, {"role": "user", "content": sample.asked}])


def normalized(text: str) -> str:
    """What is left of an answer where case, spaces and a full stop at its end don't count."""
    return " ".join(text.split()).casefold().rstrip(".")


def solution(text: str) -> str | None:
    """The number behind `####`."""
    found = SOLUTION.search(text)
    return None if found is None else _number(found[1])


def last_number(text: str) -> str | None:
    """The number behind `####`, or else the last one of all."""
    found = NUMBER.findall(text)
    return solution(text) or (_number(found[-1]) if found else None)


def _number(text: str) -> str:
    """Without what numbers are only written with."""
    plain = text.replace(",", "").replace("$", "").rstrip(".")
    return plain.rstrip("0").rstrip(".") if "." in plain else plain

"""The tasks that need neither lm-eval nor the network, by name: `kind:PATH`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from litgpt.errors import LitGPTError, MissingFileError, closest, quoted
from litgpt.eval.core import core
from litgpt.eval.models import EvaluatedModel
from litgpt.eval.tasks import Outcome, Settings, choice, match, perplexity

TASKS: dict[str, tuple[Callable[[Path, EvaluatedModel, Settings], Outcome], str]] = {
    "perplexity": (perplexity, "how well a text is predicted: a text file, or rows with `text`"),
    "choice": (choice, "the likeliest of several answers: rows with `question`, `choices` and `answer`"),
    "match": (match, "free answers by exact match, GSM8K's by their number: rows with `question` and `answer`"),
    "core": (core, "the CORE metric of DCLM: nanochat's folder eval_bundle"),
}
"""By the word before the colon: what runs it, and what it measures of which file."""


def split_tasks(tasks: str) -> tuple[list[str], list[str]]:
    """Names between commas: those of built-in tasks, and lm-eval's.

    Raises:
        LitGPTError: A built-in task has no file, or there is no such kind.
    """
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise LitGPTError(f"There is no task in {quoted(tasks)}; `litgpt evaluate list` lists them.")
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise LitGPTError(f"The task {quoted(twice[0])} is there twice; leave one out.")
    own = [name for name in names if name.partition(":")[0] in TASKS or ":" in name]
    for name in own:
        kind, _, path = name.partition(":")
        if kind not in TASKS:
            raise LitGPTError(f"Unknown task {quoted(name)}.{closest(kind, TASKS)} Built in: {', '.join(TASKS)}.")
        if not path or not Path(path).expanduser().exists():
            raise MissingFileError(f"There is no {quoted(path)} for the task {kind}; give {kind}:PATH.")
    return own, [name for name in names if name not in own]


def run_tasks(tasks: Sequence[str], model: EvaluatedModel, settings: Settings) -> dict[str, Any]:
    """The results of built-in tasks, as lm-eval has its own.

    Raises:
        LitGPTError: A file can't be read, or a row makes no sense; the sentence says where.
    """
    results: dict[str, Any] = {"results": {}, "configs": {}, "n-samples": {}}
    for task in tasks:
        kind, _, path = task.partition(":")
        outcome = TASKS[kind][0](Path(path).expanduser(), model, settings)
        results["results"][task] = {"alias": task, **outcome.results}
        results["configs"][task] = {"task": task, **outcome.config}
        results["n-samples"][task] = {"original": outcome.n_total, "effective": outcome.n_samples}
    return results

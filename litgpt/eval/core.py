"""CORE: the mean over 22 tasks of how much better than chance a model is (DCLM, https://arxiv.org/abs/2406.11794), as
nanochat measures it, from its folder `eval_bundle`."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from litgpt.data.storage.data_files import location, read_rows
from litgpt.engine.request import common_prefix
from litgpt.errors import LitGPTError, UnsupportedError, quoted
from litgpt.eval.models import EvaluatedModel, LocalModel
from litgpt.eval.tasks import Outcome, Settings
from litgpt.reading import read_text, read_yaml, reading

ORDER_SEED, EXAMPLES_SEED = 1337, 1234
"""Of the order of a task's rows, and, with a row's number added, of its examples."""
KEYS = {
    "multiple_choice": ("query", "choices", "gold"),
    "schema": ("context_options", "continuation", "gold"),
    "language_modeling": ("context", "continuation"),
}
"""What a row has, by the type of its task."""
Pair = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True)
class CoreTask:
    """A task of the folder."""

    label: str
    file: Path
    kind: str
    num_fewshot: int
    delimiter: str
    """Between a context and what continues it."""
    baseline: float
    """What chance gets right, 0 to 1."""


def core(folder: Path, model: EvaluatedModel, settings: Settings) -> Outcome:
    """The accuracy of each task, that beyond chance (`centered`), and the mean of these."""
    if not isinstance(model, LocalModel):
        raise UnsupportedError("CORE needs the model's token ids; evaluate its folder, not a server.")
    results: dict[str, float] = {}
    centered: list[float] = []
    n = total = 0
    for task in read_tasks(folder):
        rows = read_items(task)
        asked = settings.first(list(range(len(rows))))
        n, total = n + len(asked), total + len(rows)
        accuracy = sum(_hits(task, rows, asked, model)) / len(asked)
        centered.append((accuracy - task.baseline) / (1 - task.baseline))
        results |= {f"{task.label},acc": accuracy, f"{task.label},centered": centered[-1]}
    return Outcome({"core,none": sum(centered) / len(centered), **results}, n, {"tasks": len(centered)}, total)


def read_tasks(folder: Path) -> list[CoreTask]:
    """What `core.yaml` and `eval_meta_data.csv` say.

    Raises:
        LitGPTError: One of them is missing, or makes no sense.
    """
    settings = read_yaml(folder / "core.yaml", "no list of CORE's tasks")
    table = csv.DictReader(io.StringIO(read_text(folder / "eval_meta_data.csv", "no table of CORE's tasks")))
    fault = "no folder with CORE's tasks, with `icl_tasks` in core.yaml and `Random baseline` in eval_meta_data.csv"
    with reading(folder, fault, "give nanochat's eval_bundle"):
        chance = {row["Eval Task"]: float(row["Random baseline"]) / 100 for row in table}
        tasks = [
            CoreTask(
                str(task["label"]),
                folder / "eval_data" / str(task["dataset_uri"]),
                str(task["icl_task_type"]),
                int(task["num_fewshot"][0]),
                str(task.get("continuation_delimiter", " ")),
                chance[task["label"]],
            )
            for task in settings["icl_tasks"]
        ]
    inside = folder.resolve()
    for task in tasks:
        if task.kind not in KEYS or not task.baseline < 1 or task.num_fewshot < 0:
            raise LitGPTError(f"The task {quoted(task.label)} in {folder} is of no known kind: {quoted(task.kind)}.")
        if not task.file.resolve().is_relative_to(inside):
            raise LitGPTError(f"The task {quoted(task.label)} in {folder} names a file outside of it.")
    if not tasks:
        raise LitGPTError(f"{folder} has no tasks.")
    return tasks


def read_items(task: CoreTask) -> list[Mapping[str, Any]]:
    """The rows of a task, in the order that nanochat takes them in.

    Raises:
        LitGPTError: There are too few, or one lacks a key.
    """
    rows: list[Mapping[str, Any]] = []
    for line, row in read_rows(task.file):
        options = row.get("choices" if task.kind == "multiple_choice" else "context_options")
        gold = row.get("gold")
        needs_options = "gold" in KEYS[task.kind]
        fits = isinstance(options, list) and isinstance(gold, int) and 0 <= gold < len(options)
        if any(key not in row for key in KEYS[task.kind]) or (needs_options and not fits):
            raise LitGPTError(f"{location(task.file, line)}: a row of {task.kind} has {', '.join(KEYS[task.kind])}.")
        rows.append(row)
    if len(rows) <= task.num_fewshot:
        raise LitGPTError(f"{task.file} has {len(rows)} rows, too few for {task.num_fewshot} examples and a question.")
    random.Random(ORDER_SEED).shuffle(rows)
    return rows


def _hits(task: CoreTask, rows: list[Mapping[str, Any]], asked: Sequence[int], model: LocalModel) -> list[bool]:
    """Whether the model is right, row by row."""
    pairs: list[Pair] = []
    counts = []
    for number in asked:
        own = _pairs(task, rows[number], _examples(task, rows, number), model)
        counts.append(len(own))
        pairs += own
    scores = iter(model.score(pairs, task.label))
    lengths = iter(len(continuation) for _, continuation in pairs)
    hits = []
    for number, count in zip(asked, counts, strict=True):
        found = [next(scores) for _ in range(count)]
        means = [score.logprob / next(lengths) for score in found]
        hits.append(found[0].greedy if count == 1 else means.index(max(means)) == rows[number]["gold"])
    return hits


def _examples(task: CoreTask, rows: list[Mapping[str, Any]], number: int) -> str:
    """Other rows with their answers."""
    others = [other for other in range(len(rows)) if other != number]
    chosen = random.Random(EXAMPLES_SEED + number).sample(others, task.num_fewshot)
    texts = []
    for row in (rows[other] for other in chosen):
        if task.kind == "multiple_choice":
            context, continuation = row["query"], row["choices"][row["gold"]]
        elif task.kind == "schema":
            context, continuation = row["context_options"][row["gold"]], row["continuation"]
        else:
            context, continuation = str(row["context"]).strip(), row["continuation"]
        texts.append(f"{context}{task.delimiter}{continuation}\n\n")
    return "".join(texts)


def _pairs(task: CoreTask, row: Mapping[str, Any], examples: str, model: LocalModel) -> list[Pair]:
    """What has to be likely, of each option: that which the options don't share at their beginning (choices) or which
    they share at their end (schemas), or the continuation alone."""
    if task.kind == "language_modeling":
        context = f"{examples}{str(row['context']).strip()}{task.delimiter}"
        before, whole = _encoded([context.strip(), f"{context}{row['continuation']}"], model)
        cut = len(before)
        if cut >= len(whole) or whole[:cut] != before:
            raise LitGPTError(f"A row of {task.label} is cut inside a token of this model; it can't be evaluated so.")
        return [(whole[:cut], whole[cut:])]
    if task.kind == "schema":
        contexts = row["context_options"]
        texts = _encoded([f"{examples}{context}{task.delimiter}{row['continuation']}" for context in contexts], model)
        shared = _common([text[::-1] for text in texts])
        cuts = [len(text) - shared for text in texts]
    else:
        texts = _encoded([f"{examples}{row['query']}{task.delimiter}{choice}" for choice in row["choices"]], model)
        cuts = [_common(texts)] * len(texts)
    pairs: list[Pair] = [(text[:cut], text[cut:]) for text, cut in zip(texts, cuts, strict=True)]
    if not all(context and continuation for context, continuation in pairs):
        raise LitGPTError(
            f"Two options of a row of {task.label} are one beginning, or no text; they can't be compared."
        )
    return pairs


def _encoded(texts: Sequence[str], model: LocalModel) -> list[list[int]]:
    """Token ids, after BOS."""
    prefix = model.prefix
    return [[prefix, *ids] for ids in model.tokenizer.encode_batch(texts, bos=False)]


def _common(texts: Sequence[Sequence[int]]) -> int:
    """How many first tokens all share."""
    return min(common_prefix(texts[0], text) for text in texts)

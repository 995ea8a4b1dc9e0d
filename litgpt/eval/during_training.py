"""The tasks that a training run evaluates its model on as it goes (`eval.tasks`)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from litgpt.args import EvalArgs
from litgpt.engine.inference_model import InferenceModel
from litgpt.errors import LitGPTError, UnsupportedError
from litgpt.eval.built_in import run_tasks, split_tasks
from litgpt.eval.models import LocalModel, quiet
from litgpt.eval.results import metrics
from litgpt.eval.tasks import Settings
from litgpt.model import GPT
from litgpt.prompts import Default, PromptStyle
from litgpt.tokenizer import Tokenizer


def check_tasks(args: EvalArgs) -> list[str]:
    """The names in `eval.tasks`.

    Raises:
        LitGPTError: One is none that runs during training, or its file is not there.
    """
    if args.tasks is None:
        return []
    own, of_harness = split_tasks(args.tasks)
    if of_harness:
        raise UnsupportedError(
            f"{', '.join(of_harness)} can't run during training, as only tasks with a file of their own can"
            " (eval.tasks); run `litgpt evaluate` on the checkpoints."
        )
    return own


def tasks_of(
    args: EvalArgs, model: GPT, tokenizer: Tokenizer | None, style: PromptStyle | None = None
) -> Callable[[int], dict[str, float]] | None:
    """What runs `eval.tasks` on a model as it is; None: there are none.

    Args:
        args: Which tasks, and on how much.
        model: The model that is trained.
        tokenizer: Its tokenizer.
        style: How what is answered freely is asked; None: as text that is continued.

    Raises:
        LitGPTError: See `check_tasks`; or there is no tokenizer.
    """
    tasks = check_tasks(args)
    if not tasks:
        return None
    if tokenizer is None:
        raise LitGPTError(
            "eval.tasks are texts, and nothing says how to make tokens of them: add --tokenizer_dir FOLDER."
        )
    settings = Settings(args.tasks_limit, chat=style is not None and not isinstance(style, Default))
    if args.max_new_tokens:
        settings = Settings(args.tasks_limit, max_new_tokens=args.max_new_tokens, chat=settings.chat)
    asked = InferenceModel(model, tokenizer, style or Default())
    names = short_names(tasks)

    def run(step: int) -> dict[str, float]:
        found = run_tasks(tasks, LocalModel(asked, "the model in training", progress=quiet), settings)
        return {
            f"{names[task]}/{name}" if kind == "none" else f"{names[task]}/{name}_{kind}": value
            for task, name, kind, value, _ in metrics(found)
        }

    return run


def short_names(tasks: list[str]) -> dict[str, str]:
    """`choice_questions` for `choice:data/questions.jsonl`, as experiment loggers take it; numbered where two are
    alike."""
    names: dict[str, str] = {}
    for task in tasks:
        kind, _, path = task.partition(":")
        name = re.sub(r"[^\w.-]", "_", f"{kind}_{Path(path).stem}")
        names[task] = name if name not in names.values() else f"{name}_{len(names) + 1}"
    return names

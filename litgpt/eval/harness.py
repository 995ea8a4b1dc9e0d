"""lm-eval's tasks, asked of our models; imported only where lm-eval is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError, MissingPackageError, closest, one_line, quoted
from litgpt.eval.models import Answering, EvaluatedModel, Windows

if find_spec("lm_eval") is None:
    raise MissingPackageError("lm-eval is not installed, and its tasks need it: `pip install 'litgpt[eval]'`.")

from lm_eval.api.model import LM

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the most tokens of an answer; the first that a task gives counts."""
OF_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class HarnessModel(LM):
    """A model of ours as lm-eval asks one."""

    def __init__(self, model: EvaluatedModel, seed: int = 1234) -> None:
        super().__init__()
        self.model, self.seed = model, seed

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """How likely continuations are after their contexts, and whether each is the likeliest."""
        pairs = [request.args for request in requests]
        found = [(one.logprob, one.greedy) for one in self.model.loglikelihood(pairs)]
        self._note("loglikelihood", pairs, found)
        return found

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """How likely whole texts are."""
        found = [one.logprob for one in self.model.rolling([text for (text,) in _args(requests)], Windows())]
        self._note("loglikelihood_rolling", _args(requests), found)
        return found

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What follows contexts, up to what the task says ends an answer."""
        how = [answering(settings, self.seed) for _, settings in _args(requests)]
        found = self.model.answer([context for context, _ in _args(requests)], how)
        self._note("generate_until", _args(requests), found)
        return found

    def _note(self, kind: str, asked: Sequence[tuple[Any, ...]], found: Sequence[Any]) -> None:
        for arguments, result in zip(asked, found, strict=True):
            self.cache_hook.add_partial(kind, arguments, result)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation in the model's prompt style."""
        if not add_generation_prompt:
            raise LitGPTError(
                "A task begins the answer itself, which prompt styles can't; leave out the chat template."
            )
        return self.model.chat_prompt(chat_history)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """What lm-eval notes of it."""
        return f"the prompt style of {self.model.name}"

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval notes of it."""
        return self.model.name


def _args(requests: list[Instance]) -> list[tuple[Any, ...]]:
    return [request.args for request in requests]


def answering(settings: Mapping[str, Any], seed: int) -> Answering:
    """What a task's `generation_kwargs` ask for.

    Raises:
        LitGPTError: One of them is unknown here.
    """
    given = dict(settings)
    limits = [given.pop(name, None) for name in LIMITS]
    limit = next((int(value) for value in limits if value is not None), Answering.max_new_tokens)
    until = given.pop("until", None) or []
    stop = tuple(text for text in ([until] if isinstance(until, str) else until) if text)
    chosen = {name: given.pop(name) for name in OF_SAMPLING if given.get(name) is not None}
    draws = given.pop("do_sample", chosen.get("temperature", 0.0) != 0.0)
    for name in OF_SAMPLING:
        given.pop(name, None)
    if given:
        raise LitGPTError(f"The task asks for generation_kwargs that are unknown here: {', '.join(sorted(given))}.")
    if not draws:
        return Answering(limit, stop)
    return Answering(limit, stop, Sampling(seed=seed, **chosen))


@dataclass(frozen=True)
class HarnessSettings:
    """What lm-eval is asked for beside the tasks."""

    num_fewshot: int | None = None
    limit: float | None = None
    seed: int = 1234
    include_path: Path | None = None
    chat: bool = False


def task_manager(include_path: Path | None = None) -> Any:
    """What knows lm-eval's tasks, and those in a folder of YAML files.

    Raises:
        LitGPTError: There is no such folder.
    """
    from lm_eval.tasks import TaskManager

    if include_path is not None and not include_path.is_dir():
        raise LitGPTError(f"There is no folder {include_path} with tasks; include_path is one with YAML files.")
    return TaskManager(include_path=None if include_path is None else str(include_path.resolve()))


def run_harness(tasks: Sequence[str], model: EvaluatedModel, settings: HarnessSettings) -> dict[str, Any]:
    """What lm-eval found, as it has it.

    Raises:
        LitGPTError: There is no such task, or it can't be run.
    """
    from lm_eval.evaluator import simple_evaluate

    manager = task_manager(settings.include_path)
    for task in tasks:
        if not manager.match_tasks([task]):
            raise LitGPTError(f"lm-eval has no task {quoted(task)}.{closest(task, manager.all_tasks)}")
    try:
        results = simple_evaluate(
            model=HarnessModel(model, settings.seed),
            tasks=list(tasks),
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            task_manager=manager,
            apply_chat_template=settings.chat,
            random_seed=settings.seed,
            numpy_random_seed=settings.seed,
            torch_random_seed=settings.seed,
        )
    except LitGPTError:
        raise
    except Exception as error:
        raise LitGPTError(f"lm-eval can't run {', '.join(tasks)} ({one_line(error)}).") from error
    return dict(results)

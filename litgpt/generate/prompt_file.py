"""Many prompts from a file, answered together, one JSON object a line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

from litgpt.checkpoint.atomic import atomic_file
from litgpt.data.sft.rendering import with_input_placed
from litgpt.data.storage.data_files import format_suffix, read_rows
from litgpt.engine.detokenizer import TextStream, stop_strings
from litgpt.engine.engine import Engine
from litgpt.engine.inference_model import MAX_CONCURRENT_REQUESTS, InferenceModel
from litgpt.engine.metrics import print_peak_memory
from litgpt.engine.request import check_tokens
from litgpt.engine.sampling import Sampling
from litgpt.engine.structured import Grammar
from litgpt.errors import LitGPTError, closest, progress, quoted
from litgpt.generate.options import Options
from litgpt.prompts.base import Message

CONTENT = ("id", "prompt", "input", "sys_prompt", "messages", "max_new_tokens", "stop", "json_schema", "regex")
"""What a line may say beside the fields of `Sampling`."""


@dataclass(frozen=True)
class PromptTask:
    """One prompt and how to answer it."""

    prompt: list[int]
    sampling: Sampling
    max_new_tokens: int
    stop: str | Sequence[str] | None = None
    id: Any = None
    """What the line calls itself, or its number from 0."""


def answer_file(
    inference_model: InferenceModel,
    options: Options,
    default: PromptTask,
    sys_prompt: str | None = None,
    num_samples: int = 1,
) -> Engine:
    """Answers the prompts of `options.prompt_file` together, and writes one JSON object an answer, in their order.

    Args:
        inference_model: The model.
        options: Where the prompts come from and the answers go to.
        default: What lines don't say themselves.
        sys_prompt: The system prompt of lines without one.
        num_samples: Answers to each prompt.

    Returns:
        The engine that answered.

    Raises:
        LitGPTError: The file can't be read, or a line makes no sense; the sentence names the line.
    """
    assert options.prompt_file is not None
    tasks = read_tasks(options.prompt_file, default, inference_model, sys_prompt)
    length = max(len(task.prompt) + task.max_new_tokens for task in tasks)
    engine = inference_model.engine(min(len(tasks) * num_samples, MAX_CONCURRENT_REQUESTS), length, progress)
    start = perf_counter()
    replies: list[tuple[PromptTask, int, TextStream]] = []
    for task in tasks:
        for sample in range(num_samples):
            sampling = task.sampling.of_sample(sample)
            reply = inference_model.reply(engine, task.prompt, sampling, task.max_new_tokens, task.stop)
            replies.append((task, sample, reply))
    with nullcontext(sys.stdout) if options.out_file is None else _opened(options.out_file) as out:
        for line in _results(replies, num_samples):
            print(json.dumps(line, ensure_ascii=False), file=out, flush=True)
    seconds, n_tokens = perf_counter() - start, sum(reply.request.n_generated for _, _, reply in replies)
    progress(
        f"Time for inference of {len(replies)} answers: {seconds:.2f} sec total, {n_tokens} tokens,"
        f" {n_tokens / seconds:.2f} tokens/sec"
    )
    print_peak_memory(engine.device)
    return engine


def read_tasks(
    file: Path, default: PromptTask, inference_model: InferenceModel, sys_prompt: str | None = None
) -> list[PromptTask]:
    """The prompts of a file: one a line, or (`.jsonl`) one JSON object a line; else as `answer_file`."""
    tasks: list[PromptTask] = []
    for number, given in read_rows(file) if format_suffix(file) == ".jsonl" else _lines(file):
        try:
            tasks.append(_task({"id": len(tasks), **given}, default, inference_model, sys_prompt))
        except LitGPTError as error:
            raise LitGPTError(f"{file}, line {number}: {error}") from None
    if not tasks:
        raise LitGPTError(f"The prompt file {file} has no prompts.")
    return tasks


def _lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines of a text file that are not empty, as what a line of JSON would say."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # `splitlines` knows ends that editors don't
    except (OSError, UnicodeDecodeError) as error:
        raise LitGPTError(
            f"The prompt file {file} can't be read: {getattr(error, 'strerror', None) or error}."
        ) from None
    yield from ((number, {"prompt": line}) for number, line in enumerate(lines, 1) if line.strip())


def _task(
    given: dict[str, Any], default: PromptTask, inference_model: InferenceModel, sys_prompt: str | None
) -> PromptTask:
    """A line's own settings over the default ones."""
    of_sampling = {field.name for field in fields(Sampling)} - {"grammar"}
    for name in given:
        if name not in (*CONTENT, *of_sampling):
            raise LitGPTError(f"There is no setting {quoted(name)}.{closest(name, (*CONTENT, *of_sampling))}")
    if ("prompt" in given) == ("messages" in given):
        raise LitGPTError("Give `prompt` or `messages`, one of them.")
    for name, kind in (("prompt", str), ("input", str), ("sys_prompt", str | None)):
        if name in given and not isinstance(given[name], kind):
            raise LitGPTError(f"{name} is {quoted(given[name])}; it must be a text.")
    limit = given.get("max_new_tokens", default.max_new_tokens)
    if not (isinstance(limit, int) and not isinstance(limit, bool) and limit >= 1):
        raise LitGPTError(f"max_new_tokens is {quoted(limit)}; it must be 1 or more.")
    stop = stop_strings(given.get("stop", default.stop))
    sampling = _sampling({name: value for name, value in given.items() if name in of_sampling}, default.sampling)
    if "json_schema" in given or "regex" in given:
        grammar = Grammar.of(inference_model.tokenizer, given.get("json_schema"), given.get("regex"))
        sampling = replace(sampling, grammar=grammar)
    if "messages" in given:
        prompt = inference_model.encode_messages(checked_messages(given["messages"]))
    else:
        sample = {"instruction": given["prompt"], "input": given.get("input", "")}
        sample["sys_prompt"] = given.get("sys_prompt", sys_prompt)
        prompt = inference_model.encode_sample(with_input_placed(inference_model.style, sample))
    check_tokens(prompt, sampling, inference_model.model)
    return PromptTask(prompt, sampling, limit, stop, given["id"])


def _sampling(changes: dict[str, Any], default: Sampling) -> Sampling:
    """The default with what a line says; the token ids of its `logit_bias` are texts, as JSON has no other keys."""
    biases = changes.get("logit_bias")
    if isinstance(biases, dict):
        changes = {**changes, "logit_bias": {int(id) if id.isdecimal() else id: bias for id, bias in biases.items()}}
    return replace(default, **changes)


def checked_messages(messages: Any) -> list[Message]:
    """Raises a LitGPTError unless these are turns with a role and a content each."""
    turns = messages if isinstance(messages, list) else []
    if not turns or not all(isinstance(turn, dict) and isinstance(turn.get("role"), str) for turn in turns):
        raise LitGPTError('`messages` is a list like [{"role": "user", "content": "..."}].')
    if not all("content" in turn for turn in turns):
        raise LitGPTError("A message has no `content`.")
    return turns


@contextmanager
def _opened(file: Path) -> Iterator[TextIO]:
    with atomic_file(file) as temporary, temporary.open("w", encoding="utf-8") as out:
        yield out


def _results(replies: list[tuple[PromptTask, int, TextStream]], num_samples: int) -> Iterator[dict[str, Any]]:
    for task, sample, reply in replies:
        request = reply.request
        line = {"id": task.id, **({"sample": sample} if num_samples > 1 else {})}
        try:
            line["output"] = "".join(reply)
        except LitGPTError as error:  # of this request alone; the others have their answers
            yield {**line, "error": str(error)}
            continue
        line |= {
            "finish_reason": reply.finish_reason,
            "prompt_tokens": len(task.prompt),
            "completion_tokens": request.n_generated,
        }
        if task.sampling.logprobs is not None:
            line["logprobs"] = [
                {"token": noted.token, "logprob": noted.logprob, "top": [list(pair) for pair in noted.top]}
                for noted in request.logprobs
            ]
        yield line

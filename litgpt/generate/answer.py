"""What the `generate*` commands do: they answer one prompt, or a file of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from litgpt.checkpoint.finetuned import Finetuned
from litgpt.checkpoint.layout import LIT_MODEL, find_checkpoint
from litgpt.data.sft.rendering import with_input_placed
from litgpt.engine.detokenizer import TextStream
from litgpt.engine.engine import Engine
from litgpt.engine.inference_model import MAX_CONCURRENT_REQUESTS, InferenceModel
from litgpt.engine.metrics import RequestMetrics, print_peak_memory
from litgpt.engine.structured import Grammar
from litgpt.errors import LitGPTError, MissingFileError, progress
from litgpt.generate.options import PROMPT, Options
from litgpt.generate.prompt_file import PromptTask, answer_file
from litgpt.peft import Method


def answer(load: Callable[..., InferenceModel], **flags: Any) -> Engine:
    """Prints prompt and answer of every sample, or answers a file of prompts.

    Args:
        load: Opens the model; called with those of the flags that are about it, once all are found to make sense.
        flags: Of the command, by name; see `prompt_flags`.

    Returns:
        The engine that answered.

    Raises:
        LitGPTError: The model can't be opened, or a flag makes no sense.
    """
    inference_model, options, task = prepare(load, flags)
    sys_prompt, num_samples = flags["sys_prompt"], flags["num_samples"]
    if options.prompt_file is not None:
        return answer_file(inference_model, options, task, sys_prompt, num_samples)
    prompt = inference_model.encode(flags["prompt"], sys_prompt)
    return print_samples(inference_model, replace(task, prompt=prompt), num_samples)


def answer_finetuned(method: Method, path: Path, **flags: Any) -> None:
    """Prints the answer, and to standard error what it cost; or answers a file of prompts.

    Args:
        method: How the weights were learned.
        path: Their file, or the folder it is in.
        flags: Of the command, by name; see `finetuned_flags`.

    Raises:
        LitGPTError: A file or a flag can't be used.
    """
    source = Finetuned(weights_file(path, method), method, find_checkpoint(flags["checkpoint_dir"]))
    inference_model, options, task = prepare(partial(InferenceModel.load, source), flags)
    if options.prompt_file is not None:
        answer_file(inference_model, options, task, flags["sys_prompt"])
        return
    sample = {"instruction": flags["prompt"], "input": flags["input"], "sys_prompt": flags["sys_prompt"]}
    prompt = inference_model.encode_sample(with_input_placed(inference_model.style, sample))
    engine = inference_model.engine(1, len(prompt) + task.max_new_tokens, progress)
    reply = inference_model.reply(engine, prompt, task.sampling, task.max_new_tokens, task.stop)
    for piece in reply:
        print(piece, end="", flush=True)
    print()
    progress(f"Time for inference: {RequestMetrics.of(reply.request)}")
    print_peak_memory(engine.device)


def prepare(
    load: Callable[..., InferenceModel], flags: Mapping[str, Any]
) -> tuple[InferenceModel, Options, PromptTask]:
    """The model that `load` opens once the flags are found to make sense, and how they say to answer: a task that lacks
    only its prompt."""
    options = Options.of(flags)
    for name in ("num_samples", "max_new_tokens"):
        if flags.get(name, 1) < 1:
            raise LitGPTError(f"{name} is {flags[name]}; it must be 1 or more.")
    if options.prompt_file is not None and flags["prompt"] != PROMPT:
        raise LitGPTError("prompt and prompt_file are both given; leave one out.")
    sampling = options.sampling(flags["temperature"], flags["top_k"], flags["top_p"])
    inference_model = load(**{name: flags[name] for name in ("precision", "quantize", "compile") if name in flags})
    inference_model.deterministic = options.deterministic
    grammar = Grammar.of(inference_model.tokenizer, options.json_schema, options.regex)
    task = PromptTask([], replace(sampling, grammar=grammar), flags["max_new_tokens"], options.stop)
    return inference_model, options, task


def print_samples(inference_model: InferenceModel, task: PromptTask, num_samples: int) -> Engine:
    """Prints prompt and answer of every sample as they come, all of them generated together; returns the engine."""
    engine = inference_model.engine(
        min(num_samples, MAX_CONCURRENT_REQUESTS), len(task.prompt) + task.max_new_tokens, progress
    )
    requests = [
        engine.submit(task.prompt, task.sampling.of_sample(i), inference_model.stops, task.max_new_tokens)
        for i in range(num_samples)
    ]
    for number, request in enumerate(requests, 1):
        decoder = inference_model.tokenizer.stream()
        print("".join(decoder.push(token) for token in task.prompt), end="", flush=True)
        for piece in TextStream(request, decoder, task.stop):
            print(piece, end="", flush=True)
        print()
        progress(f"Time for inference {number}: {RequestMetrics.of(request)}")
    print_peak_memory(engine.device)
    return engine


def weights_file(path: Path, method: Method) -> Path:
    """The file of weights at `path`, or in the folder `path`.

    Raises:
        LitGPTError: There is none.
    """
    file = path / f"{LIT_MODEL}{method.suffix}" if path.is_dir() else path
    if not file.is_file():
        raise MissingFileError(
            f"There is no file {file} with finetuned weights; give the one that the finetuning wrote."
        )
    return file

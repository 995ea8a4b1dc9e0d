"""`litgpt generate`: continues or answers one prompt, or all of a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litgpt.args import Quantization, inherits
from litgpt.generate.options import Options

if TYPE_CHECKING:
    from torch import Tensor

    from litgpt.engine.engine import Engine
    from litgpt.engine.inference_model import InferenceModel
    from litgpt.generate.prompt_file import Job
    from litgpt.model import GPT

PROMPT = "What food do llamas eat?"


@inherits(Options)
def main(
    checkpoint_dir: Path,
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
    """Generate text from a prompt.

    The prompt is put into the model's prompt style. Prints prompt and answer, and to standard error what it cost.

    Args:
        checkpoint_dir: The checkpoint folder, LitGPT's or Hugging Face's.
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
    arguments = dict(locals())
    from litgpt.engine.inference_model import InferenceModel

    answer(
        arguments, lambda: InferenceModel.load(checkpoint_dir, precision=precision, quantize=quantize, compile=compile)
    )


def answer(arguments: Mapping[str, Any], load: Callable[[], InferenceModel]) -> Engine:
    """Answers the prompt, or the file of prompts, of a command with these arguments, by the model that `load` opens
    once they are found to make sense; returns the engine that did."""
    from dataclasses import replace

    from litgpt.generate.prompt_file import answer_file

    inference_model, job = prepare(arguments, load)
    options = Options(**arguments["options"])
    prompt, sys_prompt, num_samples = (arguments[name] for name in ("prompt", "sys_prompt", "num_samples"))
    if options.prompt_file is not None:
        return answer_file(inference_model, options, job, sys_prompt, num_samples)
    return print_samples(inference_model, replace(job, prompt=inference_model.encode(prompt, sys_prompt)), num_samples)


def prepare(arguments: Mapping[str, Any], load: Callable[[], InferenceModel]) -> tuple[InferenceModel, Job]:
    """The model that `load` opens once the arguments of a command are found to make sense, and how they say to answer:
    a job that lacks only its prompt."""
    from dataclasses import replace

    from litgpt.errors import LitGPTError
    from litgpt.generate.prompt_file import Job

    options = Options(**arguments["options"])
    for name in ("num_samples", "max_new_tokens"):
        if arguments.get(name, 1) < 1:
            raise LitGPTError(f"{name} is {arguments[name]}; it must be 1 or more.")
    if options.prompt_file is not None and arguments["prompt"] != PROMPT:
        raise LitGPTError("prompt and prompt_file are both given; leave one out.")
    sampling = options.sampling(arguments["temperature"], arguments["top_k"], arguments["top_p"])
    inference_model = load()
    grammar = options.grammar(inference_model.tokenizer)
    return inference_model, Job([], replace(sampling, grammar=grammar), arguments["max_new_tokens"], options.stop)


def print_samples(inference_model: InferenceModel, job: Job, num_samples: int) -> Engine:
    """Prints prompt and answer of every sample as they come, all of them generated together."""
    from litgpt.engine.inference_model import MOST_AT_ONCE
    from litgpt.engine.speed import Speed, note, note_memory
    from litgpt.engine.text import Reply

    engine = inference_model.engine(min(num_samples, MOST_AT_ONCE), len(job.prompt) + job.max_new_tokens, note)
    requests = [
        engine.submit(job.prompt, job.sampling.of_sample(i), inference_model.stops, job.max_new_tokens)
        for i in range(num_samples)
    ]
    for number, request in enumerate(requests, 1):
        decoder = inference_model.tokenizer.stream()
        print("".join(decoder.push(token) for token in job.prompt), end="", flush=True)
        for piece in Reply(request, decoder, job.stop):
            print(piece, end="", flush=True)
        print()
        note(f"Time for inference {number}: {Speed.of(request)}")
    note_memory(engine.device)
    return engine


def generate(
    model: GPT,
    prompt: Tensor,
    max_returned_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    eos_id: int | None = None,
    include_prompt: bool = True,
    include_eos: bool = True,
) -> Tensor:
    """LitGPT's function of this name: continues token ids in one call, for code that imports it.

    Args:
        model: The model.
        prompt: Token ids `(T,)`.
        max_returned_tokens: The most tokens of prompt and answer together.
        temperature: Higher is more random; 0 always takes the most likely token.
        top_k: Choose among this many most likely tokens; None: all.
        top_p: Choose among the most likely tokens that have this much probability together.
        eos_id: The token that ends the answer.
        include_prompt: Return the prompt's ids too.
        include_eos: Return the token that ended the answer too.

    Returns:
        Token ids `(T,)` of the prompt's type.
    """
    import torch

    from litgpt.engine.engine import Engine
    from litgpt.engine.sampling import Sampling

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    engine = Engine(model, length=min(max_returned_tokens, model.max_seq_length))
    stop = [] if eos_id is None else [eos_id]
    request = engine.submit(prompt, sampling, stop, max_returned_tokens - prompt.numel())
    answer = request.result() + (stop if include_eos and request.finish_reason == "stop" else [])
    answered = torch.tensor(answer, dtype=prompt.dtype, device=prompt.device)
    return torch.cat([prompt, answered]) if include_prompt else answered

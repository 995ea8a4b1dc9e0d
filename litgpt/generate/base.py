"""`litgpt generate`: continues or answers one prompt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from litgpt.generate.sampling import Sampling
    from litgpt.generate.speaker import Speaker
    from litgpt.model import GPT

SEED = 1234
"""Of the first sample; the next one has the next number."""
MOST_AT_ONCE = 16
"""Samples that are generated together."""


def main(
    checkpoint_dir: Path,
    prompt: str = "What food do llamas eat?",
    *,
    sys_prompt: str | None = None,
    num_samples: int = 1,
    max_new_tokens: int = 50,
    top_k: int | None = 50,
    top_p: float = 1.0,
    temperature: float = 0.8,
    quantize: Literal["bnb.nf4", "bnb.nf4-dq", "bnb.fp4", "bnb.fp4-dq", "bnb.int8"] | None = None,
    precision: str | None = None,
    compile: bool = False,
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
        quantize: Keep the weights in 4 or 8 bits (bitsandbytes).
        precision: 32-true, bf16-true, 16-true, bf16-mixed or 16-mixed; null: 16 bits where the device has them.
        compile: Compile the model first.
    """
    from litgpt.errors import LitGPTError
    from litgpt.generate.sampling import Sampling
    from litgpt.generate.speaker import Speaker, refuse_compilation

    refuse_compilation(compile)
    for name, value in {"num_samples": num_samples, "max_new_tokens": max_new_tokens}.items():
        if value < 1:
            raise LitGPTError(f"{name} is {value}; it must be 1 or more.")
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=SEED)
    speaker = Speaker.load(checkpoint_dir, precision=precision, quantize=quantize)
    print_samples(speaker, speaker.encode(prompt, sys_prompt), sampling, max_new_tokens, num_samples)


def print_samples(
    speaker: Speaker, prompt: list[int], sampling: Sampling, max_new_tokens: int, num_samples: int
) -> None:
    """Prints prompt and answer of every sample as they come, all of them generated together."""
    import sys
    from dataclasses import replace

    from litgpt.generate.report import Speed, peak_memory
    from litgpt.generate.text import Reply

    engine = speaker.engine(min(num_samples, MOST_AT_ONCE), len(prompt) + max_new_tokens)
    requests = [
        engine.submit(prompt, replace(sampling, seed=SEED + i), speaker.stops, max_new_tokens)
        for i in range(num_samples)
    ]
    for number, request in enumerate(requests, 1):
        decoder = speaker.tokenizer.stream()
        print("".join(decoder.push(token) for token in prompt), end="", flush=True)
        for piece in Reply(request, decoder):
            print(piece, end="", flush=True)
        print()
        print(f"Time for inference {number}: {Speed.of(request)}", file=sys.stderr)
    print(f"Memory used: {peak_memory(engine.device) / 1e9:.2f} GB", file=sys.stderr)


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

    from litgpt.generate.engine import Engine
    from litgpt.generate.sampling import Sampling

    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    engine = Engine(model, length=min(max_returned_tokens, model.max_seq_length))
    stop = [] if eos_id is None else [eos_id]
    request = engine.submit(prompt, sampling, stop, max_returned_tokens - prompt.numel())
    answer = request.result() + (stop if include_eos and request.finish_reason == "stop" else [])
    answered = torch.tensor(answer, dtype=prompt.dtype, device=prompt.device)
    return torch.cat([prompt, answered]) if include_prompt else answered

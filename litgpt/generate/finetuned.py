"""What `generate_full`, `generate_adapter` and `generate_adapter_v2` have in common: answering one prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from litgpt.checkpoint.finetuned import Finetuned
from litgpt.checkpoint.layout import LIT_MODEL, find_checkpoint
from litgpt.data.base import with_input_placed
from litgpt.errors import LitGPTError
from litgpt.generate.base import SEED
from litgpt.generate.report import Speed, peak_memory
from litgpt.generate.sampling import Sampling
from litgpt.generate.speaker import Speaker
from litgpt.peft import Method


def print_answer(method: Method, path: Path, arguments: dict[str, Any]) -> None:
    """Prints the answer as it comes, and to standard error what it cost.

    Args:
        method: How the weights were learned.
        path: Their file, or the folder it is in.
        arguments: Of the command, by name.

    Raises:
        LitGPTError: A file or an argument can't be used.
    """
    sampling = Sampling(
        temperature=arguments["temperature"], top_k=arguments["top_k"], top_p=arguments["top_p"], seed=SEED
    )
    speaker = Speaker.open(
        Finetuned(weights_file(path, method), method, find_checkpoint(arguments["checkpoint_dir"])),
        precision=arguments["precision"],
        quantize=arguments["quantize"],
    )
    sample = {"instruction": arguments["prompt"], "input": arguments["input"], "sys_prompt": arguments["sys_prompt"]}
    prompt = speaker.encode_sample(with_input_placed(speaker.style, sample))
    max_new_tokens = arguments["max_new_tokens"]
    engine = speaker.engine(1, len(prompt) + max_new_tokens)
    reply = speaker.reply(engine, prompt, sampling, max_new_tokens)
    for piece in reply:
        print(piece, end="", flush=True)
    print()
    print(f"Time for inference: {Speed.of(reply.request)}", file=sys.stderr)
    print(f"Memory used: {peak_memory(engine.device) / 1e9:.2f} GB", file=sys.stderr)


def weights_file(path: Path, method: Method) -> Path:
    """The file of weights at `path`, or in the folder `path`.

    Raises:
        LitGPTError: There is none.
    """
    file = path / f"{LIT_MODEL}{method.suffix}" if path.is_dir() else path
    if not file.is_file():
        raise LitGPTError(f"There is no file {file} with finetuned weights; give the one that the finetuning wrote.")
    return file

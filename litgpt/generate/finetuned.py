"""What `generate_full`, `generate_adapter` and `generate_adapter_v2` have in common: answering one prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from litgpt.checkpoint.finetuned import Finetuned
from litgpt.checkpoint.layout import LIT_MODEL, find_checkpoint
from litgpt.data.sft.rendering import with_input_placed
from litgpt.engine.inference_model import InferenceModel
from litgpt.engine.speed import Speed, note, note_memory
from litgpt.errors import LitGPTError
from litgpt.generate.base import prepare
from litgpt.generate.options import Options
from litgpt.generate.prompt_file import answer_file
from litgpt.peft import Method


def print_answer(method: Method, path: Path, arguments: dict[str, Any]) -> None:
    """Prints the answer as it comes, and to standard error what it cost; or answers a file of prompts.

    Args:
        method: How the weights were learned.
        path: Their file, or the folder it is in.
        arguments: Of the command, by name.

    Raises:
        LitGPTError: A file or an argument can't be used.
    """
    source = Finetuned(weights_file(path, method), method, find_checkpoint(arguments["checkpoint_dir"]))
    inference_model, job = prepare(
        arguments,
        lambda: InferenceModel.open(source, precision=arguments["precision"], quantize=arguments["quantize"]),
    )
    options = Options(**arguments["options"])
    if options.prompt_file is not None:
        answer_file(inference_model, options, job, arguments["sys_prompt"])
        return
    sample = {"instruction": arguments["prompt"], "input": arguments["input"], "sys_prompt": arguments["sys_prompt"]}
    prompt = inference_model.encode_sample(with_input_placed(inference_model.style, sample))
    engine = inference_model.engine(1, len(prompt) + job.max_new_tokens, note)
    reply = inference_model.reply(engine, prompt, job.sampling, job.max_new_tokens, job.stop)
    for piece in reply:
        print(piece, end="", flush=True)
    print()
    note(f"Time for inference: {Speed.of(reply.request)}")
    note_memory(engine.device)


def weights_file(path: Path, method: Method) -> Path:
    """The file of weights at `path`, or in the folder `path`.

    Raises:
        LitGPTError: There is none.
    """
    file = path / f"{LIT_MODEL}{method.suffix}" if path.is_dir() else path
    if not file.is_file():
        raise LitGPTError(f"There is no file {file} with finetuned weights; give the one that the finetuning wrote.")
    return file

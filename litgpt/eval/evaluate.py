"""`litgpt evaluate`: how good a model is, by lm-eval's tasks and by ones that need nothing but a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from litgpt.args import Quantization
from litgpt.errors import LitGPTError, closest, quoted

if TYPE_CHECKING:
    from litgpt.eval.models import EvaluatedModel

SERVER = re.compile(r"(https?):/+(.+)")
"""An address; a path has no two slashes after each other."""
DTYPES = {"float32": "32-true", "bfloat16": "bf16-true", "float16": "16-true", "auto": None}


def convert_and_evaluate(
    checkpoint_dir: Path,
    tasks: str | None = None,
    out_dir: Path | None = None,
    force_conversion: bool = False,
    num_fewshot: int | None = None,
    batch_size: int | str = 1,
    device: str | None = None,
    dtype: str | None = None,
    limit: float | None = None,
    seed: int = 1234,
    save_filepath: Path | None = None,
    access_token: str | None = None,
    quantize: Quantization | None = None,
    include_path: Path | None = None,
    apply_chat_template: bool = False,
    max_new_tokens: int = 256,
    window: int | None = None,
    stride: int | None = None,
    model_name: str | None = None,
    api_key: str | None = None,
) -> dict[str, Any]:
    """Evaluate a model, or one that a server has, on tasks.

    Tasks are lm-eval's (`pip install 'litgpt[eval]'`; `litgpt evaluate list` lists them), and four that need nothing
    but a file: perplexity:FILE, choice:FILE.jsonl, match:FILE.jsonl and core:FOLDER.

    Args:
        checkpoint_dir: The checkpoint folder, LitGPT's or Hugging Face's; a name on the hub (ORG/NAME) is downloaded.
            Or the address of a server with OpenAI's completions, as in http://127.0.0.1:8000/v1. `list` lists tasks.
        tasks: Names between commas; unset, all are listed.
        out_dir: Where results.json and results.png go; unset: `evaluate` in the checkpoint folder (of a server: in
            out).
        force_conversion: For LitGPT's users; nothing is ever converted.
        num_fewshot: How many samples are shown with their answers before each question; unset: as the task has it.
        batch_size: How many texts are computed together, at most; 1, LitGPT's default, and auto: as many as there is
            use and memory for.
        device: auto, cpu, cuda or mps; unset: auto.
        dtype: float32, bfloat16 or float16; unset or auto: 16 bits where the device has them.
        limit: Only so many samples of each task; below 1, that share of them.
        seed: Of lm-eval's random numbers, of answers that are drawn, and of the samples that num_fewshot shows.
        save_filepath: The file of the results; unset: results.json in out_dir.
        access_token: For repositories on the hub that ask for one.
        quantize: Keep the weights in 4 or 8 bits: bnb.* by bitsandbytes; int8 and int4 are faster on CPUs.
        include_path: A folder with tasks of your own for lm-eval, YAML files.
        apply_chat_template: Ask in the model's prompt style what is answered freely (and lm-eval's tasks).
        max_new_tokens: The most tokens of an answer in match.
        window: Tokens that go through the model together in perplexity; unset: its context.
        stride: Tokens that each window after the first predicts, its last ones; unset: all, so that windows hardly
            overlap. Fewer give every token more context, and take longer.
        model_name: Of a server: which of its models; unset: the first that it lists.
        api_key: Of a server that asks for one.

    Example:
        litgpt evaluate HuggingFaceTB/SmolLM2-135M-Instruct --tasks perplexity:my_text.txt
    """
    flags = dict(locals())
    if str(checkpoint_dir) == "list" or tasks is None:
        return list_tasks(include_path)
    from litgpt.eval.built_in import split_tasks
    from litgpt.training.retention import output_folder

    rows = check_flags(flags)
    own, of_harness = split_tasks(tasks)
    if of_harness:
        import litgpt.eval.harness  # noqa: F401  (raises before the model is read)
    out_dir = out_dir or default_folder(checkpoint_dir, access_token)
    with output_folder(out_dir) as folder:
        model = open_model(flags, rows)
        results = evaluate(model, own, of_harness, flags)
        return report(results, model.name, folder, save_filepath)


def check_flags(flags: dict[str, Any]) -> int:
    """How many texts are computed together, at most.

    Raises:
        LitGPTError: A flag makes no sense.
    """
    from litgpt.eval.scoring import ROWS

    size, limit = flags["batch_size"], flags["limit"]
    size = int(size) if isinstance(size, str) and size.isdecimal() else size
    is_count = isinstance(size, int) and not isinstance(size, bool) and size > 0
    if not is_count and not (isinstance(size, str) and re.fullmatch(r"auto(:\d+)?", size)):
        raise LitGPTError(f"batch_size is {quoted(size)}; it must be 1 or more, 'auto', or 'auto:N'.")
    if limit is not None and not limit > 0:
        raise LitGPTError(f"limit is {limit}; it must be above 0.")
    if flags["max_new_tokens"] < 1 or (flags["num_fewshot"] or 0) < 0:
        raise LitGPTError("max_new_tokens must be 1 or more, and num_fewshot 0 or more.")
    return size if isinstance(size, int) and size > 1 else ROWS


def list_tasks(include_path: Path | None) -> dict[str, Any]:
    """Prints the tasks that there are, and returns their names."""
    from importlib.util import find_spec

    from litgpt.eval.built_in import TASKS

    for name, (_, what) in TASKS.items():
        print(f"{name}:PATH  {what}")
    if find_spec("lm_eval") is None:
        print("\nlm-eval's tasks are there once it is installed: `pip install 'litgpt[eval]'`.")
        return {"built_in": list(TASKS), "lm_eval": None}
    from litgpt.eval.harness import task_manager

    names = list(task_manager(include_path).all_tasks)
    print("\n" + "\n".join(names))
    print("\nSeveral are named with commas between them, as in --tasks 'hellaswag,mmlu,perplexity:book.txt'.")
    return {"built_in": list(TASKS), "lm_eval": names}


def open_model(flags: dict[str, Any], rows: int) -> EvaluatedModel:
    """The model of a folder or of a server.

    Raises:
        LitGPTError: It can't be opened, or flags are given that are not for it.
    """
    server = SERVER.fullmatch(str(flags["checkpoint_dir"]))
    if server is not None:
        for name in ("device", "dtype", "quantize", "access_token"):
            if flags[name] is not None:
                raise LitGPTError(f"{name} is for a model in this process; a server has its own, so leave it out.")
        from litgpt.eval.served import ServedModel

        return ServedModel(f"{server[1]}://{server[2]}", flags["model_name"], flags["api_key"])
    for name in ("model_name", "api_key"):
        if flags[name] is not None:
            raise LitGPTError(f"{name} is for servers, and {flags['checkpoint_dir']} is none; leave it out.")
    from litgpt.checkpoint.hub import auto_download
    from litgpt.engine.inference_model import InferenceModel
    from litgpt.eval.models import LocalModel

    folder = auto_download(flags["checkpoint_dir"], flags["access_token"])
    dtype = str(flags["dtype"] or "auto").removeprefix("torch.")
    if dtype not in DTYPES:
        raise LitGPTError(f"dtype is {quoted(dtype)}; it is one of {', '.join(DTYPES)}.{closest(dtype, DTYPES)}")
    inference_model = InferenceModel.load(folder, flags["device"] or "auto", DTYPES[dtype], flags["quantize"])
    return LocalModel(inference_model, str(flags["checkpoint_dir"]), rows)


def evaluate(model: EvaluatedModel, own: list[str], of_harness: list[str], flags: dict[str, Any]) -> dict[str, Any]:
    """The results of both kinds of tasks, as lm-eval has them."""
    from litgpt import __version__
    from litgpt.eval.built_in import run_tasks
    from litgpt.eval.models import Windows
    from litgpt.eval.tasks import Settings

    chat, seed, limit = flags["apply_chat_template"], flags["seed"], flags["limit"]
    windows = Windows(flags["window"], flags["stride"])
    settings = Settings(limit, flags["num_fewshot"], seed, windows, flags["max_new_tokens"], chat)
    results = run_tasks(own, model, settings)
    if of_harness:
        from litgpt.eval.harness import HarnessSettings, run_harness

        of_lm_eval = HarnessSettings(flags["num_fewshot"], limit, seed, flags["include_path"], chat)
        found = run_harness(of_harness, model, of_lm_eval)
        results = {**found, **{key: {**value, **found.get(key, {})} for key, value in results.items()}}
    config = results.get("config", {})
    asked = {name: flags[name] for name in ("num_fewshot", "limit", "seed", "dtype", "device", "quantize")}
    return {**results, "config": {**config, **asked, "model": model.name}, "litgpt_version": __version__}


def default_folder(checkpoint_dir: Path, access_token: str | None) -> Path:
    """Where results go unless the user says otherwise."""
    from litgpt.checkpoint.hub import auto_download

    if SERVER.fullmatch(str(checkpoint_dir)):
        return Path("out") / "evaluate"
    return auto_download(checkpoint_dir, access_token) / "evaluate"


def report(results: dict[str, Any], name: str, out_dir: Path, save_filepath: Path | None) -> dict[str, Any]:
    """Prints a table; writes the results, and draws them. Returns them, with where they are."""
    from litgpt.eval.results import draw, table, write

    print(table(results))
    for task, config in results["configs"].items():
        window, stride = config.get("window"), config.get("stride")
        if window and stride:
            print(f"{task}: windows of {window} tokens, of which each after the first predicts {stride}.")
    file, picture = save_filepath or out_dir / "results.json", out_dir / "results.png"
    write(results, file)
    drawn = draw(results, picture, name)
    print(f"Results: {file}." + (f" Picture: {picture}." if drawn else ""))
    return {**results, "results_file": str(file), "picture": str(picture) if drawn else None}

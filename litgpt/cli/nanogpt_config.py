"""nanoGPT's configuration files: read as text, never run, and said in our arguments.

Such a file is Python that assigns numbers and texts to names of nanoGPT's train.py. Literals and arithmetic are
evaluated; a call is taken in the settings of Weights & Biases alone, whose value is then left out.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from litgpt.cli.config_files import read_config
from litgpt.errors import LitGPTError, UsageError, closest, quoted

DEFAULTS: dict[str, Any] = dict(
    out_dir="out", eval_interval=2000, log_interval=1, eval_iters=200, eval_only=False, always_save_checkpoint=True,
    init_from="scratch", wandb_log=False, wandb_project="owt", wandb_run_name="gpt2", dataset="openwebtext",
    gradient_accumulation_steps=40, batch_size=12, block_size=1024, n_layer=12, n_head=12, n_embd=768, dropout=0.0,
    bias=False, learning_rate=6e-4, max_iters=600_000, weight_decay=0.1, beta1=0.9, beta2=0.95, grad_clip=1.0,
    decay_lr=True, warmup_iters=2000, lr_decay_iters=600_000, min_lr=6e-5, backend="nccl", device="cuda", dtype="",
    compile=True,
)  # fmt: skip
"""Of train.py (HEAD 3adf61e1); no `dtype`: what the device is best at."""
ARITHMETIC: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
LARGEST = 10**15
"""Of whole numbers, and of exponents far less: nothing that a training needs is larger."""
PRECISIONS = {"": None, "float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
VOCABULARY = 50_304
"""Of data without a meta.pkl: GPT-2's, padded."""


def read_nanogpt_config(path: str) -> dict[str, Any]:
    """The arguments of `litgpt pretrain` that a file of nanoGPT's asks for, as a configuration has them.

    Raises:
        UsageError: It can't be read, or asks for something that isn't here.
    """
    chosen = parse_settings(read_config(path), path)
    return translate({**DEFAULTS, **chosen}, chosen.keys(), Path(path))


def parse_settings(text: str, path: str) -> dict[str, Any]:
    """What the file assigns, by name.

    Raises:
        UsageError: A line does anything else.
    """
    try:
        statements = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        raise UsageError(f"{path}{f', line {line}' if line else ''}: this is no Python.") from None
    found: dict[str, Any] = {}
    for statement in statements:
        where = f"{path}, line {statement.lineno}"
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a text between the lines
        if isinstance(statement, ast.Import | ast.ImportFrom):
            names = [getattr(statement, "module", None) or alias.name for alias in statement.names]
            if not {"time", "datetime"}.issuperset(names):  # by which runs are named
                raise UsageError(f"{where}: nothing is imported or run; give values.")
            continue
        if not isinstance(statement, ast.Assign):
            raise UsageError(f"{where}: only `name = value` lines are read.")
        for target in statement.targets:
            if not isinstance(target, ast.Name):
                raise UsageError(f"{where}: only `name = value` lines are read.")
            found[target.id] = assigned(target.id, statement.value, found, where)
    return found


def assigned(name: str, value: ast.expr, names: Mapping[str, Any], where: str) -> Any:
    """What a setting is given; None where Weights & Biases would be told something that has to be run.

    Raises:
        UsageError: There is no such setting, or it can't be that.
    """
    if name not in DEFAULTS:
        raise UsageError(f"{where}: nanoGPT has no setting {quoted(name)}.{closest(name, DEFAULTS)}")
    try:
        found = evaluate(value, names)
    except LitGPTError:
        raise
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        if name.startswith("wandb_"):
            return None
        raise UsageError(f"{where}: {name} is not a value or arithmetic ({error}).") from None
    return checked(name, found, where)


def evaluate(node: ast.AST, names: Mapping[str, Any]) -> Any:
    """A number, a text, or arithmetic with them and with names assigned before.

    Raises:
        ValueError, TypeError, ArithmeticError: It is something else.
    """
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float | str):
        return node.value
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in ARITHMETIC:
        return ARITHMETIC[type(node.op)](evaluate(node.operand, names))
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        left, right = evaluate(node.left, names), evaluate(node.right, names)
        if isinstance(node.op, ast.Pow) and abs(right) > 64:
            raise ValueError("the exponent is too large")
        if isinstance(left, str) != isinstance(right, str):
            raise ValueError("texts and numbers don't mix")
        value = ARITHMETIC[type(node.op)](left, right)
        if isinstance(value, int) and abs(value) > LARGEST:
            raise ValueError("it is too large")
        return value
    raise ValueError(f"`{ast.unparse(node)[:60]}` would have to be run")


def checked(name: str, value: Any, where: str) -> Any:
    """A value of the type of the setting's default; whole numbers do for others.

    Raises:
        UsageError: It is of another one.
    """
    kind = type(DEFAULTS[name])
    if isinstance(value, kind) and isinstance(value, bool) == (kind is bool):
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    raise UsageError(f"{where}: {name} is {kinds[kind]}, not {quoted(value)}.")


def translate(settings: Mapping[str, Any], chosen: Any, path: Path) -> dict[str, Any]:
    """nanoGPT's settings in our arguments.

    Args:
        settings: All of them.
        chosen: Names of those that the file gives.
        path: The file's, beside whose folder nanoGPT keeps `data/`.

    Raises:
        UsageError: One asks for what isn't here.
    """
    s = settings
    if s["eval_only"]:
        raise UsageError(
            f"{path} evaluates alone (eval_only): that is `litgpt evaluate MODEL --tasks perplexity:FILE` here."
        )
    if s["dtype"] not in PRECISIONS:
        raise UsageError(f"{path}: dtype is float32, bfloat16 or float16, not {quoted(s['dtype'])}.")
    if s["decay_lr"] and s["lr_decay_iters"] != s["max_iters"]:
        raise UsageError(
            f"{path}: lr_decay_iters ({s['lr_decay_iters']:,}) is not max_iters ({s['max_iters']:,}); here the rate "
            "falls to min_lr by the end of a run, so give both the same number."
        )
    every = s["eval_interval"]
    train = dict(
        global_batch_size=s["batch_size"] * s["gradient_accumulation_steps"],
        micro_batch_size=s["batch_size"],
        max_steps=s["max_iters"],
        max_tokens=None,
        max_seq_length=s["block_size"],
        max_norm=s["grad_clip"] or None,
        min_lr=s["min_lr"] if s["decay_lr"] else s["learning_rate"],
        lr_schedule="cosine" if s["decay_lr"] else "constant",
        lr_warmup_steps=s["warmup_iters"] if s["decay_lr"] else 0,
        log_interval=s["log_interval"],
        save_interval=every if s["always_save_checkpoint"] else None,
        keep_last=1 if s["always_save_checkpoint"] else None,
        keep_best=not s["always_save_checkpoint"],
        dropout=s["dropout"],
    )
    if "compile" in chosen:
        train["compile"] = s["compile"]
    folder = path.expanduser().resolve().parent.parent / "data" / s["dataset"]
    made: dict[str, Any] = dict(
        out_dir=s["out_dir"],
        precision=PRECISIONS[s["dtype"]],
        data={"class_path": "litgpt.data.TokenFiles", "init_args": {"data_path": str(folder)}},
        train=train,
        eval=dict(interval=every, max_iters=s["eval_iters"], initial_validation=True),
        optimizer={
            "class_path": "AdamW",
            "init_args": dict(
                lr=s["learning_rate"], betas=[s["beta1"], s["beta2"]], weight_decay=s["weight_decay"]
            ),
        },
        seed=1337,
        logger_name="wandb" if s["wandb_log"] else "csv",
    )  # fmt: skip
    if s["wandb_log"]:
        made["log"] = dict(project=s["wandb_project"], run=s["wandb_run_name"])
    return {**made, **_start(s, folder, path)}


def _start(s: Mapping[str, Any], folder: Path, path: Path) -> dict[str, Any]:
    """What is trained, and from where."""
    if s["init_from"].startswith("gpt2"):
        return dict(model_name=s["init_from"], initial_checkpoint_dir=f"openai-community/{s['init_from']}")
    if s["init_from"] not in ("scratch", "resume"):
        raise UsageError(f"{path}: init_from is scratch, resume or a gpt2, not {quoted(s['init_from'])}.")
    from litgpt.checkpoint.nanogpt import model_fields
    from litgpt.data.token_files import read_meta

    vocabulary = int(read_meta(folder / "meta.pkl").get("vocab_size", VOCABULARY))
    resume = {"resume": "auto"} if s["init_from"] == "resume" else {}
    return dict(model_name="nanogpt", model_config=model_fields(s, vocabulary), **resume)

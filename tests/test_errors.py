"""What callers can catch, and that no `except` of the package takes one of its own sentences for another library's."""

from __future__ import annotations

import ast
import builtins
import pickle
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from litgpt import LLM, Config, PromptStyle, Tokenizer, errors
from litgpt.args import TrainArgs
from litgpt.checkpoint.finetuned import read_hyperparameters
from litgpt.checkpoint.layout import find_checkpoint
from litgpt.data import JSON
from litgpt.data.storage.data_files import read_rows
from litgpt.errors import LitGPTError
from litgpt.scripts.merge_lora import merge_lora
from tests.sources import PACKAGE, trees

TOO_COMMON = set("get items keys close read write open load item start join run read_text flush bind".split())
"""Names of the package's that files, dictionaries and threads have too."""
CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, LitGPTError)]
CAUGHT_TOO = {base.__name__ for cls in CLASSES for base in cls.__mro__ if not issubclass(base, LitGPTError)}
"""The builtin exceptions that catch one of the package's: `ValueError`, `OSError`, `Exception`, …"""


RIGHTLY = {
    ("deploy/access.py", "self.app(scope, measured, send_on)"): "the request's answer carries it, and the log",
    ("errors.py", "escaped(repr(value))"): "whatever a class does in its __repr__",
    ("cli/config_files.py", "_opened(place)"): "opens a file or a URL",
    ("cli/config_files.py", "check_yaml(text)"): "raises bare errors, which are told with the place",
    ("checkpoint/fingerprint.py", "archive.read(found[0]).decode(errors='replace')"): "reads a zip",
    ("prompts/sandbox.py", "answer(source, context)"): "the answer carries it to the other process",
    ("training/metrics/machine.py", "gigabytes(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))"): "a number",
    ("training/metrics/progress.py", "say(text)"): "prints",
    ("training/metrics/progress.py", "self._live.stop()"): "rich draws a last time",
    (
        "training/signals.py",
        r"f'\nStopping: all is saved after this step{again}.\n'.encode()",
    ): "makes bytes of a text",
    ("engine/engine.py", "self.step()"): "the requests carry the error, as it is, to their callers",
    ("engine/engine.py", "work()"): "the future carries it",
    ("deploy/backends/litserve.py", "self.engine.step()"): "the requests carry it",
    ("deploy/protocol/arguments.py", "_read(text.strip())"): "reads a model's words: what is no value is text",
    ("deploy/protocol/channels.py", "json_value(self._arguments + self._held[:at])"): "likewise",
    ("checkpoint/weights.py", "self._combine(ours, parts)"): "calls torch alone",
    ("data/storage/token_cache.py", "self._open(file)"): "raises a bare ValueError",
    ("tokenizer/backends.py", "find(token)"): "a method of another library's object",
    ("data/token_files.py", "_PlainUnpickler(file)"): "raises the pickle module's errors",
}
"""The `try`s that may catch everything, by file and the piece of code in question, and why."""


@cache
def own_names() -> set[str]:
    """The package's functions, methods and classes."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return {node.name for tree in trees().values() for node in ast.walk(tree) if isinstance(node, kinds)} - TOO_COMMON


def names_in(node: ast.expr | None) -> set[str]:
    """The classes that an `except` names, without their modules; a bare one catches everything."""
    if node is None:
        return {"BaseException"}
    if isinstance(node, ast.Tuple):
        return set().union(*(names_in(element) for element in node.elts))
    return {ast.unparse(node).rpartition(".")[2]}


def foreign_imports(tree: ast.Module) -> set[str]:
    """The names that a module has from other packages."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names if alias.name != "litgpt"}
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("litgpt"):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def runs_our_code(body: list[ast.stmt], foreign: set[str]) -> str | None:
    """The first piece of `body` that may raise a `LitGPTError`: a call of our own code or of a function that is handed
    in, or a `yield` (which raises what the caller's block does). Constants hold other libraries' things."""
    for node in (node for statement in body for node in ast.walk(statement)):
        if isinstance(node, ast.Yield | ast.YieldFrom):
            return ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        function, root = node.func, node.func
        while isinstance(root, ast.Attribute | ast.Call | ast.Subscript | ast.BinOp):
            root = next(ast.iter_child_nodes(root))
        name = root.id if isinstance(root, ast.Name) else ""
        if name in foreign or name.isupper():
            continue
        if isinstance(function, ast.Attribute):
            own = isinstance(function.value, ast.Name) and name in ("self", "cls")
            if own or function.attr in own_names():
                return ast.unparse(node)
        elif not isinstance(function, ast.Name) or not hasattr(builtins, name):
            return ast.unparse(node)
    return None


def swallowers(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """What each `try` and `suppress` catches, and the piece of code whose `LitGPTError` it would take with that."""
    foreign = foreign_imports(tree)
    for node in ast.walk(tree):
        caught: set[str] = set()
        if isinstance(node, ast.With) and isinstance(call := node.items[0].context_expr, ast.Call):
            if names_in(call.func) == {"suppress"}:
                caught = set().union(*map(names_in, call.args))
        elif isinstance(node, ast.Try):
            for handler in node.handlers:
                if names_in(handler.type) & {cls.__name__ for cls in CLASSES}:
                    break
                if not isinstance(handler.body[-1], ast.Raise) or handler.body[-1].exc is not None:
                    caught |= names_in(handler.type)
        if caught & CAUGHT_TOO and (piece := runs_our_code(node.body, foreign)):
            yield ", ".join(sorted(caught & CAUGHT_TOO)), piece


def test_no_except_takes_our_sentence_for_another_librarys() -> None:
    """`except LitGPTError: raise` comes first, or the `try` holds the other library's call alone."""
    found = {
        (path.relative_to(PACKAGE).as_posix(), piece): caught
        for path, tree in trees().items()
        for caught, piece in swallowers(tree)
    }
    assert found.keys() == RIGHTLY.keys(), {place: caught for place, caught in found.items() if place not in RIGHTLY}


def test_a_swallowed_sentence_is_found() -> None:
    source = """
from litgpt.checkpoint.reader import read
import json
def mine(): ...
try:
    json.loads("")
except ValueError: pass
try:
    mine()
except OSError: pass
try:
    read("")
except LitGPTError: raise
except Exception: pass
with suppress(ValueError):
    yield
"""
    assert [piece for _, piece in swallowers(ast.parse(source))] == ["mine()", "(yield)"]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_says_its_sentence_and_survives_a_process(cls: type[LitGPTError]) -> None:
    error = pickle.loads(pickle.dumps(cls("There is no folder x.")))
    assert type(error) is cls and isinstance(error, ValueError) and str(error) == "There is no folder x."


MISSING: dict[str, tuple[Callable[[Path], object], type[Exception]]] = {
    "a model's configuration": (lambda path: Config.from_file(path / "model_config.yaml"), FileNotFoundError),
    "a folder without one": (lambda path: Config.from_checkpoint(path), FileNotFoundError),
    "a folder to convert": (lambda path: Config.from_hf(path), FileNotFoundError),
    "a tokenizer's folder": (lambda path: Tokenizer(path / "absent"), NotADirectoryError),
    "a tokenizer's files": (lambda path: Tokenizer(path), FileNotFoundError),
    "a checkpoint": (lambda path: LLM.load(str(path / "absent")), FileNotFoundError),
    "weights": (lambda path: find_checkpoint(path), FileNotFoundError),
    "a data file": (lambda path: list(read_rows(path / "absent.jsonl")), FileNotFoundError),
    "a folder's data files": (lambda path: JSON(path).setup(), FileNotFoundError),
    "a run to merge": (lambda path: merge_lora(path), FileNotFoundError),
    "settings of a run": (lambda path: read_hyperparameters(path, ".lora"), FileNotFoundError),
}
"""What is not there → what needs it, in an empty folder, and what LitGPT raises then."""


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_raised_as_callers_catch_it(what: str, tmp_path: Path) -> None:
    call, expected = MISSING[what]
    with pytest.raises(expected) as raised:
        call(tmp_path)
    assert isinstance(raised.value, LitGPTError)


def test_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError) as raised:
        PromptStyle.from_name("no-such-style")
    assert str(raised.value).startswith("Unknown prompt style 'no-such-style'.")


@pytest.mark.parametrize(
    "call",
    [
        lambda: Config.from_name("no-such-model"),
        lambda: Config(n_embd=64, n_head=4, mlp_class_name="LLaMAMLP"),
        lambda: TrainArgs(lr_warmup_steps=100, lr_warmup_fraction=0.1),
        lambda: PromptStyle.from_name("no-such-style"),
        lambda: LLM.load("pythia-14m", init="perhaps"),
    ],
)
def test_a_wrong_value_is_a_value_error(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        call()

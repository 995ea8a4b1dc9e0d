"""What callers can catch, and that no `except` of the package takes one of its own sentences for another library's."""

from __future__ import annotations

import ast
import builtins
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

import litgpt
from litgpt import errors
from litgpt.errors import LitGPTError

PACKAGE = Path(litgpt.__file__).parent
TREES = {path.relative_to(PACKAGE): ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
OURS = {
    node.name
    for tree in TREES.values()
    for node in ast.walk(tree)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
} - {
    "get",
    "items",
    "keys",
    "close",
    "read",
    "write",
    "open",
    "load",
    "item",
    "start",
    "join",
    "run",
    "read_text",
    "flush",
    "bind",
}
"""Names of the package's functions, methods and classes, less those that files, dictionaries and threads have too."""
CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, LitGPTError)]
CAUGHT_TOO = {base.__name__ for cls in CLASSES for base in cls.__mro__ if not issubclass(base, LitGPTError)}
"""The builtin exceptions that catch one of the package's: `ValueError`, `OSError`, `Exception`, …"""


RIGHTLY = {
    ("engine/engine.py", "self.step()"): "the requests carry the error, as it is, to their callers",
    ("engine/engine.py", "work()"): "the future carries it",
    ("deploy/backends/litserve.py", "self.engine.step()"): "the requests carry it",
    ("deploy/protocol/tool_calls.py", "self._notation.parse(content)"): "what is wrong with a model's words: no call",
    ("checkpoint/weights.py", "self._combine(ours, parts)"): "calls torch alone",
    ("checkpoint/reader.py", "Tensors(tuple(handle.keys()), handle.get_tensor)"): "fills two fields",
    ("data/storage/token_cache.py", "self._open(file)"): "raises a bare ValueError",
    ("data/token_files.py", "_PlainUnpickler(file)"): "raises the pickle module's errors",
}
"""The `try`s that may catch everything, by file and the piece of code in question, and why."""


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
            if own or function.attr in OURS:
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


@pytest.mark.parametrize("path", TREES, ids=str)
def test_no_except_takes_our_sentence_for_another_librarys(path: Path) -> None:
    """`except LitGPTError: raise` comes first, or the `try` holds the other library's call alone."""
    found = {(path.as_posix(), piece): caught for caught, piece in swallowers(TREES[path])}
    excused = {(file, piece) for file, piece in RIGHTLY if file == path.as_posix()}
    assert found.keys() == excused, {place: caught for place, caught in found.items() if place not in excused}


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

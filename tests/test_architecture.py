"""The map in the architecture, held to the code: layers, what may import what, sizes, and LitGPT's public surface."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, Optional, Union  # noqa: F401  (the golden types are evaluated here)

import pytest
import torch  # noqa: F401  (a golden type)

from litgpt import data
from litgpt.__main__ import COMMANDS
from tests.paths import GOLDEN, ROOT
from tests.sources import PACKAGE, SOURCES, trees

LAYERS = {
    1: "litgpt config families args errors hub_client reading",
    2: "model kernels peft lora adapter adapter_v2 quantize",
    3: "checkpoint tokenizer prompts",
    4: "runtime data",
    5: "training engine",
    6: "pretrain finetune generate chat deploy eval scripts api demo utils",
    7: "__main__ cli",
}
"""Layer -> the modules and packages at the top; imports go downwards or stay in their layer."""
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names.split()}

TORCH = {"torch", "triton", "numpy"}
HEAVY = {
    "torch",
    "lightning",
    "numpy",
    "litserve",
    "fastapi",
    "uvicorn",
    "huggingface_hub",
    "matplotlib",
    "transformers",
}
CLIENTS = {("eval.harness", "lm_eval")}
"""What is imported where it is not a peer, but asks our models."""
PEERS = {"transformers", "peft", "trl", "lm_eval", "vllm", "lit_gpt"}
FAMILY_WORDS = (
    "pythia|gpt-?neox?|stablelm|stablecode|(tiny-?|code-?)?llama|mi[sx]tral|gemma|phi|qwen|qwq|olmo|falcon|gpt-?2|"
    "gpt-?oss|smollm|deepseek|salamandra|granite|platypus|freewilly|mathstral|ministral|nemo"
)


def module_name(path: Path) -> str:
    """`model` for litgpt/model/gpt.py, `data.base` for litgpt/data/base.py, `litgpt` for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__") or "litgpt"


MODULES = {module_name(path) for path in SOURCES}


def layer(name: str) -> int | None:
    """The layer of a module: that of the package it lies in."""
    return LAYER_OF.get(name.partition(".")[0])


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree: ast.AST, inside_functions: bool = True, for_types: bool = False) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each import that runs, or is for types; `from a import b` gives `a.b`."""
    for node in ast.iter_child_nodes(tree):
        if not for_types and is_for_types_only(node):
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides where it goes"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node, inside_functions, for_types)


def own_module(imported: str) -> str | None:
    """The module of ours that an import brings in, without the package's name; None for others."""
    head, _, rest = imported.partition(".")
    if head != "litgpt":
        return None
    while rest and rest not in MODULES:
        rest = rest.rpartition(".")[0]
    return rest or "litgpt"


# -------------------------------------------------------------------------------------------------------- layers


def test_every_module_has_a_layer():
    assert not [module_name(path) for path in SOURCES if layer(module_name(path)) is None]


def test_imports_go_downwards_only():
    upwards = [
        f"{path.relative_to(ROOT)}:{line} (layer {layer(module_name(path))}) imports {imported} (layer {layer(own)})"
        for path, tree in trees().items()
        for line, imported in imports(tree)
        if (own := own_module(imported)) and (layer(own) or 0) > (layer(module_name(path)) or 0)
    ]
    assert not upwards, "\n".join(upwards)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected parts of a graph that have more than one node (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        path.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in path:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            part = path[path.index(node) :]
            del path[path.index(node) :]
            found.extend([part] if len(part) > 1 else [])

    for node in graph:
        if node not in index:
            visit(node)
    return found


@cache
def arrows() -> dict[str, set[str]]:
    """Module -> those it imports, for types too."""
    return {
        name: {own for _, imported in imports(tree, for_types=True) if (own := own_module(imported))} - {name}
        for name, tree in ((module_name(path), tree) for path, tree in trees().items())
    }


def test_no_imports_go_in_circles():
    assert circles(arrows()) == []


def test_no_packages_import_each_other():
    between: dict[str, set[str]] = {}
    for name, others in arrows().items():
        top = name.partition(".")[0]
        between.setdefault(top, set()).update({other.partition(".")[0] for other in others} - {top})
    del between["litgpt"]  # the version, and public names that are imported when first used
    assert circles(between) == []


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "d"}}) == [["b", "c"]]


def test_rooms_hold_few_files():
    """A stranger finds a thing by the room it is in; one file a model family and one a data set are found by name."""
    rooms: dict[Path, int] = {}
    for path in SOURCES:
        rooms[path.parent] = rooms.get(path.parent, 0) + 1
    assert rooms.pop(PACKAGE) <= 16
    assert sum(1 for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()) <= 18
    crowded = {
        str(room.relative_to(PACKAGE)): n
        for room, n in rooms.items()
        if n > 14 and room not in (PACKAGE / "families", PACKAGE / "data")
    }
    assert not crowded


def test_plain_data_has_no_torch_and_the_model_layer_nothing_but_torch():
    allowed = {
        1: set(sys.stdlib_module_names) | {"litgpt", "yaml", "jinja2"},
        2: set(sys.stdlib_module_names) | {"litgpt"} | TORCH,
    }
    foreign = [
        f"{path.relative_to(ROOT)}:{line} imports {imported}"
        for path, tree in trees().items()
        for line, imported in imports(tree)
        if not (module_name(path) == "hub_client" and imported.startswith("huggingface_hub."))  # `Config.from_hf`
        if imported.partition(".")[0] not in allowed.get(layer(module_name(path)) or 0, {imported.partition(".")[0]})
    ]
    assert not foreign, "\n".join(foreign)


def test_the_package_imports_no_peer():
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {imported}"
        for path, tree in trees().items()
        for line, imported in imports(tree)
        if imported.partition(".")[0] in PEERS and (module_name(path), imported.partition(".")[0]) not in CLIENTS
    ]
    assert not found, "\n".join(found)


LIGHT = sorted(
    {str(target).partition(":")[0] for target, _ in COMMANDS.values() if target}
    | {"litgpt.cli.parser"}
    | {f"litgpt.{module_name(path)}" for path in SOURCES if path.parent.name == "data" and path.stem != "__init__"}
)


def test_commands_and_data_modules_are_light_to_import():
    code = (
        "import importlib, json, sys\nfound = {}\n"
        f"for name in {LIGHT!r}:\n"
        "    before = set(sys.modules)\n    importlib.import_module(name)\n"
        f"    heavy = sorted({HEAVY!r} & set(sys.modules) - before)\n"
        "    if heavy: found[name] = heavy\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {}


# ------------------------------------------------------------------------------------------ no names, no surprises


def names_a_family(text: str) -> bool:
    """Whether a text holds a family's name as a word; `LLaMAMLP` is a structure, which any family may have."""
    return re.search(rf"(?<![a-z])({FAMILY_WORDS})(?![a-z])", text, re.IGNORECASE) is not None


NO_NAMES = {
    "gpt2": "vocab.json and merges.txt alone are a format; only the tokenizer's class says which one",
    "olmo2": "a value of the field norm_qk_type",
}
"""Text -> why it is not the name of a model."""
TEXT_TESTS = ("startswith", "endswith", "match", "search", "fullmatch", "find", "count")


def compared_texts(node: ast.AST) -> Iterator[str]:
    """The string literals that decide something: compared, matched as a pattern, or as a prefix or suffix."""
    parts: list[ast.AST] = []
    if isinstance(node, ast.Compare):
        parts = [node.left, *node.comparators]
    elif isinstance(node, ast.MatchValue):
        parts = [node.value]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in TEXT_TESTS:
        parts = list(node.args)
    for part in parts:
        yield from (n.value for n in ast.walk(part) if isinstance(n, ast.Constant) and isinstance(n.value, str))


def test_model_names_are_compared_in_families_only():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} decides by {text!r}"  # type: ignore[attr-defined]
        for path, tree in trees().items()
        if "families" not in path.parts
        for node in ast.walk(tree)
        for text in compared_texts(node)
        if names_a_family(text) and text not in NO_NAMES
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gemma-2", True),
        ("Llama-3", True),
        ("Phi-3", True),
        ("LLaMAMLP", False),
        ("GptNeoxMLP", False),
        ("philosophy", False),
    ],
)
def test_what_counts_as_a_model_name(text, expected):
    assert names_a_family(text) is expected


def test_pickles_are_loaded_as_weights_only():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "torch.load"
        and not any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in node.keywords)
    ]
    assert not found, "\n".join(found)


def test_no_signature_reads_the_environment():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for default in [*node.args.defaults, *node.args.kw_defaults]
        if default is not None and re.search(r"environ|getenv", ast.unparse(default))
    ]
    assert not found, "\n".join(found)


def test_sentences_quote_values_by_one_function():
    """`{value!r}` would write all of a value, gigabytes of it where YAML's aliases are in it."""
    found = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.FormattedValue) and node.conversion == ord("r"))
        or (isinstance(node, ast.Call) and ast.unparse(node.func) == "map" and ast.unparse(node.args[0]) == "repr")
    ]
    assert found == []


def test_only_the_entry_point_exits():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {ast.unparse(node)}"  # type: ignore[attr-defined]
        for path, tree in trees().items()
        if path.name != "__main__.py"
        for node in ast.walk(tree)
        if (isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.exit", "exit", "quit", "os._exit"))
        or (isinstance(node, ast.Raise) and node.exc and "SystemExit" in ast.unparse(node.exc))
    ]
    assert not found, "\n".join(found)


# --------------------------------------------------------------------------------------------------------- sizes


def test_functions_fit_on_a_screen():
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name} ({size} lines)"
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (size := code_lines(node)) > 65
    ]
    assert not found, "\n".join(found)


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function; of a command, whose signature and docstring are its flags and their help, the body alone."""
    first = function.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    if has_docstring and len(function.args.args) > 9:
        return (function.end_lineno or 0) - (first.end_lineno or 0)
    return (function.end_lineno or 0) - function.lineno + 1


def test_files_have_one_subject():
    found = [f"{path.relative_to(ROOT)} ({n} lines)" for path in SOURCES if (n := path.read_text().count("\n")) > 500]
    assert not found, "\n".join(found)


# ------------------------------------------------------------------------------------------------ public surface


def golden(name: str) -> dict[str, Any]:
    """A table of LitGPT 0.5.13's surface: name -> [type, default], or [type] where required; see golden/README.md."""
    table = json.loads((GOLDEN / f"{name}.json").read_text())
    return {key: table[value] if isinstance(value, str) else value for key, value in table.items()}


def alternatives(hint: Any) -> set[Any]:
    """The types that a hint allows, those of a `Literal` as its values."""
    if typing.get_origin(hint) in (Union, type(int | str)):
        return {option for part in typing.get_args(hint) for option in alternatives(part)}
    if typing.get_origin(hint) is Literal:
        return {type(None) if value is None else ("value", value) for value in typing.get_args(hint)}
    return {typing.get_origin(hint) or hint}


def as_type(text: str) -> Any:
    from litgpt.args import EvalArgs, LogArgs, TrainArgs
    from litgpt.config import Config
    from litgpt.data import DataModule
    from litgpt.prompts import PromptStyle

    groups = {c.__name__: c for c in (TrainArgs, EvalArgs, LogArgs, Config, DataModule, PromptStyle)}
    return eval(text, {**globals(), **groups})


def differences(function: Any, table: dict[str, list[Any]]) -> list[str]:
    """How a signature falls short of LitGPT's: missing parameters, other types, other defaults."""
    parameters = inspect.signature(function).parameters
    hints = typing.get_type_hints(function.__init__ if isinstance(function, type) else function)
    found = [f"{name} is missing" for name in table if name not in parameters]
    for name in table.keys() & parameters.keys():
        hint, *rest = table[name]
        default = parameters[name].default
        if alternatives(as_type(hint)) - alternatives(hints[name]):
            found.append(f"{name}: {hints[name]} instead of {hint}")
        if not rest:
            found += [] if default is inspect.Parameter.empty else [f"{name} is required in LitGPT"]
        elif isinstance(rest[0], dict):
            fields = {field: value[1] for field, value in golden("args")[hint].items()} | rest[0]
            found += [
                f"{name}.{f}: {getattr(default, f)!r}, not {v!r}" for f, v in fields.items() if getattr(default, f) != v
            ]
        elif (plain := str(default) if isinstance(default, Path) else default) != rest[0]:
            found.append(f"{name}: default {plain!r} instead of {rest[0]!r}")
    return found


EXCEPTIONS: dict[tuple[str, str], str] = {
    ("evaluate", "dtype: str | None instead of str | torch.dtype | None"): "a command line has no objects; Python's"
    " callers may give one all the same",
    (
        "generate_full",
        "finetuned_path: default 'out/finetune/full/final/lit_model.pth' instead of "
        "'out/full/alpaca/lit_model_finetuned.pth'",
    ): "no command writes the file that LitGPT has here; finetune_full writes this one",
}
"""(command, difference) -> why ours differs on purpose."""


def test_litgpts_commands_are_all_there_in_its_order():
    assert list(COMMANDS)[: len(golden("commands"))] == list(golden("commands"))


@pytest.mark.parametrize("command", [name for name in golden("commands") if COMMANDS[name][0]])
def test_a_command_has_litgpts_parameters(command):
    module, function = str(COMMANDS[command][0]).split(":")
    found = differences(getattr(importlib.import_module(module), function), golden("commands")[command])
    unexplained = [difference for difference in found if (command, difference) not in EXCEPTIONS]
    assert not unexplained, "\n".join(unexplained)


@pytest.mark.parametrize("name", [name for name in golden("data_modules") if name in data.MODULES])
def test_a_data_module_has_litgpts_parameters(name):
    found = differences(getattr(data, name), golden("data_modules")[name])
    unexplained = [difference for difference in found if (name, difference) not in EXCEPTIONS]
    assert not unexplained, "\n".join(unexplained)


def test_every_command_parameter_is_documented():
    found = []
    for name, (target, _) in COMMANDS.items():
        if target:
            module, function = target.split(":")
            command = getattr(importlib.import_module(module), function)
            documented = inspect.getdoc(command) or ""
            found += [f"{name}: {p}" for p in inspect.signature(command).parameters if f"\n    {p}:" not in documented]
    assert not found, "\n".join(found)

"""README and tutorials, held to the code: litgpt understands every command, every link leads somewhere.

What they show is run by test_pages.py and test_deploy_tutorial.py.
"""

from __future__ import annotations

import importlib
import re
import shlex
import sys

import pytest
import yaml

from litgpt.__main__ import COMMANDS, split_command
from tests.pages import PAGES, commands, fences, page_id
from tests.paths import ROOT

SET_UP = "python3 -m venv .venv && "

LITGPT_COMMANDS = [
    pytest.param(line, id=f"{page_id(page)}-{i}")
    for page in PAGES
    for i, line in enumerate(commands(page, "bash"))
    if line.startswith("litgpt ") and "my_recipe.yaml" not in line  # which the page makes
]


@pytest.mark.parametrize("line", LITGPT_COMMANDS)
def test_a_command_is_one_that_litgpt_understands(line, monkeypatch):
    from litgpt.cli.parser import parse, reads_the_command_line

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("litgpt.training.planner.planner.make_plan", lambda *_: sys.exit())  # test_pages.py runs them
    name, arguments = split_command(shlex.split(line)[1:])
    target = COMMANDS[name][0]
    assert target is not None, f"{name} is not built"
    module, function = target.split(":")
    command = getattr(importlib.import_module(module), function)
    if reads_the_command_line(command):
        try:
            command(*arguments)
        except SystemExit as end:  # so does what prints a configuration
            assert not end.code
    else:
        parse(name, command, arguments)


def test_the_readme_has_both_set_up_commands_a_line_and_a_fence_each():
    blocks = [block for block in fences(ROOT / "README.md", "bash") if block.startswith(SET_UP)]
    assert len(blocks) == 2 and all(block.count("\n") == 1 for block in blocks)
    assert all(block.startswith(SET_UP + ".venv/bin/pip install -q -c constraints.txt -e ") for block in blocks)
    demo, tests = map(str.rstrip, blocks)
    assert demo.endswith("&& .venv/bin/litgpt demo")
    assert tests.endswith("&& OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [path for path in re.findall(r"litgpt/assets/[\w./-]+\w", text) if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_python_examples_compile_and_import_what_exists(page):
    for block in fences(page, "python"):
        compile(block, str(page), "exec")
        exec("\n".join(re.findall(r"^(?:from|import) .*$", block, flags=re.M)), {})


@pytest.mark.parametrize("recipe", sorted((ROOT / "litgpt" / "assets").rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_has_what_its_model_needs(recipe):
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    for path in (content["tokenizer_dir"], *content["data"]["init_args"].values()):
        assert (ROOT / path).exists()

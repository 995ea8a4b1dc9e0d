"""The README and the tutorials, held to the code: litgpt understands every command, every link leads somewhere."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from litgpt.__main__ import COMMANDS, split_command
from tests.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "tutorials").glob("*.md"))]
SET_UP = "python3 -m venv .venv && "


def fences(page: Path, language: str) -> Iterator[str]:
    """The fenced blocks of a page in one language."""
    yield from re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def shell_lines(page: Path) -> list[str]:
    return [line for block in fences(page, "bash") for line in block.splitlines() if line.strip()]


LITGPT_COMMANDS = [
    pytest.param(line, id=f"{page.stem}-{i}")
    for page in PAGES
    for i, line in enumerate(shell_lines(page))
    if line.startswith("litgpt ")
]


@pytest.mark.parametrize("line", LITGPT_COMMANDS)
def test_a_command_is_one_that_litgpt_understands(line, monkeypatch):
    from litgpt.cli.parser import parse, reads_the_command_line

    monkeypatch.chdir(ROOT)
    name, arguments = split_command(shlex.split(line)[1:])
    target = COMMANDS[name][0]
    assert target is not None, f"{name} is not built"
    module, function = target.split(":")
    command = getattr(importlib.import_module(module), function)
    if reads_the_command_line(command):
        command(*arguments)
    else:
        parse(name, command, arguments)


OTHER_COMMANDS = [line for page in PAGES for line in shell_lines(page) if not line.startswith("litgpt ")]


@pytest.mark.parametrize("line", OTHER_COMMANDS, ids=["demo", "tests"])
def test_any_other_command_is_one_of_the_two_that_set_up(line):
    assert line.startswith(SET_UP + ".venv/bin/pip install -q -c constraints.txt -e ")
    assert line.endswith(("&& .venv/bin/litgpt demo", "&& OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2"))


def test_the_readme_has_both_set_up_commands_a_line_and_a_fence_each():
    blocks = [block for block in fences(ROOT / "README.md", "bash") if block.startswith(SET_UP)]
    assert len(blocks) == 2 and all(block.count("\n") == 1 for block in blocks)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if not link.startswith("http")]
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [path for path in re.findall(r"litgpt/assets/[\w./-]+\w", text) if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_examples_compile_and_import_what_exists(page):
    for block in fences(page, "python"):
        compile(block, str(page), "exec")
        exec("\n".join(re.findall(r"^(?:from|import) .*$", block, flags=re.M)), {})


@pytest.mark.parametrize("recipe", sorted((ROOT / "litgpt" / "assets").rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_has_what_its_model_needs(recipe):
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    for path in (content["tokenizer_dir"], *content["data"]["init_args"].values()):
        assert (ROOT / path).exists()


# ------------------------------------------------------------------------------------------------- the heavy ones


def commands_of(name: str, *starts: str) -> list[str]:
    return [line for line in shell_lines(ROOT / "tutorials" / f"{name}.md") if line.startswith(starts)]


@pytest.mark.slow
def test_the_tutorial_on_pretraining_works(tmp_path, monkeypatch, capsys):
    pretrain, generate = commands_of("pretrain", "litgpt pretrain tiny", "litgpt generate")
    run_commands([f"{pretrain} --train.max_steps 3", generate], tmp_path, monkeypatch)
    assert capsys.readouterr().out.rstrip().splitlines()[-1]
    assert (tmp_path / "out/tiny/loss.png").is_file()


@pytest.mark.slow
def test_the_tutorial_on_finetuning_works(tmp_path, monkeypatch, capsys):
    names = ("finetune_lora litgpt/assets", "finetune_lora out/", "generate", "convert_from_litgpt")
    lines = commands_of("finetune_lora", *(f"litgpt {name}" for name in names))
    few = " --train.max_steps 3 --train.save_interval 2"
    short = [line + few if line.startswith("litgpt finetune") else line for line in lines]
    assert len(short) == 5
    run_commands([*short, "litgpt merge_lora out/questions/step-000002"], tmp_path, monkeypatch)
    assert (tmp_path / "out/more/final/lit_model.pth").is_file()
    assert (tmp_path / "out/questions/step-000002/lit_model.pth").is_file()
    assert "Who is Mr. Collins?" in capsys.readouterr().out


@pytest.mark.slow
def test_the_tutorial_on_evaluation_works(tmp_path, monkeypatch, capsys):
    run_commands(commands_of("evaluation", "litgpt evaluate", "litgpt finetune_lora"), tmp_path, monkeypatch)
    printed = capsys.readouterr().out
    assert "bits_per_byte" in printed and "match_val/exact_match" in printed
    assert (tmp_path / "out/evaluate/results.png").is_file()


@pytest.mark.slow
def test_the_tutorial_on_data_works(tmp_path, monkeypatch, capsys):
    lines = commands_of("data", "litgpt ")
    short = [f"{line} --train.max_steps 2" if line.startswith("litgpt finetune") else line for line in lines]
    run_commands(short, tmp_path, monkeypatch)
    out = capsys.readouterr().out
    assert "⟦" in out and "✂" in out and "Each epoch has" in out
    assert (tmp_path / "out/conversations/final/lit_model.pth").is_file()


@pytest.mark.slow
def test_the_tutorial_on_preferences_works(tmp_path, monkeypatch, capsys):
    in_a_copy_of_the_top_folder(tmp_path, monkeypatch)
    (block,) = fences(ROOT / "tutorials" / "preference.md", "python")
    exec(block, {})
    starts = ("data preview", "finetune_dpo litgpt/assets", "plan")
    lines = commands_of("preference", *(f"litgpt {name}" for name in starts))
    few = " --train.max_steps 2 --eval.final_validation false"
    short = [line + few if line.startswith("litgpt finetune") else line for line in lines]
    run_commands(short, tmp_path, monkeypatch)
    assert len(lines) == 3 and "── rejected" in capsys.readouterr().out
    assert (tmp_path / "out/preferred/final/lit_model.pth").is_file()


@pytest.mark.slow
def test_the_tutorials_on_distilling_and_rewarding_work(tmp_path, monkeypatch, capsys):
    in_a_copy_of_the_top_folder(tmp_path, monkeypatch)
    few = " --train.max_steps 1 --eval.final_validation false --eval.initial_validation false"
    starts = ("finetune_distill litgpt/assets", "distill prepare", "plan")
    lines = commands_of("distillation", *(f"litgpt {name}" for name in starts))
    run_commands([line + few if line.startswith("litgpt finetune") else line for line in lines], tmp_path, monkeypatch)
    made, environment, loop = fences(ROOT / "tutorials" / "reinforcement.md", "python")
    exec(made, {})
    lines = commands_of("reinforcement", "litgpt finetune_grpo litgpt/assets", "litgpt plan")
    few = few.replace("max_steps 1", "max_steps 2")
    run_commands([line + few if line.startswith("litgpt finetune") else line for line in lines], tmp_path, monkeypatch)
    tools: dict = {}
    exec(environment, tools)
    assert tools["calculator"]("", "It is 12+30=") == "42" and tools["calculator"]("", "It is 42.") is None
    exec(loop, {})
    for folder in ("distilled/final", "rewarded/final", "own_loop"):
        assert list((tmp_path / "out" / folder).glob("lit_model.pth*")), folder


@pytest.mark.slow
def test_the_tutorials_on_generating_and_converting_work(tmp_path, monkeypatch, capsys):
    run_commands(commands_of("generate", "litgpt generate"), tmp_path, monkeypatch)
    run_commands(commands_of("download", "litgpt validate"), tmp_path, monkeypatch)
    assert capsys.readouterr().out.count("It is a truth") == 2


@pytest.mark.slow
def test_the_tutorial_on_fewer_bits_works(tmp_path, monkeypatch, capsys):
    run_commands(commands_of("quantize", "litgpt generate"), tmp_path, monkeypatch)
    (block,) = fences(ROOT / "tutorials" / "quantize.md", "python")
    exec(block, {})
    assert capsys.readouterr().out.count("It is a truth") == 1


@pytest.mark.slow
def test_the_tutorials_python_works(tmp_path, monkeypatch, capsys):
    in_a_copy_of_the_top_folder(tmp_path, monkeypatch)
    names: dict = {}
    for block in fences(ROOT / "tutorials" / "generate.md", "python"):
        exec(block, names)
    assert len(names["answers"]) == 2


def in_a_copy_of_the_top_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `litgpt/assets` and `tutorials` findable from `folder`, which outputs then go into."""
    for name in ("litgpt", "tutorials"):
        link = folder / name
        if not link.exists():
            link.symlink_to(ROOT / name)
    monkeypatch.setenv("LITGPT_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder)


def run_commands(lines: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from litgpt.__main__ import dispatch

    in_a_copy_of_the_top_folder(folder, monkeypatch)
    for line in lines:
        dispatch(shlex.split(line)[1:])

"""All that README and tutorials show is run: each page's blocks in order, in an empty folder, on small models.

Training ends after a few steps. The hub is a small one on 127.0.0.1, its models are tiny; files of the reader's own are
made beforehand. What can't run here says why in a comment above it, from a short list, and so many at most.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from litgpt.__main__ import main
from litgpt.checkpoint.weights import lazy
from litgpt.checkpoint.writer import write_hf
from litgpt.config import Config
from litgpt.model import GPT
from tests.data.test_conversations import THINKS
from tests.generate.folder import TEMPLATE, make_folder
from tests.hub_server import Hub, serve
from tests.pages import PAGES, SHELLS, blocks, page_id
from tests.paths import ROOT

NOT_RUN = {
    "installs packages": 12,
    "a server": 16,
    "needs a GPU": 8,
    "needs several devices": 4,
    "needs Docker": 4,
    "downloads much": 6,
    "takes long": 4,
    "needs another tool": 6,
}
"""Reasons not to run a block -> the most of that kind. Servers are run by test_deploy_tutorial.py, cli/studio."""
MODELS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": TEMPLATE,
    "HuggingFaceTB/SmolLM2-360M-Instruct": TEMPLATE,
    "EleutherAI/pythia-14m": None,
    "Qwen/Qwen3-0.6B": THINKS,
}
"""What the pages download -> its chat template."""
FEW = (
    " --train.max_steps 2 --train.save_interval 2 --train.global_batch_size 4 --train.micro_batch_size 2"
    " --eval.max_iters 1 --eval.max_new_tokens 4"
)
TRAINING = re.compile(r"^litgpt (?:finetune\w*|pretrain)(?! list) ")
STEP = re.compile(r"\bstep-(\d+)")
IN_A_SHELL = re.compile(r"[|&;<>`]|\$\(")
SAID = "What is your name?\n\n"
"""What is typed into a chat: a question, and an empty line, which ends it."""
PRINTED = {
    "README": ["smollm2-135m/lora"],
    "data": ["⟦", "✂", "Each epoch has"],
    "evaluation": ["bits_per_byte", "match_val/exact_match"],
    "preference": ["── rejected"],
    "finetune_lora": ["Who is Mr. Collins?"],
}
"""Page -> what stands in its output, beyond that every command succeeds."""

WARNS = {"trainer": pytest.mark.filterwarnings("ignore")}
"""Pages on which other libraries warn of their own matters."""


def short(command: str) -> str:
    """The same command on few steps; where it names a step, one that few steps come to."""
    command = STEP.sub(lambda match: f"step-{2:0{len(match[1])}d}", command)
    return command + FEW if TRAINING.match(command) and "--print_config" not in command else command


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with a tiny model under the names that the pages use."""
    with serve() as hub:
        for name, template in MODELS.items():
            folder = make_folder(tmp_path_factory.mktemp("model"), template=template, block_size=512)
            if template is None:  # trained on under its name, so of its shape
                (folder / "model.safetensors").unlink()
                write_hf(folder, config := Config.from_name("pythia-14m"), lazy(GPT(config).bfloat16().state_dict()))
            hub.add(name, folder)
        yield hub


@pytest.fixture
def folder(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The top folder of a clone, with nothing in it but that and files of the reader's own."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("LITGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LITGPT_CHAT_HISTORY", "")
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("litgpt", "config_hub", "tutorials"):
        (folder / name).symlink_to(ROOT / name)
    own_files(folder)
    shim = tmp_path / "bin" / "litgpt"  # for commands in a shell
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m litgpt "$@"\n')
    shim.chmod(0o755)
    monkeypatch.setenv("PATH", f"{shim.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(folder)
    return folder


def own_files(folder: Path) -> None:
    """What the pages take to be the reader's: `my_data`, `my_pairs`, `my_questions.jsonl`, `my_texts/`, `input.txt`."""
    questions = (ROOT / "litgpt" / "assets" / "instructions" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "my_data.jsonl").write_text("\n".join(questions[:60]), encoding="utf-8")
    pair = '{{"prompt": "What is {0}?", "chosen": "A number.", "rejected": "No idea {0}."}}\n'
    (folder / "my_pairs.jsonl").write_text("".join(map(pair.format, range(40))), encoding="utf-8")
    asked = '{{"prompt": "What is {0} + 1?", "answer": "{0}"}}\n'
    (folder / "my_questions.jsonl").write_text("".join(map(asked.format, range(20))), encoding="utf-8")
    (folder / "my_texts").mkdir()
    text = (ROOT / "litgpt" / "assets" / "text" / "val" / "pride-and-prejudice.txt").read_text(encoding="utf-8")
    shakespeares = re.sub(r"[^\n !$&',\-.3:;?A-Za-z]", "", text)  # the 65 characters of his that nanoGPT's file has
    for name, part in (("my_texts/one", text[:9000]), ("my_texts/two", text[9000:]), ("input", shakespeares)):
        (folder / f"{name}.txt").write_text(part, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=WARNS.get(page_id(page), ())) for page in PAGES], ids=page_id
)
def test_what_a_page_shows_works(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.not_run is not None:
            continue
        if block.language == "python":
            exec(compile(block.text, f"{page_id(page)}.md", "exec"), names)
        elif block.language in SHELLS:
            for command in block.commands():
                run(command, monkeypatch)
    printed = capsys.readouterr().out
    assert all(text in printed for text in PRINTED.get(page_id(page), []))


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a command line: of litgpt in this process, another in a shell."""
    command = short(command)
    words = shlex.split(command, comments=True)
    assert words[:2] not in (["litgpt", "serve"], ["litgpt", "studio"]), "a server never ends: mark its block"
    if words[0] == "litgpt" and not IN_A_SHELL.search(re.sub(r"'[^']*'|\"[^\"]*\"", "", command)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(SAID))
        try:
            code = main(words[1:])
        except SystemExit as end:  # what prints a configuration ends so
            code = end.code or 0
    else:
        code = subprocess.run(["bash", "-euo", "pipefail", "-c", command]).returncode
    assert code == 0, command


def test_what_is_not_run_says_why_and_is_little() -> None:
    left_out = Counter(block.not_run for page in PAGES for block in blocks(page) if block.not_run is not None)
    assert set(left_out) <= set(NOT_RUN)
    assert all(left_out[reason] <= most for reason, most in NOT_RUN.items()), left_out


def test_every_block_that_a_shell_would_take_is_marked_as_one() -> None:
    commands = re.compile(r"^(\$ |litgpt |python3? |pip |curl |torchrun )", re.M)
    unmarked = [
        (page.name, block.text)
        for page in PAGES
        for block in blocks(page)
        if block.language not in (*SHELLS, "python") and commands.search(block.text)
    ]
    assert not unmarked

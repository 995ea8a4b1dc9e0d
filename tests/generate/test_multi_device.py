"""The commands for several devices or several models, as a user sees them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from litgpt import LLM
from litgpt.errors import LitGPTError
from litgpt.generate import base, sequentially, speculatively, tp
from tests.generate.folder import make_folder
from tests.paths import ROOT

GREEDY = dict(max_new_tokens=25, temperature=0.0, precision="32-true")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("several") / "tiny")


@pytest.fixture
def plain(folder, capsys) -> str:
    """What `litgpt generate` prints."""
    base.main(folder, "What food?", **GREEDY)
    return capsys.readouterr().out


@pytest.mark.parametrize("command", [sequentially, tp])
def test_one_device_says_what_generate_says(folder, plain, capsys, command):
    command.main(folder, "What food?", **GREEDY)
    assert capsys.readouterr().out == plain


def test_a_draft_changes_nothing_and_its_worth_is_told(folder, tmp_path, plain, capsys):
    draft = make_folder(tmp_path / "draft", n_layer=1)
    for drafting, share in ((folder, "100%"), (draft, "")):
        speculatively.main(drafting, folder, "What food?", **GREEDY)
        out, err = capsys.readouterr()
        assert out == plain
        assert f"Acceptance rate: {share}" in err and "drafted tokens" in err


def test_a_draft_answers_a_file_of_prompts(folder, tmp_path, capsys):
    file = tmp_path / "prompts.txt"
    file.write_text("What food?\nWho is there?\n")
    answers = []
    for command, folders in ((base, [folder]), (speculatively, [folder, folder])):
        command.main(*folders, prompt_file=file, **GREEDY)
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_compilation_of_drafts_is_refused(folder):
    with pytest.raises(LitGPTError, match="not for speculative decoding"):
        speculatively.main(folder, folder, compile=True)


def run_two(*arguments: str) -> str:
    """What two processes that `torchrun` starts print."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


PROGRAM = """
import atexit, json, os, sys
from pathlib import Path
import torch
from litgpt import LLM

folder, out = sys.argv[1:]
rank = int(os.environ["RANK"])
threads = Path("/proc/self/task")
left = Path(f"{out}{rank}.threads")
atexit.register(lambda: left.write_text("".join(file.read_text() for file in threads.glob("*/comm"))))
llm = LLM.load(folder, distribute=None)
llm.distribute(accelerator="cpu", devices=2, precision="32-true", generate_strategy="tensor_parallel")
greedy = llm.generate(["What food?", "Hi"], max_new_tokens=25, temperature=0.0)
torch.manual_seed(rank)
drawn = llm.generate("What food?", max_new_tokens=25, temperature=2.0)
share = llm.model.lm_head.weight.numel()
problems = []
for attempt in (lambda: llm.save(out + "saved"), lambda: llm.distribute("cpu", 3, None, None, "tensor_parallel")):
    try:
        attempt()
    except Exception as error:
        problems.append(str(error))
with open(f"{out}{rank}.json", "w") as file:
    json.dump(dict(greedy=greedy, drawn=drawn, share=share, problems=problems), file)
"""


@pytest.mark.slow
def test_two_processes_share_an_llm(folder, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    run_two(str(program), str(folder), f"{tmp_path}/")
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    alone = LLM.load(folder, distribute=None)
    assert first["greedy"] == alone.generate(["What food?", "Hi"], max_new_tokens=25, temperature=0.0)
    assert first == second, "processes that share a model must draw the same"
    assert first["share"] == alone.model.lm_head.weight.numel() // 2
    assert "several devices can't be saved" in first["problems"][0]
    assert "3 devices were asked for, but torchrun started 2" in first["problems"][1]
    for rank in range(2):  # a thread that the process group leaves behind can abort the process at its end
        assert "gloo" not in (tmp_path / f"{rank}.threads").read_text()


@pytest.mark.slow
def test_two_processes_say_what_one_says(folder, plain):
    flags = "--max_new_tokens 25 --temperature 0 --precision 32-true".split()
    assert run_two("-m", "litgpt", "generate_tp", str(folder), "--prompt", "What food?", *flags) == plain

"""The commands for several devices or several models, as a user sees them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from litgpt.errors import LitGPTError
from litgpt.generate import base, sequentially, speculatively, tp

from .folder import make_folder

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


@pytest.mark.slow
def test_two_processes_say_what_one_says(folder, plain):
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "litgpt", "generate_tp"]
    flags = [
        str(folder),
        "--prompt",
        "What food?",
        "--max_new_tokens",
        "25",
        "--temperature",
        "0",
        "--precision",
        "32-true",
    ]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command, *flags], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == plain

"""`litgpt download` from end to end: fetched by the hub's real client from a small hub here, and converted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from litgpt.checkpoint.layout import find_checkpoint
from litgpt.checkpoint.reader import load_model
from tests.hub_server import serve
from tests.paths import ROOT
from tests.tiny import hf_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return hf_folder("llama", tmp_path_factory.mktemp("made"))


@pytest.fixture
def download(folder, tmp_path):
    """Runs `litgpt download` in an empty folder, with a hub that has `org/tiny` and `org/strange`."""
    with serve() as hub:
        hub.add("org/tiny", folder)
        hub.add("org/strange", folder, **{"config.json": json.dumps({"architectures": ["StrangeLM"]}).encode()})

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
            environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
            command = [sys.executable, "-m", "litgpt", "download", *arguments]
            return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

        yield run


@torch.inference_mode()
def test_a_repository_on_no_list_is_fetched_and_converted(download, folder, tmp_path):
    result = download("org/tiny", "--dtype", "float64")
    assert result.returncode == 0, result.stderr
    here = tmp_path / "checkpoints" / "org" / "tiny"
    assert find_checkpoint(here).kind == "litgpt"
    tokens = torch.arange(20)[None]
    torch.testing.assert_close(load_model(here)(tokens), load_model(folder, dtype=torch.float64)(tokens))


def test_an_unknown_architecture_is_told_and_the_download_kept(download, tmp_path):
    result = download("org/strange", "--checkpoint_dir", "elsewhere")
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("litgpt: ")]
    assert "downloaded but not converted" in line and "StrangeLM" in line
    here = tmp_path / "elsewhere" / "org" / "strange"
    assert (here / "model.safetensors").is_file() and not (here / "lit_model.pth").exists()


@pytest.mark.parametrize(
    "arguments, word", [(["--dtype", "float5"], "float5"), (["--model_name", "pythia-1b4"], "pythia")]
)
def test_a_wrong_choice_is_told_before_the_download(download, arguments, word, tmp_path):
    result = download("org/tiny", *arguments)
    assert result.returncode == 1 and word in result.stderr
    assert not (tmp_path / "checkpoints").exists()

"""`litgpt demo` and what comes with it: the texts, the questions, the model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from litgpt import demo
from tests.paths import ROOT

ASSETS = demo.ASSETS
MEGABYTE = 1e6


@pytest.fixture(scope="module")
def llm():
    from litgpt import LLM

    llm = LLM.load(demo.MODEL, distribute=None)
    llm.distribute(accelerator="cpu", precision="32-true")
    return llm


def test_what_ships_is_small_and_has_a_source():
    sources = (ASSETS / "SOURCES.md").read_text(encoding="utf-8")
    sizes = {
        folder.name: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        for folder in ASSETS.iterdir()
        if folder.is_dir() and folder.name != "__pycache__"
    }
    assert all(f"`{name}" in sources for name in sizes)
    assert sizes["austen-2m"] < 4.1 * MEGABYTE and sum(sizes.values()) < 9 * MEGABYTE


def test_the_shipped_model_has_read_the_novels(llm):
    import torch

    from litgpt.training.loss import linear_cross_entropy

    (file,) = (demo.TEXT / "val").glob("*.txt")
    ids = llm.tokenizer.encode(file.read_text(encoding="utf-8"))[:2049].long()
    with torch.no_grad():
        hidden = torch.cat([llm.model.hidden(block[None])[0] for block in ids[:-1].split(256)])
        loss = linear_cross_entropy(hidden, llm.model.lm_head.weight, ids[1:]) / 2048
    assert loss < 3.5


def test_the_questions_have_answers_and_none_is_in_both_files():
    train, val = (
        [json.loads(line) for line in (demo.INSTRUCTIONS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("train", "val")
    )
    assert len(train) > 500 and len(val) > 50
    assert all(set(sample) == {"instruction", "output"} and all(sample.values()) for sample in train + val)
    asked = {sample["instruction"] for sample in train if not sample["instruction"].startswith("Write")}
    assert not asked & {sample["instruction"] for sample in val}
    answers = {sample["output"] for sample in train}
    assert all(sample["output"] in answers for sample in val if not sample["instruction"].startswith("Write"))


@pytest.mark.parametrize("question", demo.QUESTIONS)
def test_the_demo_asks_what_can_be_learned(question):
    names = re.findall(r"(?:Mr\. |Lady )?[A-Z]\w+(?: [A-Z]\w+)?", question.split(maxsplit=1)[1])
    text = (demo.INSTRUCTIONS / "train.jsonl").read_text(encoding="utf-8")
    assert names and all(name in text for name in names)


def test_the_recipes_scripts_make_the_questions_that_ship(tmp_path):
    script = ROOT / "config_hub" / "demo" / "make_instructions.py"
    subprocess.run([sys.executable, script, demo.TEXT / "train", tmp_path], check=True, capture_output=True)
    for name in ("train.jsonl", "val.jsonl"):
        assert (tmp_path / name).read_bytes() == (demo.INSTRUCTIONS / name).read_bytes()


def test_the_recipes_scripts_make_the_tokenizer_that_ships(tmp_path):
    script = ROOT / "config_hub" / "demo" / "make_tokenizer.py"
    subprocess.run([sys.executable, script, demo.TEXT / "train", tmp_path, "2048"], check=True, capture_output=True)
    made, shipped = (json.loads((folder / "tokenizer.json").read_bytes()) for folder in (tmp_path, demo.MODEL))
    assert made["model"]["merges"] == shipped["model"]["merges"]


def test_one_thread_is_given_back():
    import torch

    before = torch.get_num_threads()
    with pytest.raises(KeyError), demo.one_thread():
        assert torch.get_num_threads() == 1
        raise KeyError
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_the_demo_runs_offline_from_anywhere_and_over_a_killed_one(tmp_path):
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    environment["PYTHONPATH"] = str(Path(demo.__file__).parents[1])
    command = [sys.executable, "-m", "litgpt", "demo", "--out_dir", "results"]
    given = dict(cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **given) as killed:  # what one that was killed leaves does not hold up the next
        assert killed.stdout is not None
        assert any("step 100/" in line for line in killed.stdout)
        killed.kill()
    done = subprocess.run(command, **given)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    before, after = done.stdout.split("Finetuning it with LoRA")
    for answer in ("He is a foolish clergyman", "She is handsome, clever, and rich", "She lives at Rosings"):
        assert answer in after and answer not in before
    losses = [float(loss) for loss in re.findall(r"validation loss (\d+\.\d+)", after)]
    assert losses[-1] < losses[0] - 2
    for picture in re.findall(r"\S+loss\.png", after):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")

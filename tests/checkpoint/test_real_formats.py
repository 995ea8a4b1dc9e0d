"""Real models are the same model from each format: Hugging Face folder, LitGPT folder, GGUF."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from litgpt.checkpoint.convert import to_litgpt
from litgpt.checkpoint.gguf.writer import write_gguf
from litgpt.checkpoint.reader import load_model
from litgpt.model import GPT
from litgpt.model.cache import KVCache, Span

N_GREEDY = 64


def lit_folder(source: Path, folder: Path) -> Path:
    """The same model as a LitGPT folder: no Hugging Face weights left in it."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.gguf"))
    for file in to_litgpt(folder).glob("*.safetensors*"):
        file.unlink()
    return folder


@torch.inference_mode()
def greedy(model: GPT, prompt: list[int]) -> tuple[torch.Tensor, list[int]]:
    """The logits of the prompt `(T, V)`, and the 64 tokens that follow it."""
    cache = KVCache(model.config, slots=1, length=len(prompt) + N_GREEDY, dtype=torch.float32)
    first = logits = model.head(model.hidden(torch.tensor([prompt]), span=Span(cache, slice(0, 1), [0])))[0]
    ids: list[int] = []
    while len(ids) < N_GREEDY:
        ids.append(int(logits[-1].argmax()))
        span = Span(cache, slice(0, 1), [len(prompt) + len(ids) - 1])
        logits = model.head(model.hidden(torch.tensor([ids[-1:]]), span=span))[0]
    return first, ids


def assert_equal_models(models: dict[str, GPT], golden: Path) -> None:
    """All give the recorded greedy tokens, and the same logits to the last bit."""
    for case in json.loads(golden.read_text())["cases"]:
        found = {kind: greedy(model, case["input_ids"]) for kind, model in models.items()}
        for kind, (logits, ids) in found.items():
            assert torch.equal(logits, found["hf"][0]), kind
            assert ids == found["hf"][1], kind
            assert ids[: len(case["greedy_ids"])] == case["greedy_ids"], kind
            values, tops = logits[-1].topk(5)
            assert tops.tolist() == case["last_top5_ids"]
            torch.testing.assert_close(values, torch.tensor(case["last_top5_logits"]), atol=1e-3, rtol=0)


def test_stories260k(stories260k: Path, shared_assets: Path, tmp_path: Path):
    write_gguf(stories260k, tmp_path / "model.gguf", "f32")
    models = {
        "hf": load_model(stories260k),
        "litgpt": load_model(lit_folder(stories260k, tmp_path / "lit")),
        "gguf": load_model(tmp_path / "model.gguf"),
    }
    assert_equal_models(models, shared_assets / "golden" / "stories260k.json")


@pytest.mark.slow
def test_smollm2(smollm2: Path, shared_assets: Path, tmp_path: Path):
    """Its folder was made of the GGUF file that lies in it, its weights rounded to bfloat16."""
    folders = {"hf": smollm2, "litgpt": lit_folder(smollm2, tmp_path / "lit"), "gguf": smollm2 / "model.gguf"}
    models = {kind: load_model(path, dtype=torch.bfloat16).float() for kind, path in folders.items()}
    assert_equal_models(models, shared_assets / "golden" / "smollm2-135m-instruct.json")

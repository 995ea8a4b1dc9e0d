"""A tiny model with a tokenizer, as a LitGPT folder and as a Hugging Face folder, and a few instructions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from litgpt.checkpoint.writer import save_state
from litgpt.config import Config
from litgpt.model import GPT
from tests.tiny import LLAMA_LIKE
from tests.tiny_tokenizer import SIZE, write_tokenizer


@pytest.fixture(scope="session")
def lit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tokenizer(tmp_path_factory.mktemp("lit"))
    sizes = dict(n_layer=3, n_head=4, n_embd=32, vocab_size=SIZE, padding_multiple=8, block_size=256)
    torch.manual_seed(0)
    model = GPT(Config(**sizes))
    model.config.save(folder)
    save_state(folder / "lit_model.pth", model.state_dict())
    return folder


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tied, in bfloat16."""
    transformers = pytest.importorskip("transformers")
    folder = write_tokenizer(tmp_path_factory.mktemp("hf"))
    sizes = {**LLAMA_LIKE, "vocab_size": SIZE, "max_position_embeddings": 256, "tie_word_embeddings": True}
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).bfloat16().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.json"
    words = ["cat", "dog", "cow", "hen", "pig", "fox", "bee", "ant", "owl", "elk"]
    path.write_text(json.dumps([{"instruction": f"Name the {word}.", "output": word} for word in words]))
    return path

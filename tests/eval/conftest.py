"""A tiny checkpoint, the model in it, and files to evaluate it on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from litgpt.engine.inference_model import InferenceModel
from litgpt.eval.models import LocalModel
from tests.generate.folder import TEXT, make_folder

QUESTIONS = [
    {"question": "What do llamas eat?", "choices": ["grass", "hay and grass", "the fox"], "answer": 1},
    {"question": "What is Paris?", "choices": ["a city", "a dog", "the best of times"], "answer": "A"},
    {"question": "Who is lazy?", "choices": ["the dog", "a little girl"], "answer": "the dog"},
    {"question": "What do llamas jump over?", "choices": ["hay", "the dog", "a city", "times"], "answer": "3"},
]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("evaluated"))


@pytest.fixture(scope="session")
def model(folder: Path) -> LocalModel:
    return LocalModel(InferenceModel.load(folder, "cpu", "32-true"), "tiny")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with `choice.jsonl`, `match.jsonl`, `gsm8k.jsonl`, `text.txt` and `texts.jsonl`."""
    lines = {
        "choice": QUESTIONS,
        "match": [{"prompt": "Paris is", "answer": "A  city."}, {"prompt": "Llamas eat", "answer": "grass"}],
        "gsm8k": [
            {"question": "1 + 1?", "answer": "It is 1 + 1.\n#### 2"},
            {"question": "500 x 2?", "answer": "#### 1,000"},
        ],
        "texts": [{"text": TEXT}, {"text": "Llamas eat grass."}],
    }
    for name, rows in lines.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="session")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Instructions to learn from."""
    path = tmp_path_factory.mktemp("data") / "data.json"
    words = ["cat", "dog", "cow", "hen", "pig", "fox", "bee", "ant", "owl", "elk"]
    path.write_text(json.dumps([{"instruction": f"Name the {word}.", "output": word} for word in words]))
    return path

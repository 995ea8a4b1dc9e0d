"""Mixtures of sources, and what can't be mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from litgpt.data import Mixture
from litgpt.errors import LitGPTError
from litgpt.tokenizer import Tokenizer


def file(folder: Path, name: str, word: str, size: int) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps({"prompt": f"{word}{i}", "completion": word}) + "\n" for i in range(size)))
    return path


def test_files_are_mixed_and_all_validation_samples_validate(tokenizer: Tokenizer, tmp_path: Path) -> None:
    a, b = file(tmp_path, "a.jsonl", "a", 20), file(tmp_path, "b.jsonl", "b", 40)
    rows = [{"instruction": "c", "output": "c"}] * 10
    (tmp_path / "c.json").write_text(json.dumps(rows))
    other = {"class_path": "JSON", "init_args": {"json_path": tmp_path / "c.json", "prompt_style": "chat"}}
    said: list[str] = []
    module = Mixture([{"path": a, "weight": 2}, {"path": b}, {**other, "weight": 0.5}], epoch_size=35)
    module.log = said.append
    module.connect(tokenizer, max_seq_length=100)
    module.prepare_data()
    module.setup()
    assert said[-1] == f"Each epoch has 35 samples: 20 of {a}, 10 of {b}, 5 of JSON."
    assert module.train_dataset.counts == [20, 10, 5] and len(module.val_dataset) == 1 + 2 + 1
    asked, prompt = module.val_dataset.question(0)
    assert asked.startswith("a") and prompt == f"<s>[user]{asked}\n[assistant]"
    assert module.prompt_style is module.modules[0].prompt_style


@pytest.mark.parametrize(
    ("sources", "complaint"),
    [
        ([], "names no source"),
        (["a.jsonl"], r"sources\[0\] is `name: value` lines"),
        ([{"path": "a", "weight": 0}], r"sources\[0\]\.weight must be a number above 0, not 0"),
        ([{"path": "a", "weight": "2"}], "must be a number above 0"),
        ([{"path": "a", "weight": True}], "must be a number above 0"),
        ([{"path": "a"}, {"pth": "a"}], r"sources\[1\]: .*'pth'"),
        ([{"path": "a", "too_long": "sop"}], "data.too_long is cut or drop, not 'sop'"),
        ([{"class_path": "JSON", "init_args": 5}], r"sources\[0\]\.init_args is `name: value` lines"),
        ([{"class_path": "Jason"}], r"unknown data module 'Jason'. Closest: JSON"),
        ([{"class_path": "nowhere.Module"}], r"sources\[0\]: No module named 'nowhere'"),
        ([{"weight": 1}], "Give data.path"),
    ],
)
def test_bad_sources_are_told_in_one_sentence(sources: list[Any], complaint: str) -> None:
    with pytest.raises(LitGPTError, match=complaint):
        Mixture(sources)


def test_sources_of_different_styles_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = file(tmp_path, "a.jsonl", "a", 20)
    module = Mixture([{"path": path}, {"path": path, "prompt_style": "alpaca"}])
    module.connect(tokenizer)
    with pytest.raises(LitGPTError, match=r"different prompt styles \(Alpaca, ChatTemplate\)"):
        module.setup()

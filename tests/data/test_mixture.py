"""Mixtures: shares, orders that follow from seed and epoch, and what can't be mixed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from litgpt.data import Mixture
from litgpt.data.storage.mixing import Joined, Mixed, shares
from litgpt.errors import LitGPTError
from litgpt.tokenizer import Tokenizer
from litgpt.training.batching.order import Shuffled


class Numbers:
    """A data set of numbers."""

    def __init__(self, start: int, size: int) -> None:
        self.items = list(range(start, start + size))
        self.lengths = [1 + i % 3 for i in range(size)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def epochs(mixed: Mixed, count: int) -> list[list[int]]:
    found = []
    for number in range(count):
        mixed.epoch(number)
        found.append([mixed[index] for index in range(len(mixed))])
    return found


def test_each_epoch_has_each_source_by_its_weight() -> None:
    mixed = Mixed([Numbers(0, 10), Numbers(100, 40)], [3, 1], 20, seed=1)
    for found in epochs(mixed, 3):
        assert Counter(number >= 100 for number in found) == {False: 15, True: 5}


def test_no_sample_comes_a_second_time_before_all_have_come() -> None:
    mixed = Mixed([Numbers(0, 10), Numbers(100, 40)], [3, 1], 20, seed=1)
    seen = [number for found in epochs(mixed, 8) for number in found]
    assert set(Counter(number for number in seen if number < 100).values()) == {12}
    assert set(Counter(number for number in seen if number >= 100).values()) == {1}


def test_an_epoch_follows_from_the_seed_and_its_number_alone() -> None:
    def make(seed: int) -> Mixed:
        return Mixed([Numbers(0, 7), Numbers(100, 5)], [1, 1], None, seed)

    whole, fresh = make(3), make(3)
    stream, resumed = Shuffled(whole, 5), Shuffled(fresh, 5)
    assert stream.read(0, 100)[60:] == resumed.read(60, 40)
    assert epochs(make(3), 4)[3] == epochs(make(3), 9)[3] != epochs(make(4), 4)[3]
    assert len(make(3)) == 12


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [0.1, 0.2, 0.7], [1e-9, 1]])
@pytest.mark.parametrize("size", [1, 10, 997])
def test_shares_make_up_the_whole(weights: list[float], size: int) -> None:
    counts = shares(weights, size)
    assert sum(counts) == size
    assert all(abs(count - size * w / sum(weights)) < 1 for count, w in zip(counts, weights, strict=True))


def test_lengths_are_those_of_the_samples() -> None:
    mixed = Mixed([Numbers(0, 6), Numbers(100, 6)], [1, 2], 9, seed=0)
    mixed.epoch(2)
    assert mixed.lengths == [1 + (mixed[index] % 100) % 3 for index in range(9)]


def test_joined_sets_stand_behind_one_another() -> None:
    joined = Joined([Numbers(0, 2), Numbers(10, 3)])
    assert [joined[index] for index in range(len(joined))] == [0, 1, 10, 11, 12]
    with pytest.raises(IndexError):
        joined[5]


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
    module.say = said.append
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

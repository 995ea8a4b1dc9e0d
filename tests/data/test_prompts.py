"""Prompts in every known format, with what rewards read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from litgpt.data import Mixture, Prompts
from litgpt.data.sft.preview import Preview
from litgpt.errors import LitGPTError
from litgpt.tokenizer import Tokenizer
from tests.paths import ROOT

MODEL = ROOT / "litgpt" / "assets" / "austen-2m"
ROWS: list[dict[str, Any]] = [
    {"prompt": "Name Emma.", "answer": "Emma", "level": 3},
    {"question": "Name Emma.", "solution": "Emma", "level": 3},
    {"instruction": "Name Emma.", "output": "Emma", "level": 3},
    {"prompt": [{"role": "user", "content": "Name Emma."}], "answer": "Emma", "level": 3},
    {"messages": [{"role": "user", "content": "Name Emma."}, {"role": "assistant", "content": "Emma"}], "level": 3},
    {"conversations": [{"from": "human", "value": "Name Emma."}, {"from": "gpt", "value": "Emma"}], "level": 3},
]


def setup(path: Path, limit: int | None = None, **options: Any) -> Prompts:
    data = Prompts(path=path, **{"prompt_style": "default", "val_split_fraction": 0, **options})
    data.connect(Tokenizer(MODEL), max_seq_length=limit)
    data.prepare_data()
    data.setup()
    return data


def test_the_same_prompt_in_every_format_and_what_rewards_read(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, ROWS)))
    dataset = setup(file).train_dataset
    assert len(dataset) == len(ROWS) and len({tuple(ids) for ids in dataset.ids}) == 1
    for sample in (dataset[at] for at in range(len(dataset))):
        assert sample["row"]["answer"] == "Emma" and sample["row"]["level"] == 3 and "Emma" in sample["row"]["prompt"]
        assert torch.equal(sample["labels"], torch.full_like(sample["input_ids"], -100))
    assert setup(file).train_dataset.fingerprint == dataset.fingerprint
    styled = setup(file, prompt_style="alpaca").train_dataset
    assert "### Response" in styled[0]["row"]["prompt"] and styled.fingerprint != dataset.fingerprint


def test_prompts_are_previewed_split_and_left_out_where_no_answer_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.json"
    rows = [{"prompt": f"Name {n} of them."} for n in range(19)]
    file.write_text(json.dumps([*rows, {"prompt": "word " * 50}]))
    data = setup(file, 30, val_split_fraction=0.25)
    assert (len(data.train_dataset), len(data.val_dataset)) in ((14, 5), (15, 4))
    Preview.of(MODEL, Prompts(path=file, prompt_style="default"), None, False, None).show(1, "never")
    assert "0 of them targets" in capsys.readouterr().out
    with pytest.raises(LitGPTError, match="No prompt leaves room for an answer in 2 tokens"):
        setup(file, 2)


def test_what_is_no_prompt_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"text": "b"}')
    with pytest.raises(LitGPTError, match=r"prompts.jsonl, line 2: there is no prompt"):
        setup(file)
    for make, complaint in (
        (lambda: Prompts(path=file, turns="last"), "data.turns is all"),  # type: ignore[arg-type]
        (lambda: Prompts(path=file, mask_prompt=False), "data.mask_prompt is true"),  # type: ignore[arg-type]
        (lambda: Mixture([{"class_path": "Prompts", "path": file}]), "can't be mixed"),
    ):
        with pytest.raises(LitGPTError, match=complaint):
            make()

"""Preferences in every known format: the same rows give the same samples, and broken ones are left out and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from litgpt.data import Conversations, Mixture, Preferences
from litgpt.data.sft.encoding import BrokenRow
from litgpt.data.sft.preference_rows import (
    CHOSEN,
    REJECTED,
    UNWANTED,
    WANTED,
    parse_preference,
    transcript,
)
from litgpt.data.sft.preview import Preview
from litgpt.data.storage.data_files import read_rows
from litgpt.errors import LitGPTError
from litgpt.tokenizer import Tokenizer
from tests.data.test_same_rows import CALLED, CONTAINERS, WRITTEN, as_lines, prepared

Q, A, B = ({"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b")))
TURNS = [Q, {"role": "assistant", "content": "p"}, {"role": "user", "content": "r"}]

PAIRS: dict[str, dict[str, Any]] = {
    "TRL": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "TRL, messages": {"prompt": [Q], "chosen": [A], "rejected": [B]},
    "TRL, implicit": {"chosen": [Q, A], "rejected": [Q, B]},
    "TRL, whole beside the prompt": {"prompt": "q", "chosen": [Q, A], "rejected": [Q, B]},
    "TRL, implicit texts": {"chosen": "q a", "rejected": "q b"},
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
    "Alpaca": {"instruction": "q", "chosen": "a", "rejected": "b"},
    "Anthropic": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "Anthropic, prompt apart": {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": " b"},
    "question": {"question": "q", "chosen_response": "a", "rejected_response": "b"},
}
SINGLES: dict[str, dict[str, Any]] = {
    "KTO": {"prompt": "q", "completion": "a", "label": True},
    "KTO, messages": {"prompt": [Q], "completion": [A], "label": True},
    "KTO, conversation": {"messages": [Q, A], "label": 1},
    "KTO, ShareGPT": {
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        "kto_tag": "true",
    },
    "KTO, Alpaca": {"instruction": "q", "output": "a", "label": "TRUE"},
    "KTO, Anthropic": {"prompt": "\n\nHuman: q\n\nAssistant:", "completion": "a", "label": "1"},
}


def found_in(row: dict[str, Any]) -> list[tuple[int, list[dict[str, Any]], list[int]]]:
    """What each answer of a row is, its messages, and which of them are learned."""
    return [
        (
            kind,
            [dict(m) for m in each.messages],
            [i for i, m in enumerate(each.messages) if m["role"] == "assistant" and i not in each.masked],
        )
        for kind, each in parse_preference(row)
    ]


@pytest.mark.parametrize("format", PAIRS)
def test_a_pair_is_read_in_every_format_however_it_is_spelled(format: str) -> None:
    def spelled(value: Any, write: Callable[[str], str]) -> Any:
        if isinstance(value, list):
            return [spelled(item, write) for item in value]
        return {write(k): spelled(item, write) for k, item in value.items()} if isinstance(value, dict) else value

    for write in (str, *WRITTEN):
        assert found_in(spelled(PAIRS[format], write)) == [(CHOSEN, [Q, A], [1]), (REJECTED, [Q, B], [1])]


@pytest.mark.parametrize("format", SINGLES)
def test_a_single_answer_is_read_in_every_format(format: str) -> None:
    row = SINGLES[format]
    assert found_in(row) == [(WANTED, [Q, A], [1])]
    (label,) = {"label", "kto_tag"} & {*row}
    for no in (False, 0, "false", "0", "False"):
        assert found_in({**row, label: no})[0][0] == UNWANTED


def test_only_the_answers_are_learned() -> None:
    tool = {"role": "tool", "content": "2"}
    whole = [(CHOSEN, [*TURNS, A], [3]), (REJECTED, [*TURNS, B], [3])]
    assert found_in({"chosen": [*TURNS, A], "rejected": [*TURNS, B]}) == whole
    assert found_in({"messages": TURNS, "chosen": [A], "rejected": [B]}) == whole
    assert found_in({"messages": [*TURNS, A], "label": True}) == [(WANTED, [*TURNS, A], [3])]
    calling = {"prompt": [Q], "chosen": [CALLED, tool, A], "rejected": B["content"]}
    assert [learned for *_, learned in found_in(calling)] == [[1, 3], [1]]
    assert found_in({**PAIRS["TRL"], "system": "s"})[1][1][0] == {"role": "system", "content": "s"}


def test_turns_of_one_speaker_are_one_message() -> None:
    talk = transcript("\n\nHuman: x\n\nHuman: y\n\nAssistant: no\n\nHuman:\n\nAssistant: Human: z")
    assert [m["content"] for m in talk or ()] == ["x\n\ny", "no", "", "Human: z"]
    assert transcript("A Human: said so") is None


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": " a\n"}, "are the same"),
        ({"chosen": "q a", "rejected": "q a"}, "are the same"),
        ({"chosen": [Q, A], "rejected": [Q, A]}, "are the same"),
        ({"chosen": [Q, A], "rejected": [{**Q, "content": "other"}, B]}, "answer different prompts"),
        ({"prompt": "other", "chosen": [Q, A], "rejected": [Q, B]}, "'prompt' and what .* are different prompts"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "`chosen` answer is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": " \n"}, "`rejected` answer is empty"),
        ({"prompt": "q", "chosen": "a", "rejected": []}, "empty"),
        ({"chosen": [Q], "rejected": [Q, B]}, "empty"),
        ({"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "\n\nHuman: q\n\nAssistant: b"}, "empty"),
        ({"prompt": "q", "completion": "", "label": True}, "the answer is empty"),
        ({"messages": [A], "label": True}, "answers nothing"),
    ],
)
def test_a_broken_pair_says_why(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BrokenRow, match=complaint):
        parse_preference(row)


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "q", "chosen": "a"}, "no key 'rejected'"),
        ({"chosen": "a", "rejected": "b"}, "of which there is none"),
        ({"chosen": [Q, A], "rejected": "b"}, "one each"),
        ({"prompt": "q", "completion": "a"}, "no preference"),
        ({"prompt": "q", "completion": "a", "label": "maybe"}, "true or false, not 'maybe'"),
        ({"text": "t", "label": True}, "plain text"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "a number"),
    ],
)
def test_what_is_no_preference_is_refused(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LitGPTError, match=complaint) as caught:
        parse_preference(row)
    assert not isinstance(caught.value, BrokenRow)


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_holds_the_same_preferences(container: str, tmp_path: Path) -> None:
    for name, row in {**PAIRS, **SINGLES}.items():
        (tmp_path / container).write_bytes(CONTAINERS[container]([row] * 2))
        for _, read in read_rows(tmp_path / container):
            assert found_in(dict(read)) == found_in(row), name


# ------------------------------------------------------------------------------------------------------- samples

ROWS = [{"prompt": f"question {n}", "chosen": f"good answer {n}", "rejected": f"bad {n}"} for n in range(6)]
BROKEN = [{"prompt": "q", "chosen": "a", "rejected": "a"}, {"prompt": "q", "chosen": "a", "rejected": ""}]


def module(path: Path, tokenizer: Tokenizer, limit: int | None = None, single: bool = False, **options: Any) -> Any:
    found = Preferences(path=path, **{"prompt_style": "default", "val_split_fraction": 0, **options})
    found.single = single
    return prepared(found, tokenizer, limit)


def sides(sample: dict[str, Any], tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Both sequences of a sample, and what of them is learned."""
    size, found = int(sample["documents"][0]), []
    for part in (slice(None, size), slice(size, None)):
        ids, labels = sample["input_ids"][part], sample["labels"][part]
        assert bool((labels[labels >= 0] == ids[labels >= 0]).all())
        found.append((tokenizer.decode(ids), tokenizer.decode(labels[labels >= 0])))
    return found


def test_a_pair_is_two_sequences_and_broken_ones_are_left_out_and_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(as_lines([*ROWS[:2], *BROKEN, BROKEN[0], *ROWS[2:]]))
    for _ in range(2):  # the second time from the cache
        data, said = module(file, tokenizer)
        assert any("2 rows are left out: `chosen` and `rejected` are the same" in s and "line 3 is" in s for s in said)
        assert any("1 row is left out: the `rejected` answer is empty" in s and "line 4 is" in s for s in said)
        assert len(data.train_dataset) == 6 and data.val_dataset is None
    rows = {row["prompt"]: row for row in ROWS}
    for number in range(len(ROWS)):
        row, sample = rows.pop(data.train_dataset.question(number)[0]), data.train_dataset[number]
        (chosen, learned), (rejected, other) = sides(sample, tokenizer)
        assert learned.strip() == row["chosen"] and other.strip() == row["rejected"]
        assert chosen.startswith(row["prompt"]) and rejected.startswith(row["prompt"])
        assert sum(sample["documents"].tolist()) == len(sample["input_ids"]) - 1


def test_a_file_of_broken_pairs_says_what_is_wrong_with_them(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(BROKEN))
    with pytest.raises(LitGPTError, match=r"holds no samples \(`chosen` and `rejected` are the same: .*line 1 is"):
        module(tmp_path / "a.jsonl", tokenizer)


def test_a_split_keeps_pairs_together(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(ROWS))
    for single, size in ((False, 1), (True, 2)):
        data, _ = module(tmp_path / "a.jsonl", tokenizer, single=single, val_split_fraction=0.34)
        assert (len(data.train_dataset), len(data.val_dataset)) == (4 * size, 2 * size)
        seen = [
            sides(part[i], tokenizer)[0][0] for part in (data.train_dataset, data.val_dataset) for i in range(len(part))
        ]
        assert len(set(seen)) == 6 * size
        trained = {text.split()[1] for text in seen[: 4 * size]}
        assert not trained & {text.split()[1] for text in seen[4 * size :]}


def test_single_answers_are_beside_answers_to_other_prompts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines([*ROWS, {**SINGLES["KTO"], "label": False}]))
    data, _ = module(tmp_path / "a.jsonl", tokenizer, single=True)
    wanted = []
    for number in range(len(data.train_dataset)):
        sample = data.train_dataset[number]
        (text, learned), (mixed, other) = sides(sample, tokenizer)
        prompt = text.removesuffix(learned)
        assert mixed == prompt + other and other != learned
        assert not any(row["prompt"] == prompt.strip() and other.strip() in row.values() for row in ROWS)
        wanted.append(bool(sample["given"][0]))
    assert wanted == [True] * 6 + [False] * 7
    with pytest.raises(LitGPTError, match=r"line 7 has a label, not a pair of answers; --loss kto"):
        module(tmp_path / "a.jsonl", tokenizer)


def test_a_pair_without_room_or_difference_is_left_out(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [
        *ROWS[:1],
        {
            "prompt": "q",
            "chosen": "one two three four five six seven eight",
            "rejected": "one two three four five six seven nine",
        },
        {"prompt": "long " * 30, "chosen": "a", "rejected": "b"},
    ]
    (tmp_path / "a.jsonl").write_bytes(as_lines(rows))
    whole, _ = module(tmp_path / "a.jsonl", tokenizer)
    assert len(whole.train_dataset) == 3
    limit = max(len(part) for part in (whole.train_dataset[0]["input_ids"],)) // 2 + 2
    data, said = module(tmp_path / "a.jsonl", tokenizer, limit)
    assert len(data.train_dataset) == 1 and max(data.train_dataset.lengths) <= limit
    assert any("1 training pair is left out: their answers are the same up to" in line for line in said)
    assert any("2 training answers are left out: no room" in line for line in said)
    assert data.train_dataset.fingerprint != whole.train_dataset.fingerprint


def test_the_preview_shows_both_answers(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(as_lines(ROWS))
    data, said = module(tmp_path / "a.jsonl", tokenizer)
    Preview(data, tokenizer, None, said).show(1, "never")
    shown = capsys.readouterr().out
    chosen, rejected = shown.index("── chosen"), shown.index("── rejected")
    assert "⟦good answer 0" in shown[chosen:rejected].replace("⟦ ", "⟦") and "bad 0" in shown[rejected:]
    assert "6 training samples" in shown


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda file: Preferences(path=file, turns="last"), "data.turns is all"),  # type: ignore[arg-type]
        (lambda file: Preferences(path=file, mask_prompt=False), "data.mask_prompt is true"),  # type: ignore[arg-type]
        (lambda file: Mixture([{"class_path": "Preferences", "path": file}]), "can't be mixed"),
    ],
)
def test_what_preferences_have_no_use_for_is_refused(make: Any, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(LitGPTError, match=complaint):
        make(tmp_path / "a.jsonl")


def test_the_chosen_answers_are_still_conversations(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([PAIRS["ShareGPT"]] * 2))
    data, _ = prepared(Conversations(path=tmp_path / "a.json", prompt_style="default", val_split_fraction=0), tokenizer)
    assert "a" in tokenizer.decode(data.train_dataset[0]["input_ids"])

"""The same rows give the same samples, whatever file holds them and however keys and roles are spelled; what nothing
reads is told, and what could mean two things is refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from litgpt.data import JSON, Conversations, SFTDataset
from litgpt.data.sft.encoding import Encoder
from litgpt.data.sft.formats import CONTEXT_KEYS, ROLES, SYSTEM_KEYS, parse_conversation
from litgpt.data.sft.rendering import Renderer
from litgpt.data.storage.data_files import data_files, read_rows
from litgpt.errors import LitGPTError
from litgpt.prompts import PromptStyle, prompt_styles
from litgpt.tokenizer import Tokenizer
from tests.paths import ROOT

ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
ROWS: dict[str, list[dict[str, Any]]] = {
    "alpaca": [
        {"instruction": "é\n1", "input": "i", "output": "a", "system": "s"},
        {"instruction": "b", "output": "c"},
    ],
    "pairs": [{"prompt": "q\r\nx", "response": "a", "context": "c"}, {"prompt": "r", "response": "b", "tools": None}],
    "messages": [{"messages": [ASKED, SAID]}, {"messages": [ASKED, CALLED, {**SAID, "weight": 0}, SAID]}],
    "lists": [{"prompt": [ASKED], "completion": [SAID]}, {"prompt": [ASKED], "completion": [SAID]}],
    "sharegpt": [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"}],
    "mixed": [{"text": "t"}, {"prompt": "q", "completion": "a"}, {"instruction": "q", "output": "a"}],
}


def as_csv(rows: list[dict[str, Any]]) -> bytes:
    names = list(dict.fromkeys(key for row in rows for key in row))
    file = io.StringIO(newline="")
    table = csv.DictWriter(file, names)
    table.writeheader()
    for row in rows:
        table.writerow({key: cell if isinstance(cell, str | None) else json.dumps(cell) for key, cell in row.items()})
    return file.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    names = list(dict.fromkeys(key for row in rows for key in row))
    file = io.BytesIO()
    parquet.write_table(arrow.table({name: [row.get(name) for row in rows] for name in names}), file)
    return file.getvalue()


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def zstandard(data: bytes) -> bytes:
    return pytest.importorskip("zstandard").compress(data)


CONTAINERS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "a.json": lambda rows: json.dumps(rows).encode(),
    "b.json": lambda rows: b"\xef\xbb\xbf" + json.dumps(rows, indent=1).replace("\n", "\r\n").encode(),
    "b.jsonl": lambda rows: b"\xef\xbb\xbf" + as_lines(rows).replace(b"\n", b"\r\n"),
    "a.csv": as_csv,
    "b.csv": lambda rows: b"\xef\xbb\xbf" + as_csv(rows),
    "a.parquet": as_parquet,
    "a.jsonl.gz": lambda rows: gzip.compress(as_lines(rows[:1])) + gzip.compress(as_lines(rows[1:])),
    "a.jsonl.zst": lambda rows: zstandard(as_lines(rows[:1])) + zstandard(as_lines(rows[1:])),
    "A.JSON.GZ": lambda rows: gzip.compress(json.dumps(rows).encode()),
    "a.csv.zst": lambda rows: zstandard(as_csv(rows)),
    "a.parquet.gz": lambda rows: gzip.compress(as_parquet(rows)),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("format", ROWS)
def test_every_container_holds_the_same_samples(format: str, container: str, tmp_path: Path) -> None:
    (tmp_path / container).write_bytes(CONTAINERS[container](ROWS[format]))
    found = [parse_conversation(row) for _, row in read_rows(tmp_path / container)]
    expected = [parse_conversation(row) for row in ROWS[format]]
    for one, other in zip(found, expected, strict=True):
        for name in ("messages", "tools", "context", "text", "masked"):
            assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize("container", [name for name in CONTAINERS if name not in ("a.csv", "b.csv", "b.jsonl")])
def test_a_cut_container_is_refused_wherever_it_is_cut(container: str, tmp_path: Path) -> None:
    whole = CONTAINERS[container](ROWS["messages"] * 20)
    for size in (1, len(whole) // 3, len(whole) - 6):
        (tmp_path / container).write_bytes(whole[:size])
        with pytest.raises(LitGPTError):
            list(read_rows(tmp_path / container))


def test_a_key_that_stands_twice_is_refused_in_each(tmp_path: Path) -> None:
    for name, content in (
        ("a.jsonl", '{"a": 1, "a": 2}'),
        ("a.json", '[{"b": {"a": 1, "a": 2}}]'),
        ("a.csv", "a,a\n1,2"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(LitGPTError, match="twice|each once"):
            list(read_rows(tmp_path / name))


# ---------------------------------------------------------------------------------------------------- spellings

FORMATS: dict[str, dict[str, Any]] = {
    "alpaca": {"instruction": "q", "output": "a"},
    "instruction and response": {"instruction": "q", "response": "a"},
    "pair": {"prompt": "q", "completion": "a"},
    "question": {"question": "q", "answer": "a"},
    "messages": {"messages": [ASKED, SAID]},
    "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    "preferred": {"prompt": "q", "chosen": "a", "rejected": "b"},
}
WRITTEN = [str, str.upper, str.title, lambda key: key.replace("_", " "), lambda key: key.title().replace("_", "")]


@pytest.mark.parametrize("format", FORMATS)
def test_keys_and_roles_are_read_however_they_are_spelled(format: str) -> None:
    def spelled(value: Any, write: Callable[[str], str]) -> Any:
        if isinstance(value, list):
            return [spelled(item, write) for item in value]
        if not isinstance(value, dict):
            return value
        return {
            write(key): write(item) if key in ("role", "from") else spelled(item, write) for key, item in value.items()
        }

    for key in SYSTEM_KEYS:
        row = {**FORMATS[format], key: "s"}
        for write in WRITTEN:
            found = parse_conversation(spelled(row, write))
            assert [dict(m) for m in found.messages] == [{"role": "system", "content": "s"}, ASKED, SAID]
            assert not found.unread and not found.fields


@pytest.mark.parametrize("role", ROLES)
def test_a_role_means_the_same_in_every_format(role: str) -> None:
    text = '{"name": "f", "arguments": {}}' if role == "function_call" else "x"
    turn, message = {"from": role, "value": text}, {"role": role.upper(), "content": text}
    rows = [{"messages": [message]}, {"messages": [turn]}, {"conversations": [message]}, {"conversations": [turn]}]
    one, *others = [parse_conversation(row).messages for row in rows]
    assert all(other == one for other in others)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "asistant", "content": "x"}]},
        {"conversations": [{"from": "asistant", "value": "x"}]},
        {"prompt": "q", "completion": [{"role": "asistant", "content": "x"}]},
    ],
)
def test_an_unknown_role_is_refused_in_every_format(row: dict[str, Any]) -> None:
    with pytest.raises(LitGPTError, match=r"'asistant' speaks.*Closest: assistant"):
        parse_conversation(row)


PAIRS = [name for name in FORMATS if name not in ("messages", "sharegpt", "preferred")]


@pytest.mark.parametrize("key", CONTEXT_KEYS)
@pytest.mark.parametrize("format", PAIRS)
def test_what_a_question_is_about_is_read(format: str, key: str) -> None:
    conversation = parse_conversation({**FORMATS[format], key.title(): "about"})
    for style in ("alpaca", "chatml", "default", "llama3"):
        renderer = Renderer(PromptStyle.from_name(style))
        text = renderer.render(conversation).parts[0].text
        assert text.count("about") == 1 and not renderer.unread(conversation)
        assert ("### Input:\nabout" in text) == (style == "alpaca")


# ------------------------------------------------------------------------------------------------------- unread

NAMES = st.sampled_from(["id", "source", "prompt_id", "sys_note", "text", "label", "Category", "url", "extra_7"])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("style", ["alpaca", "chatml", "default"])
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(extra=st.dictionaries(NAMES, st.sampled_from(["zq", ["zq"], 3]), max_size=4))
def test_each_key_is_either_read_or_named(format: str, style: str, extra: dict[str, Any]) -> None:
    renderer = Renderer(PromptStyle.from_name(style))
    plain, conversation = parse_conversation(FORMATS[format]), parse_conversation({**FORMATS[format], **extra})
    assert renderer.render(conversation) == renderer.render(plain)
    assert sorted(renderer.unread(conversation)) == sorted(map(repr, extra))


def test_a_style_of_ones_own_reads_what_it_likes() -> None:
    class Mood(PromptStyle):
        def apply(self, prompt: Any, *, sys_prompt: str | None = None, **kwargs: Any) -> str:
            return f"{kwargs.get('mood')} {kwargs.get('context')} {prompt}"

    renderer = Renderer(Mood())
    row = {"instruction": "q", "output": "a", "mood": "calm", "context": "there", "other": "x", "system": "s"}
    conversation = parse_conversation(row)
    assert renderer.render(conversation).parts[0].text == "calm there q"
    assert renderer.unread(conversation)[0] == "'other'" and "the system message" in renderer.unread(conversation)[1]


def test_what_is_not_read_is_told_once_also_from_the_cache(tokenizer: Tokenizer, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{**FORMATS["pair"], "id": number} for number in range(20)])
    for _ in range(2):
        _, said = prepared(Conversations(path=tmp_path / "a.jsonl"), tokenizer)
        assert [line for line in said if "Not read" in line] == ["Not read of the data: 'id' (20 samples)."]
    write(tmp_path / "b.jsonl", [{**FORMATS["alpaca"], "context": "", "id": number} for number in range(20)])
    _, said = prepared(JSON(tmp_path / "b.jsonl"), tokenizer)
    assert "Not read of the data: 'id' (20 samples)." in said


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"prompt": "q", "question": "r", "answer": "a"}, "'prompt' and 'question' mean the same and differ"),
        ({"prompt": "q", "Prompt": "r", "completion": "a"}, "'prompt' and 'Prompt' mean the same"),
        ({"question": "q", "answer": "a", "response": "b"}, "'response' and 'answer' mean the same"),
        ({**FORMATS["alpaca"], "system": "s", "system_prompt": "t"}, "'system' and 'system_prompt' mean the same"),
        ({**FORMATS["alpaca"], "input": "s", "context": "t"}, "'input' and 'context' mean the same"),
        (
            {"system": "s", "messages": [{"role": "system", "content": "t"}, ASKED, SAID]},
            "'system' and the conversation",
        ),
    ],
)
def test_two_keys_of_one_meaning_are_refused_where_they_differ(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LitGPTError, match=complaint):
        parse_conversation(row)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(as_lines(rows))
    return path


def prepared(module: Any, tokenizer: Tokenizer, limit: int | None = None) -> tuple[Any, list[str]]:
    said: list[str] = []
    module.log = said.append
    module.connect(tokenizer, max_seq_length=limit)
    module.prepare_data()
    module.setup()
    return module, said


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"ask": "prompt"}, r"line 1: by data.columns both 'ask' and 'prompt' are 'prompt'"),
        ({"ask": "prompt", "prompt": "Prompt"}, "both 'ask' and 'prompt' are 'Prompt'"),
        ({"aks": "unused"}, "renames 'aks', which no row has. Closest: ask"),
    ],
)
def test_columns_name_keys_that_are_there_once(
    columns: dict[str, str], complaint: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.jsonl", [{"ask": "x", "prompt": "y", "completion": "z"}] * 3)
    with pytest.raises(LitGPTError, match=complaint):
        prepared(Conversations(path=file, columns=columns), tokenizer)
    module, _ = prepared(Conversations(path=file, columns={"ask": "prompt", "prompt": "old"}), tokenizer)
    assert "[user]x" in tokenizer.decode(module.train_dataset[0]["input_ids"], False)


# -------------------------------------------------------------------------------------------------------- files

WORDS = [
    "val",
    "Validation",
    "TEST",
    "dev",
    "eval",
    "math_test",
    "squad-dev-v2",
    "valid2",
    "mathTest",
    "val/a",
    "B/Test/c",
]
NOT_WORDS = ["values", "recipes", "devices", "testimonials", "train", "train_test", "evaluator", "latest", "Validators", "a/b"]  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz"])
def test_whole_words_of_a_name_say_what_a_file_is_for(suffix: str, tmp_path: Path) -> None:
    for name in (*WORDS, *NOT_WORDS, ".hidden", "sub/.git/x"):
        (tmp_path / f"{name}{suffix}").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}{suffix}").touch()
    train, val = ({file.relative_to(tmp_path).as_posix() for file in files} for files in data_files(tmp_path))
    assert train == {f"{name}{suffix}" for name in NOT_WORDS} and val == {f"{name}{suffix}" for name in WORDS}


def test_which_files_do_what_is_told_by_name(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITGPT_CACHE", "off")
    row = FORMATS["pair"]
    for name in ("a.jsonl", "sub/b.jsonl", "Validation.jsonl"):
        write(tmp_path / name, [row] * 3)
    (tmp_path / "notes.txt").touch()
    module, said = prepared(Conversations(path=tmp_path), tokenizer)
    assert said[:2] == ["Files that train: a.jsonl, sub/b.jsonl.", "Files that validate: Validation.jsonl."]
    assert said[2] == "Files that are not read: notes.txt."
    assert (len(module.train_dataset), len(module.val_dataset)) == (6, 3)
    write(tmp_path / "a\x1b[31m.jsonl", [row])
    _, said = prepared(Conversations(path=tmp_path), tokenizer)
    assert said[0] == r"Files that train: a\x1b[31m.jsonl, a.jsonl, sub/b.jsonl."
    (tmp_path / "a\x1b[31m.jsonl").unlink()
    module, said = prepared(Conversations(path=tmp_path, val_path=tmp_path / "sub" / "b.jsonl"), tokenizer)
    assert (len(module.train_dataset), len(module.val_dataset)) == (3, 3)
    assert "Files that are not read: Validation.jsonl, notes.txt." in said


def test_a_folder_to_validate_on_needs_no_other_files(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [FORMATS["pair"]] * 3)
    for name in ("val", "other"):
        write(tmp_path / name / f"{name}.jsonl", [FORMATS["pair"]] * 2)
        module, _ = prepared(Conversations(path=file, val_path=tmp_path / name), tokenizer)
        assert (len(module.train_dataset), len(module.val_dataset)) == (3, 2)


def test_a_folder_of_json_names_what_it_does_not_read(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("Train.jsonl", "VAL.jsonl", "more.jsonl"):
        write(tmp_path / name, [FORMATS["alpaca"]] * 3)
    _, said = prepared(JSON(tmp_path), tokenizer)
    assert f"Not read of {tmp_path}: more.jsonl; --data Conversations reads them." in said
    write(tmp_path / "train.json", [])
    with pytest.raises(LitGPTError, match=r"has Train\.jsonl and train\.json; keep one"):
        prepared(JSON(tmp_path), tokenizer)


# ------------------------------------------------------------------------------------------------- several turns

TURNS = [
    *({"role": "user", "content": "Who's there?"}, {"role": "assistant", "content": "Mr. Darcy."}),
    *({"role": "user", "content": "\nAnd then"}, {"role": "assistant", "content": " he went\n"}),
    *({"role": "user", "content": "1 2"}, {"role": "assistant", "content": "3"}),
]
SEVERAL = [name for name, style in prompt_styles.items() if style.user and name != "chat"]


@pytest.mark.parametrize("name", SEVERAL)
def test_what_an_answer_follows_has_the_ids_that_a_chat_sends(name: str) -> None:
    tokenizer, style = Tokenizer(ROOT / "litgpt" / "assets" / "austen-2m"), PromptStyle.from_name(name)
    for system in ([], [{"role": "system", "content": "Be brief."}]):
        for count in (2, 4, 6):
            messages = [*system, *TURNS[:count]]
            renderer = Renderer(style)
            sample = renderer.render(parse_conversation({"messages": messages}))
            ((ids, spans),) = Encoder(style, tokenizer).encode([sample])
            bos = False if style.adds_bos else None
            asked = tokenizer.encode_ids(style.apply_messages(messages[:-1]), bos=bos)
            assert ids == [*asked, *tokenizer.encode_ids(messages[-1]["content"], bos=False, eos=True)]
            assert spans[-1] == (len(asked), len(ids)) and len(spans) == count // 2
            for (start, end), message in zip(spans, messages[len(system) + 1 :: 2], strict=True):
                assert message["content"].strip() in tokenizer.decode(ids[start:end])


# ------------------------------------------------------------------------------------------------------- cutting


@pytest.mark.parametrize("style", ["chat", "chatml", "default", "alpaca", "llama2"])
def test_a_cut_goes_by_answers_whether_prompts_are_learned_or_not(
    style: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    messages = [{**message, "content": message["content"].strip()} for message in TURNS]
    file = write(tmp_path / "a.jsonl", [{"messages": messages}] * 2)
    module, _ = prepared(Conversations(path=file, prompt_style=style, val_split_fraction=0), tokenizer)
    whole = module.train_dataset
    ids, learned = whole[0]["input_ids"].tolist(), (whole[0]["labels"] >= 0).tolist()
    for limit in range(4, len(ids) + 2):
        found = []
        for mask in (True, False):
            options = replace(whole.options, mask_prompt=mask, max_seq_length=limit)
            try:
                cut = SFTDataset.from_shards(whole.shards, whole.row_renderer, options)
                found.append(cut[0]["input_ids"].tolist())
            except LitGPTError:
                found.append(None)
        assert found[0] == found[1], limit
        if found[0] is None:
            assert not any(learned[: limit - 1])
            continue
        size = len(found[0])
        assert size <= limit and found[0][:-1] == ids[: size - 1] and learned[size - 1]
        assert found[0][-1] == ids[size - 1] or found[0][-1] in whole.options.end_ids

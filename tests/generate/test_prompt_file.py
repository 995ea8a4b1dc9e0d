"""Prompts from a file: one a line or JSONL, answered together, and what is wrong with a line is told by its number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from litgpt.engine.inference_model import InferenceModel
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError
from litgpt.generate import full
from litgpt.generate.base import main
from tests.generate.folder import make_folder

EXACT = dict(temperature=0.0, precision="32-true", max_new_tokens=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("file") / "tiny")


@pytest.fixture
def answers(folder, tmp_path, capsys):
    """Runs the command over a file with these lines; the objects it prints."""

    def run(*lines: object, suffix: str = ".jsonl", **flags) -> list[dict]:
        file = tmp_path / f"prompts{suffix}"
        file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        main(folder, **{"prompt_file": file, **EXACT, **flags})
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def alone(folder: Path, prompt: list[int] | str, n: int = 8, **settings) -> str:
    inference_model = InferenceModel.load(folder, precision="32-true")
    ids = inference_model.encode(prompt) if isinstance(prompt, str) else prompt
    return "".join(inference_model.reply(inference_model.engine(), ids, Sampling(**{"temperature": 0, **settings}), n))


def test_one_prompt_a_line(answers, folder):
    rows = answers("What food?", "", "Hello there, who are you?", "Hi", suffix=".txt")
    assert [row["id"] for row in rows] == [0, 1, 2]
    prompts = ["What food?", "Hello there, who are you?", "Hi"]
    assert [row["output"] for row in rows] == [alone(folder, prompt) for prompt in prompts]
    inference_model = InferenceModel.load(folder, precision="32-true")
    assert [row["prompt_tokens"] for row in rows] == [len(inference_model.encode(prompt)) for prompt in prompts]
    assert all(row["completion_tokens"] <= 8 and row["finish_reason"] in ("length", "stop") for row in rows)


def test_lines_have_settings_of_their_own(answers, folder):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    rows = answers(
        {"prompt": "Hi", "max_new_tokens": 3},
        {"messages": messages, "id": "conversation"},
        {"prompt": "Hi", "temperature": 1.5, "seed": 7, "top_k": None, "logprobs": 2},
        {"prompt": "Hi", "regex": "[ab]{3}"},
    )
    inference_model = InferenceModel.load(folder, precision="32-true")
    assert rows[0]["output"] == alone(folder, "Hi", 3) and rows[0]["completion_tokens"] == 3
    assert rows[1]["id"] == "conversation" and rows[1]["output"] == alone(
        folder, inference_model.encode_messages(messages)
    )
    assert rows[2]["output"] == alone(folder, "Hi", temperature=1.5, seed=7)
    assert all(len(noted["top"]) == 2 for noted in rows[2]["logprobs"])
    assert set(rows[3]["output"]) <= set("ab") and rows[3]["finish_reason"] == "stop"


def test_samples_of_each_prompt(answers):
    rows = answers("Hi", "Ho", suffix=".txt", num_samples=2, temperature=2.0)
    assert [(row["id"], row["sample"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert rows[0]["output"] != rows[1]["output"]


def test_lines_end_where_an_editor_ends_them(answers, tmp_path):
    lines = ["\ufeffHi\u2028there", "Ho"]
    for suffix, content in ((".txt", lines), (".jsonl", [f'\ufeff{{"prompt": "{lines[0][1:]}"}}', {"prompt": "Ho"}])):
        assert answers(*content, suffix=suffix) == answers({"prompt": lines[0][1:]}, {"prompt": "Ho"})


def test_answers_go_to_a_file(answers, folder, tmp_path):
    out = tmp_path / "answers.jsonl"
    assert answers("Hi", suffix=".txt", out_file=out) == []
    assert json.loads(out.read_text())["output"] == alone(folder, "Hi")


def test_a_finetuned_model_takes_a_file_too(folder, tmp_path, capsys):
    lit = make_folder(tmp_path / "tuned", kind="litgpt")
    (tmp_path / "prompts.txt").write_text("Hi\nHo\n")
    full.main(folder, finetuned_path=lit / "lit_model.pth", prompt_file=tmp_path / "prompts.txt", **EXACT)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["output"] for row in rows] == [alone(folder, "Hi"), alone(folder, "Ho")]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{"], "line 1: not valid JSON"),
        ([{"prompt": "a"}, [1]], "line 2: a sample must be an object"),
        ([{"promt": "a"}], "no setting 'promt'. Closest: prompt"),
        ([{"prompt": "a", "messages": []}], "one of them"),
        ([{"prompt": "a", "temperature": -1}], "line 1: temperature is -1"),
        ([{"prompt": "a", "temperature": "hot"}], "line 1: temperature is 'hot'"),
        ([{"prompt": "a", "top_k": 2.5}], "top_k is 2.5"),
        ([{"prompt": "a", "logprobs": True}], "logprobs is True"),
        ([{"prompt": 5}], "line 1: prompt is 5; it must be a text"),
        ([{"prompt": "a", "input": ["b"]}], r"input is \['b'\]"),
        ([{"prompt": "a", "max_new_tokens": 0}], "max_new_tokens is 0"),
        ([{"prompt": "a", "max_new_tokens": True}], "max_new_tokens is True"),
        ([{"prompt": "a", "stop": [""]}], "stop string is empty"),
        ([{"prompt": "a", "stop": 5}], "stop string is empty or no text"),
        ([{"prompt": "a", "logit_bias": [1]}], r"logit_bias is \[1\]; it must be numbers by token id"),
        ([{"prompt": "a", "logit_bias": {"x": 1}}], "it must be numbers by token id"),
        ([{"prompt": "a", "logit_bias": {"9999": 1}}], "line 1: logit_bias has the token id 9999"),
        ([{"prompt": "a", "regex": "("}], r"line 1: The regular expression '\(' can't be used: unclosed group\."),
        ([{"prompt": "a", "regex": 5}], "is a text, not 5"),
        ([{"prompt": "hay " * 200}], "the context only 128"),
        ([{"messages": [{"role": "user"}]}], "has no `content`"),
        ([{"messages": "Hi"}], "is a list like"),
        ([""], "has no prompts"),
    ],
)
def test_what_is_wrong_is_told_by_line(answers, tmp_path, lines, words):
    with pytest.raises(LitGPTError, match=words):
        answers(*lines, out_file=tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (dict(prompt="Hi", prompt_file=Path("x.txt")), "both given"),
        (dict(prompt_file=Path("nowhere.txt")), "nowhere.txt can't be read: No such file"),
        (dict(out_file=Path("x.jsonl")), "out_file is for the answers to prompt_file"),
        (dict(prompt_file=Path("x.txt"), out_file=Path("x.txt")), "out_file would replace prompt_file"),
        (dict(json_schema='{"type": "object"}', regex="a"), "not to both"),
        (dict(json_schema="nowhere.json"), "neither JSON nor a file"),
        (dict(stop=""), "stop string is empty"),
        (dict(min_p=2.0), "min_p is 2.0"),
        (dict(seed=-1), "seed is -1"),
    ],
)
def test_flags_that_make_no_sense(folder, flags, words):
    with pytest.raises(LitGPTError, match=words):
        main(folder, **{**EXACT, **flags})


def test_sampling_flags_of_a_single_prompt(folder, capsys):
    def said(**flags) -> str:
        main(folder, "Hi", **{**EXACT, **flags})
        return capsys.readouterr().out.partition("assistant\n")[2].removesuffix("\n")

    whole = said()
    assert said(stop=whole[2:4]) == whole[: whole.index(whole[2:4])]
    assert said(regex="yes|no") in ("yes", "no")
    assert said(temperature=1.5, seed=3) == alone(folder, "Hi", temperature=1.5, top_k=50, seed=3)
    assert said(repetition_penalty=1e6) != whole

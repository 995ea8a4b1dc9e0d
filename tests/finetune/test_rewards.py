"""The rewards that are built in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from litgpt.errors import LitGPTError
from litgpt.finetune.policy.rewards import (
    Reward,
    code,
    exact_match,
    json_schema,
    loaded,
    regex,
    run_program,
    told,
)
from litgpt.tokenizer import Tokenizer
from tests.paths import ROOT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" 42 \n", "42"),
        ("It is 6 * 7.\n#### 42", "42"),
        (r"So \boxed{41}, no: \boxed{42}.", "42"),
        ("<think>?</think><answer> 42\n</answer> done", "42"),
    ],
)
def test_what_an_answer_comes_to(text: str, expected: str) -> None:
    assert told(text) == expected
    assert exact_match([""], [text], answer=["6 * 7 = 42\n#### 42"]) == [1.0]
    assert exact_match([""], [text], answer=[43]) == [0.0]


def test_the_right_answer_has_to_be_there() -> None:
    with pytest.raises(LitGPTError, match="no column `answer`"):
        exact_match([""], [""])
    with pytest.raises(LitGPTError, match="a column `tests`"):
        code([""], [""])


def test_a_pattern_is_found() -> None:
    assert regex(r"^<a>.*</a>$")(["", ""], ["<a>\n</a>", "x<a></a>"]) == [1.0, 0.0]


def test_json_keeps_to_a_schema(tmp_path: Path) -> None:
    tokenizer = Tokenizer(ROOT / "litgpt" / "assets" / "austen-2m")
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    pytest.importorskip("llguidance")
    keeps = json_schema(str(tmp_path / "schema.json"), tokenizer)
    assert keeps([""] * 4, ['{"n": 1}', '{ "n" :\n 1 }', '{"n": "1"}', "n: 1"]) == [1.0, 1.0, 0.0, 0.0]


def test_code_runs_within_limits() -> None:
    answers = ["```python\ndef f(x):\n    return 2 * x\n```", "def f(x):\n    return x"]
    assert code(["", ""], answers, tests=["assert f(2) == 4"] * 2) == [1.0, 0.0]
    assert code(["", ""], ["print(6 * 7)", "print(1)"], answer=[42, 42]) == [1.0, 0.0]
    assert run_program("import os\nprint(sorted(os.environ), os.listdir())")[1].startswith("[")
    assert "LITGPT" not in run_program("import os\nprint(dict(os.environ))")[1]
    assert run_program("while True: pass", seconds=1) == (False, "")
    assert run_program("x = bytearray(8 * 2**30)")[0] is False
    assert run_program("open('a', 'wb').write(b'0' * 2**24)")[0] is False


FILES = {
    "class Reward:\n    def __init__(self, more): pass\n": "can't be run in line .*: .*missing 1 required",
    "def Reward(:\n": r"can't be run: invalid syntax \(own.py, line 1\)",
    "raise SystemExit(3)\n": "can't be run in line 1 of own.py: 3",
    "1 / 0\n": "can't be run in line 1 of own.py: division by zero",
    "Reward = 3\n": "has no function 'Reward'",
}


@pytest.mark.parametrize("content", FILES)
def test_a_file_that_can_not_be_used_is_refused_in_a_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(content)
    with pytest.raises(LitGPTError, match=FILES[content]):
        loaded(f"{tmp_path}/own.py:Reward")


RESULTS = {
    "return [float('nan')] * 2": "returns",
    "return [1.0]": "has to return 2 finite numbers",
    "return 'ab'": "has to return 2 finite numbers",
    "return None": "has to return 2 finite numbers",
    "return 1 / 0": "fails in line 2 of own.py: division by zero",
    "raise SystemExit(3)": "fails in line 2 of own.py: 3",
}


@pytest.mark.parametrize("content", RESULTS)
def test_a_function_that_gives_no_rewards_is_refused_in_a_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"def given(prompts, completions, **columns):\n    {content}\n")
    with pytest.raises(LitGPTError, match=RESULTS[content]):
        Reward("given", loaded(f"{tmp_path}/own.py:given")).of(["", ""], ["", ""], {})


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ("prompts, answers", "missing a required .*'answers'|unexpected keyword argument 'completions'"),
        ("prompts, completions", "unexpected keyword argument 'level'"),
        ("prompts, completions, extra, **columns", "missing a required .*'extra'"),
        ("", "unexpected keyword argument"),
    ],
)
def test_a_function_that_takes_other_arguments_is_named_with_them(arguments: str, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"def given({arguments}):\n    return [1.0]\n")
    with pytest.raises(LitGPTError, match=wrong) as caught:
        Reward("given", loaded(f"{tmp_path}/own.py:given")).of(["p"], ["c"], {"level": [3]})
    assert "given can't be called with prompts, completions, level" in str(caught.value)
    assert "rewards.py" not in str(caught.value)

"""The rewards that are built in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from litgpt.errors import LitGPTError
from litgpt.finetune.policy.rewards import code, exact_match, json_schema, regex, run_program, told
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

"""Rows of every known format, and what becomes of those of none."""

from __future__ import annotations

from typing import Any

import pytest

from litgpt.data.sft.formats import parse_conversation, with_arguments_as_texts
from litgpt.errors import LitGPTError

ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CALL = {"name": "f", "arguments": {"x": 1}}
TURNS_AS_TEXT = '[{"role": "user", "content": "hi"}]'
"""An answer to "write a dialog as JSON", say."""


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [ASKED, SAID]}, [ASKED, SAID]),
        ({"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'}, [ASKED, SAID]),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, [ASKED, SAID]),
        ({"conversations": ["q", "a"]}, [ASKED, SAID]),
        ({"conversations": [ASKED, SAID]}, [ASKED, SAID]),
        ({"instruction": "q", "output": "a", "input": ""}, [ASKED, SAID]),
        ({"instruction": "q", "output": "a", "history": [["q", "a"]]}, [ASKED, SAID, ASKED, SAID]),
        ({"prompt": "q", "completion": "a"}, [ASKED, SAID]),
        ({"question": "q", "answer": "a", "id": 3}, [ASKED, SAID]),
        ({"prompt": [ASKED], "completion": [SAID]}, [ASKED, SAID]),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, [ASKED, SAID]),
        ({"prompt": "q", "chosen": [ASKED, SAID], "rejected": [ASKED]}, [ASKED, SAID]),
        ({"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}}, [ASKED, SAID]),
        ({"messages": [{"role": "human", "content": "q"}, {"role": "model", "content": "a"}]}, [ASKED, SAID]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, SAID]}, [ASKED, SAID]),
        ({"messages": None, "instruction": None, "prompt": "q", "completion": "a"}, [ASKED, SAID]),
        ({"messages": [], "chosen": "", "prompt": "q", "completion": "a"}, [ASKED, SAID]),
        ({"system": "s", "messages": [ASKED, SAID]}, [{"role": "system", "content": "s"}, ASKED, SAID]),
        ({"instruction": "q", "output": "a", "sys_prompt": "s"}, [{"role": "system", "content": "s"}, ASKED, SAID]),
        ({"instruction": "q", "output": "", "response": "a"}, [ASKED, SAID]),
        ({"instruction": "q", "output": TURNS_AS_TEXT}, [ASKED, {**SAID, "content": TURNS_AS_TEXT}]),
        (
            {"messages": [ASKED, {"role": "assistant", "content": None, "Reasoning": "r"}]},
            [ASKED, {"role": "assistant", "content": "", "reasoning": "r"}],
        ),
    ],
)
def test_a_format_is_told_by_its_keys(row: dict[str, Any], expected: list[dict[str, str]]) -> None:
    assert list(parse_conversation(row).messages) == expected


def test_plain_text_is_text() -> None:
    assert parse_conversation({"text": "Once.", "url": "x"}).text == "Once."


def test_tools_reasoning_and_further_keys_reach_the_template() -> None:
    row = {
        "messages": [ASKED, {**SAID, "reasoning_content": "hm", "tool_calls": [CALL]}],
        "tools": '[{"name": "f"}]',
        "chat_template_kwargs": {"enable_thinking": False},
    }
    found = parse_conversation(row)
    called = [{"type": "function", "function": CALL}]
    assert found.messages[1] == {**SAID, "reasoning_content": "hm", "tool_calls": called}
    assert found.tools == [{"type": "function", "function": {"name": "f"}}]
    assert found.variables == {"enable_thinking": False}


def test_a_function_call_becomes_a_tool_call_and_an_observation_a_tools_answer() -> None:
    turns = [
        {"from": "human", "value": "q"},
        {"from": "Function_Call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "7"},
    ]
    _, called, answered = parse_conversation({"conversations": turns}).messages
    assert called == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": CALL}],
    }
    assert answered == {"role": "tool", "content": "7"}


@pytest.mark.parametrize("arguments", ['{"x": 1}', {"x": 1}])
def test_arguments_are_objects_however_they_are_written(arguments: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    _, called = parse_conversation({"messages": [ASKED, {**SAID, "tool_calls": [call]}]}).messages
    assert called["tool_calls"] == [{"id": "1", "type": "function", "function": CALL}]
    (as_text,) = with_arguments_as_texts([called])
    assert as_text["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}


@pytest.mark.parametrize("choice", [{"weight": 0}, {"train": False}])
def test_a_turn_can_be_left_unlearned(choice: dict[str, Any]) -> None:
    found = parse_conversation({"system": "s", "messages": [ASKED, {**SAID, **choice}, ASKED, {**SAID, "weight": 1}]})
    assert found.masked == {2}
    assert found.messages[2] == SAID


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"foo": 1, "bar": 2}, r"no known format \(its keys: 'foo', 'bar'\)"),
        ({}, "no known format"),
        ({"prompt": None, "completion": "a"}, r"its keys: 'prompt' \(null\), 'completion'"),
        ({"prompt": 1, "completion": "a"}, "neither text nor a list of messages"),
        ({"chosen": "a"}, "`chosen` answers `prompt` or `conversations`"),
        ({"instruction": "q", "output": "a", "history": ["x"]}, "list of texts"),
        ({"instruction": "q", "output": "a", "history": 5}, "'history' is a number, not a list"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "part of type 'image_url'"),
        ({"messages": [ASKED], "chat_template_kwargs": {"messages": []}}, "not for the data to say"),
        ({"messages": []}, "is empty"),
        ({"messages": 3}, "'messages' is a number, not a list"),
        ({"messages": "oops"}, "no JSON"),
        ({"messages": ["oops"]}, "a message has `role` and `content`"),
        ({"messages": [{"role": "user"}]}, "no text under `content`"),
        ({"messages": [{**ASKED, "weight": 0.5}]}, "`weight` is 0 or 1"),
        ({"messages": [ASKED], "tools": "{"}, "`tools` is no JSON"),
        ({"messages": [ASKED], "tools": {"a": 1}}, "`tools` is an object, not a list"),
        ({"messages": [ASKED], "tools": ["f"]}, "`tools` is a list of objects"),
        ({"messages": [{**SAID, "tool_calls": "f"}]}, "`tool_calls` is a list"),
        ({"messages": [{**SAID, "tool_calls": ["f"]}]}, "a call has the `name` of a function"),
        ({"messages": [{**SAID, "tool_calls": [{"function": {"arguments": {}}}]}]}, "a call has the `name`"),
        ({"conversations": [{"from": "function_call", "value": "[1]"}]}, "a call has the `name`"),
        ({"messages": [ASKED], "chat_template_kwargs": 1}, "is an object"),
        ({"conversations": [{"from": "human"}]}, "has `from` and `value`"),
        ({"conversations": [{"from": "martian", "value": "x"}]}, "'martian' speaks"),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, "function_call is JSON"),
        ({"conversations": ["a", 1]}, "has `from` and `value`"),
        ({"instruction": "q"}, "no key 'output'"),
        ({"instruction": "q", "output": 3}, "'output' is a number, not text"),
        ({"text": 3}, "'text' is a number, not text"),
    ],
)
def test_what_belongs_to_no_format_is_told_in_one_sentence(row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LitGPTError, match=complaint) as caught:
        parse_conversation(row)
    assert "\n" not in str(caught.value)

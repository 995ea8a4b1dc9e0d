"""Every notation of tool calls that is read, held to the chat templates of real models: what they write of a call is
read back as that call, whatever its arguments hold, wherever the tokens end; what is cut is text, to the letter."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from litgpt.deploy.protocol import channels
from litgpt.deploy.protocol.arguments import arguments_text, typed
from litgpt.deploy.protocol.channels import ChannelParser
from litgpt.deploy.protocol.notations import FORMATS, ToolFormat, format_of
from litgpt.deploy.protocol.tool_calls import DeltaMessage, ToolCallParser
from litgpt.errors import LitGPTError
from litgpt.prompts import ChatTemplate

KINDS = {
    *("Qwen-Qwen3-0.6B", "Qwen3-Coder", "GLM-4.6", "GLM-4.7-Flash", "meta-llama-Llama-3.2-3B-Instruct"),
    *("mistralai-Mistral-Nemo-Instruct-2407", "Mistral-Small-3.2-24B-Instruct-2506", "deepseek-ai-DeepSeek-V3.1"),
    *("moonshotai-Kimi-K2", "upstage-Solar-Open-100B", "MiniMax-M2", "muse-glimmer", "deepseek-ai-DeepSeek-V3.2"),
    *("deepseek-ai-DeepSeek-V4", "ByteDance-Seed-OSS", "tencent-Hy3", "Cohere2MoE"),
    "NVIDIA-Nemotron-Nano-v2",
    *("ibm-granite-granite-3.3-2B-Instruct", "openai-gpt-oss-120b", "Apriel-1.6-15b-Thinker-fixed", "MiniMax-M1"),
}
"""Templates that together write every notation."""
TAGGED = next(known for known in FORMATS if known.starts == ("<tool_call>",))
PYTHON = next(known for known in FORMATS if known.starts == ("<|tool_call_start|>",))
GEMMA = next(known for known in FORMATS if known.starts == ("<|tool_call>",))
AMBIGUOUS = (GEMMA, PYTHON)
"""LFM2's templates put texts between quotes as they are, and Gemma 4's keys without: what holds a mark of the notation
could be told apart by no reader."""
QUESTION = {"role": "user", "content": "What is the weather?"}
PARAMETERS = {
    "type": "object",
    "$defs": {"City": {"type": "string"}, "Day": {"enum": [1, 2, 3]}},
    "properties": {
        "text": {"type": "string"},
        "city": {"$ref": "#/$defs/City"},
        "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "choice": {"enum": ["1", "true", "null"]},
        "day": {"allOf": [{"$ref": "#/$defs/Day"}]},
        "count": {"type": "integer"},
        "share": {"type": ["number", "null"]},
        "flag": {"type": "boolean"},
        "object": {"type": "object"},
        "list": {"type": "array"},
    },
}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Looks.", "parameters": PARAMETERS}}
TOOLS = {"get_weather": PARAMETERS}
MARKS = sorted({mark for known in FORMATS for mark in (*known.starts, *known.shown)} | {*channels.MARKS})
PIECES = [
    *MARKS,
    *("</parameter>", "</function>", "</arg_value>", "</arg_key>", "<parameter=", "```", "}", "]", '"}}', '"', "\\"),
    *(
        "12345",
        "true",
        "True",
        "null",
        "None",
        "1e5",
        '"quoted"',
        "{}",
        "[1]",
        " ",
        "\n",
        "é",
        "😀",
        "\u2028",
        "'",
        "<",
    ),
]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=5)
STRING = TEXT.map("".join)
NUMBER = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBER | STRING,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRING, inner, max_size=3),
    max_leaves=5,
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "text": STRING,
        "city": STRING,
        "maybe": st.none() | STRING.filter(lambda text: text.strip() not in ("null", "None")),
        "choice": st.sampled_from(["1", "true", "null"]),
        "day": st.sampled_from([1, 2, 3]),
        "count": st.integers(-(2**60), 2**60),
        "share": st.none() | NUMBER,
        "flag": st.booleans(),
        "object": st.dictionaries(STRING, JSON, max_size=3),
        "list": st.lists(JSON, max_size=3),
    },
)
SAID = st.lists(st.sampled_from(["I look. ", "\n", " ", "<", "</", "[TOOL", "{", "é", "<tool"]), max_size=4).map(
    "".join
)


class Writer(NamedTuple):
    """A real model's way to write calls."""

    render: Callable[..., str]
    """The conversation in which the assistant calls the tool with some arguments, once or several times."""
    notation: ToolFormat | None
    """None: in channels."""
    head: str
    """What its first call begins with."""
    tail: int
    """Characters that the template puts behind the last call."""
    several: bool
    """Whether a message may hold more than one call, and a text."""

    def parser(self) -> ToolCallParser | ChannelParser:
        return ChannelParser(TOOLS) if self.notation is None else ToolCallParser(self.notation, TOOLS)

    def write(self, *arguments: dict[str, Any]) -> str:
        """What the model says that calls the tool."""
        text = self.render(*arguments)
        return text[text.index(self.head, text.index(QUESTION["content"])) : len(text) - self.tail]


def conversation(style: ChatTemplate, as_text: bool, *arguments: dict[str, Any]) -> str:
    calls = [
        {
            "id": f"abcdefgh{i}",
            "type": "function",
            "function": {
                "name": "get_weather",
                "arguments": json.dumps(given, ensure_ascii=False) if as_text else given,
            },
        }
        for i, given in enumerate(arguments)
    ]
    answer = {"role": "assistant", "content": None if as_text else "", "tool_calls": calls}
    return style.apply_messages([QUESTION, answer], False, tools=None if as_text else [TOOL])


def granite(*arguments: dict[str, Any]) -> str:
    """Granite 3.3's template asks for calls and writes none."""
    calls = [{"name": "get_weather", "arguments": given} for given in arguments]
    return f"{QUESTION['content']}<|tool_call|>{json.dumps(calls, ensure_ascii=False)}"


def renders(render: Callable[..., str], *arguments: dict[str, Any]) -> bool:
    try:
        return "get_weather" in render(*arguments).partition(QUESTION["content"])[2]
    except LitGPTError:
        return False


@pytest.fixture(scope="module", params=["one of each kind", pytest.param("all", marks=pytest.mark.slow)])
def writers(shared_assets: Path, request: pytest.FixtureRequest) -> dict[str, Writer]:
    """The real templates that write calls in a notation that is read."""
    found = {}
    for file in sorted((shared_assets / "chat_templates").glob("*.jinja")):
        if request.param != "all" and file.stem not in KINDS:
            continue
        source = file.read_text(encoding="utf-8")
        notation, in_channels = format_of(source), channels.SIGN in source
        style = ChatTemplate.from_source(source, bos_token="<s>", eos_token="</s>")
        ways = [partial(conversation, style, False), partial(conversation, style, True)]
        ways = [granite] if "granite-3" in file.stem else ways
        render = next((way for way in ways if renders(way, {"text": "x"})), None)
        if render is None or (notation is None and not in_channels) or notation in AMBIGUOUS:
            continue
        heads = (" to=functions",) if notation is None else notation.starts
        heads = ('{"name"',) if notation is not None and notation.only_first else heads
        end = "<|call|>" if notation is None else notation.end
        text = render({"text": "x"})
        end = end or max("}", "]", key=text.rfind)
        apart = "<|start|>assistant to=" in source  # each call in a message of its own
        several = notation is not None and not apart and renders(render, {}, {})
        said = text[text.index(QUESTION["content"]) :]
        head = min((head for head in heads if head in said), key=said.find)
        found[file.stem] = Writer(render, notation, head, len(text) - text.rindex(end) - len(end), several)
    return found


def read(writer: Writer, text: str, cuts: list[int]) -> DeltaMessage:
    parser, message, at = writer.parser(), DeltaMessage(), 0
    for cut in [*sorted(cut % (len(text) + 1) for cut in cuts), len(text)]:
        message += parser.push(text[at:cut])
        at = cut
    return message + parser.close()


def called(message: DeltaMessage) -> list[Any]:
    return [json.loads(call.arguments, parse_constant=pytest.fail) for call in message.calls]


def same(one: Any, other: Any) -> bool:
    """Equal, types too."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other and isinstance(one, bool) == isinstance(other, bool)


quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def test_every_notation_is_written_by_a_real_template(writers):
    found = [writer.notation for writer in writers.values()]
    assert len(found) > 25 or len(found) == len(KINDS)
    assert [known.signs for known in FORMATS if known not in found] == [known.signs for known in AMBIGUOUS]


@quick
@given(st.data())
def test_what_a_template_writes_of_a_call_is_read_back(writers, data):
    writer = writers[data.draw(st.sampled_from(sorted(writers)))]
    arguments = data.draw(st.lists(ARGUMENTS, min_size=1, max_size=2 if writer.several else 1))
    text = writer.write(*arguments)
    message = read(writer, text, data.draw(st.lists(st.integers(0, 10_000), max_size=30)))
    assert same(called(message), arguments), text
    assert message.content == ""


@quick
@given(st.data())
def test_what_is_said_around_calls_stays_to_the_letter(writers, data):
    writer = writers[data.draw(st.sampled_from([name for name, each in writers.items() if each.several]))]
    before, after = data.draw(SAID), data.draw(SAID)
    arguments = data.draw(st.lists(ARGUMENTS, min_size=1, max_size=2))
    text = before + writer.write(*arguments) + after
    message = read(writer, text, data.draw(st.lists(st.integers(0, 10_000), max_size=30)))
    assert same(called(message), arguments), text
    # White space alone around calls is notation.
    assert message.content == (before if before.strip() else "") + (after if after.strip() else "")


@quick
@given(st.data())
def test_a_call_that_is_cut_is_text(writers, data):
    writer = writers[data.draw(st.sampled_from([name for name, each in writers.items() if each.notation]))]
    before = data.draw(SAID) if writer.several else ""
    arguments = data.draw(ARGUMENTS)
    text = before + writer.write(arguments)
    cut = data.draw(st.integers(0, len(text) - 1))
    message = read(writer, text[:cut], data.draw(st.lists(st.integers(0, 10_000), max_size=30)))
    assert (message.content, message.calls) == (text[:cut], ())


HERMES = "<tool_call>\n%s\n</tool_call>"
DECIDED = [
    ('{"name": "get_weather", "arguments": null}', "{}"),
    ('{"name": "get_weather"}', "{}"),
    ('{"name": "get_weather", "arguments": "{\\"text\\": \\"x\\"}"}', '{"text": "x"}'),
    ('{"name": "get_weather", "arguments": {"text": "\\ud800"}}', '{"text": "\\ud800"}'),
    ('{"name": "get_weather", "arguments": {"share": NaN}}', None),
    ('{"name": "get_weather", "arguments": {"share": 1e400}}', None),
    ('{"name": "get_weather", "arguments": [1]}', None),
    ('{"name": "get_weather", "arguments": "oops"}', None),
    ('{"name": "get_weather", "text": "x"}', None),
    ('{"name": ["get_weather"], "arguments": {}}', None),
    ("[" * 3000, None),
    ("<function=get_weather>\n<parameter=share>\nNaN\n</parameter>\n</function>", '{"share": "NaN"}'),
    ("<function=get_weather>\n<parameter=share>\n1e400\n</parameter>\n</function>", '{"share": "1e400"}'),
    ("<function=get_weather>\n</function>", "{}"),
    ("get_weather<arg_key>text</arg_key><arg_value>x", None),
    ("get_weather<arg_key>other</arg_key><arg_value>12</arg_value>", '{"other": 12}'),
    (
        "get_weather<arg_key>object</arg_key><arg_value>{'a': [1, None, True]}</arg_value>",
        '{"object": {"a": [1, null, true]}}',
    ),
    # the whole end of a call inside a value
    (
        "<function=get_weather>\n<parameter=text>\na\n</parameter>\n</function>\n</tool_call> b\n</parameter>\n"
        "</function>",
        json.dumps({"text": "a\n</parameter>\n</function>\n</tool_call> b"}),
    ),
]


@pytest.mark.parametrize(("body", "arguments"), DECIDED)
def test_what_no_template_writes_is_decided(body, arguments):
    parser = ToolCallParser(TAGGED, TOOLS)
    message = parser.push(HERMES % body) + parser.close()
    expected = ("", [arguments]) if arguments is not None else (HERMES % body, [])
    assert (message.content, [call.arguments for call in message.calls]) == expected
    "".join(call.arguments for call in message.calls).encode()


WRITTEN = [
    (PYTHON, '[get_weather(text="x, \\"y\\")", count=3)]', ['{"text": "x, \\"y\\")", "count": 3}']),
    (PYTHON, "[get_weather(text='a'), get_weather()]", ['{"text": "a"}', "{}"]),
    (PYTHON, '[get_weather(object={"a": [null]}, flag=False)]', ['{"object": {"a": [null]}, "flag": false}']),
    (PYTHON, "[rm(text='a')]", None),
    (PYTHON, "[get_weather('a')]", None),
    (PYTHON, "[get_weather(text=open('a'))]", None),
    (PYTHON, "[get_weather(text=]", None),
    (PYTHON, "[]", None),
    (GEMMA, "call:get_weather{}", ["{}"]),
    (GEMMA, 'call:get_weather{count:-3,text:<|"|>a}, {:[b<|"|>}', ['{"count": -3, "text": "a}, {:[b"}']),
    (GEMMA, 'call:get_weather{list:[1,<|"|>x<|"|>,true,None,[]]}', ['{"list": [1, "x", true, null, []]}']),
    (GEMMA, "call:get_weather{object:{a:{b:1.5}}}", ['{"object": {"a": {"b": 1.5}}}']),
    (GEMMA, 'call:get_weather{text:<|"|>a', None),
    (GEMMA, "call:rm{}", None),
    (GEMMA, "call:get_weather{text:a}", None),
    (GEMMA, "call:get_weather{count:1 2}", None),
]  # fmt: skip


@pytest.mark.parametrize(("notation", "body", "arguments"), WRITTEN)
def test_calls_are_read_as_models_write_them_whose_templates_are_ambiguous(notation, body, arguments):
    text = notation.starts[0] + body + notation.end
    for size in (1, 7, len(text)):
        parser, message = ToolCallParser(notation, TOOLS), DeltaMessage()
        for at in range(0, len(text), size):
            message += parser.push(text[at : at + size])
        message += parser.close()
        expected = ("", arguments) if arguments else (text, [])
        assert (message.content, [call.arguments for call in message.calls]) == expected


@pytest.mark.parametrize("name", ["LFM2.5-8B-A1B", "google-gemma-4-31B-it"])
def test_a_plain_call_of_these_templates_is_read_back(shared_assets, name):
    source = (shared_assets / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    notation, style = format_of(source), ChatTemplate.from_source(source, bos_token="<s>", eos_token="</s>")
    given = {"text": "Paris, today", "count": 3, "flag": True, "list": [1, "a"], "object": {"a": 1.5}}
    text = conversation(style, False, given)
    assert notation is not None and notation.end is not None
    text = text[text.rindex(notation.starts[0]) : text.rindex(notation.end) + len(notation.end)]
    parser = ToolCallParser(notation, TOOLS)
    message = parser.push(text) + parser.close()
    assert same(called(message), [given]) and not message.content


def test_calls_with_a_text_between_them_are_two():
    parser = ToolCallParser(TAGGED, TOOLS)
    call = HERMES % "<function=get_weather>\n<parameter=text>\nx\n</parameter>\n</function>"
    message = parser.push(f"{call} then {call} done") + parser.close()
    assert (message.content, len(message.calls)) == (" then  done", 2)


def test_an_end_mark_without_end_costs_no_more_than_its_length():
    parser = ToolCallParser(TAGGED, TOOLS)
    text = '<tool_call>{"name": "get_weather", "arguments": {"text": "' + "</tool_call>" * 20_000
    began = time.process_time()
    message = DeltaMessage()
    for at in range(0, len(text), 12):
        message += parser.push(text[at : at + 12])
    assert (message + parser.close()).content == text
    assert time.process_time() - began < 5


SCHEMAS = [
    ({"type": "string"}, "12345", "12345"),
    ({"type": "string"}, '"quoted"', '"quoted"'),
    ({"type": "string"}, " x ", " x "),
    ({"const": "1"}, "1", "1"),
    ({"type": ["string", "null"]}, "None", None),
    ({"type": "string", "nullable": True}, "null", None),
    ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "5", 5),
    ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "true", "true"),
    ({"type": "boolean"}, "True", True),
    ({"type": "boolean"}, "maybe", "maybe"),
    ({"type": "integer"}, "1e5", 100000),
    ({"type": "number"}, "1e5", 1e5),
    ({"type": "array"}, "[1, 'a', None]", [1, "a", None]),
    ({"type": "object"}, "{1, 2}", "{1, 2}"),
    ({"$ref": "#/$defs/S"}, "1", "1"),
    ({"$ref": "#/$defs/Loop"}, "1", 1),
    ({"allOf": [{"$ref": "#/$defs/S"}]}, "true", "true"),
    ({"type": {"a": 1}}, "1", 1),
    (True, "true", True),
    ({}, "text", "text"),
]


@pytest.mark.parametrize(("schema", "text", "value"), SCHEMAS)
def test_a_plain_value_gets_its_type_from_the_schema(schema, text, value):
    parameters = {"$defs": {"S": {"type": "string"}, "Loop": {"$ref": "#/$defs/Loop"}}, "properties": {"key": schema}}
    found = typed(text, parameters, "key")
    assert (found, type(found)) == (value, type(value))


@given(JSON)
@settings(max_examples=100, deadline=None)
def test_an_object_survives_as_text(value):
    assert json.loads(arguments_text({"key": value})) == {"key": value}

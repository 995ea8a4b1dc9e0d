"""Calls of tools: read from what a model says, in every notation that is known, whole and piece by piece."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from litgpt.deploy.app import make_app
from litgpt.deploy.protocol.channels import ChannelParser
from litgpt.deploy.protocol.notations import FORMATS, format_of
from litgpt.deploy.protocol.parsing import plain_messages
from litgpt.deploy.protocol.schemas import ChatMessage, FunctionCall, ToolCall
from litgpt.deploy.protocol.tool_calls import DeltaMessage, ToolCallParser, forced_schema
from litgpt.deploy.service import Service
from litgpt.engine.inference_model import InferenceModel
from tests.deploy.served import Script, make_service, running
from tests.generate.folder import make_folder

SIGNS = {
    "hermes": "{%- if tools %}<tool_call>",
    "llama": 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.',
    "mistral": "{{ '[TOOL_CALLS]' }}",
    "granite": "respond only with <|tool_call|> followed by a JSON list",
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>",
    "channels": "<|channel|>",
}
PARIS = ("weather", {"city": "Paris"})
ROME = ("weather", {"city": "Rome", "days": 3})
SAID = [
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>', "", [PARIS]),
    (
        "hermes",
        'I look it up.\n<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>\n'
        '<tool_call>{"name": "weather", "arguments": {"city": "Rome", "days": 3}}</tool_call>\n',
        "I look it up.\n",
        [PARIS, ROME],
    ),
    (
        "hermes",
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
        "</function>\n</tool_call>",
        "",
        [ROME],
    ),
    ("hermes", "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>", "", [PARIS]),
    ("hermes", "2 < 3, <b>, <tool_cake>", "2 < 3, <b>, <tool_cake>", []),
    ("hermes", "<tool_call>oops</tool_call> sorry", "<tool_call>oops</tool_call> sorry", []),
    ("hermes", '<tool_call>{"name": "rm", "arguments": {}}</tool_call>', None, []),
    ("hermes", '<tool_call>{"name": "weather", "argum', '<tool_call>{"name": "weather", "argum', []),
    ("llama", '{"name": "weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    ("llama", '<|python_tag|>{"name": "weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
    (
        "llama",
        '{"name": "weather", "parameters": {"city": "Paris"}}; '
        '{"name": "weather", "parameters": {"city": "Rome", "days": 3}}',
        "",
        [PARIS, ROME],
    ),
    ("llama", '{"answer": 42}', '{"answer": 42}', []),
    ("llama", 'It is {"name": "weather"}', 'It is {"name": "weather"}', []),
    ("mistral", '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}}]', "", [PARIS]),
    (
        "mistral",
        '[TOOL_CALLS]weather[ARGS]{"city": "Paris"}[TOOL_CALLS]weather[ARGS]{"city": "Rome", "days": 3}',
        "",
        [PARIS, ROME],
    ),
    ("mistral", '[TOOL_CALLS]weather[CALL_ID]abc123def[ARGS]{"city": "Paris"}', "", [PARIS]),
    ("mistral", "[TOOL_CALLS]what", "[TOOL_CALLS]what", []),
    ("granite", '<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris"}}]', "", [PARIS]),
    (
        "deepseek",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Paris"}\n```'
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        [PARIS],
    ),
    (
        "channels",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>2 < 3, <|b|>",
        "2 < 3, <|b|>",
        [],
    ),
    (
        "channels",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
        '<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Paris"}',
        "I look.",
        [PARIS],
    ),
    (
        "channels",
        ' to=functions.weather<|channel|>commentary json<|message|>{"city": "Rome", "days": 3}<|call|>',
        "",
        [ROME],
    ),
    ("channels", "<|channel|>commentary to=functions.rm json<|message|>{}", "{}", []),
    ("channels", "<|channel|>commentary to=functions.weather json<|message|>{oops", "{oops", []),
    (
        "channels",
        '<|channel|>commentary to=functions.weather<|message|>{"city": "Paris", "x": "<|end|>"}<|call|>',
        "",
        [("weather", {"city": "Paris", "x": "<|end|>"})],
    ),
    ("channels", "<|channel|>commentary to=functions.weather<|message|>null<|call|>", "", [("weather", {})]),
    ("channels", "<|channel|>commentary to=functions.weather<|message|>[NaN]", "[NaN]", []),
    ("mistral", '[TOOL_CALLS]weather[ARGS]{"city": "[TOOL_CALLS]"} ok', " ok", [("weather", {"city": "[TOOL_CALLS]"})]),
    (
        "mistral",
        '[TOOL_CALLS]weather[ARGS]{"city": "Paris"}[TOOL_CALLS]weather[ARGS]{"ci',
        '[TOOL_CALLS]weather[ARGS]{"ci',
        [PARIS],
    ),
    (
        "deepseek",
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>"
        '{"city": "}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>!',
        "!",
        [("weather", {"city": "}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"})],
    ),
    ("channels", '{"answer": "<|end|>"}', '{"answer": "<|end|>"}', []),
    ("channels", "<|channel|>analysis<|message|>Hm.", "", []),
    ("channels", "<|channel|>fin", "", []),
]


def read(kind: str, text: str, size: int) -> DeltaMessage:
    notation = format_of(SIGNS[kind])
    reader = ChannelParser({"weather"}) if notation is None else ToolCallParser(notation, {"weather"})
    message = DeltaMessage()
    for start in range(0, len(text), size):
        message += reader.push(text[start : start + size])
    message += reader.close()
    return message


@pytest.mark.parametrize("size", [1, 3, 10_000])
@pytest.mark.parametrize(("kind", "text", "content", "called"), SAID)
def test_calls_are_parted_from_what_is_said(kind, text, content, called, size):
    message = read(kind, text, size)
    assert message.content == (text if content is None else content)
    assert [(call.name, json.loads(call.arguments)) for call in message.calls] == called
    assert len({call.id for call in message.calls}) == len(called)
    assert all(len(call.id) == 9 for call in message.calls)
    assert message.reasoning == ("Hm." if "Hm." in text else "")


def test_text_that_begins_no_call_is_not_held_back():
    notation = format_of(SIGNS["hermes"])
    reader = ToolCallParser(notation, {"weather"})
    assert reader.push("Hello <to").content == "Hello "
    assert reader.push("night>").content == "<tonight>"


def test_real_templates_are_known(shared_assets):
    folder = shared_assets / "chat_templates"
    expected = {
        "Qwen-Qwen3-0.6B": "hermes",
        "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
        "meta-llama-Llama-3.3-70B-Instruct": "llama",
        "mistralai-Mistral-Nemo-Instruct-2407": "mistral",
        "ibm-granite-granite-3.3-2B-Instruct": "granite",
        "deepseek-ai-DeepSeek-V3.1": "deepseek",
        "google-gemma-2-2b-it": None,
    }
    for name, kind in expected.items():
        found = format_of((folder / f"{name}.jinja").read_text(encoding="utf-8"))
        assert found is (None if kind is None else format_of(SIGNS[kind])), name


@pytest.mark.parametrize("notation", [known for known in FORMATS if known.forced is not None])
def test_what_the_schema_of_a_forced_call_allows_is_a_call(notation):
    schema = forced_schema(notation, [{"name": "weather", "parameters": {"type": "object"}}])
    name, arguments = notation.keys
    entry = schema["items"] if notation.wraps else schema
    assert entry["required"] == [name, arguments]
    written = json.dumps({name: "weather", arguments: {"city": "Paris"}})
    reader = ToolCallParser(notation, {"weather"})
    text = notation.forced + (f"[{written}]" if notation.wraps else written) + (notation.end or "")
    message = reader.push(text) + reader.close()
    assert [(call.name, json.loads(call.arguments)) for call in message.calls] == [PARIS]


# -- through the server

openai = pytest.importorskip("openai")

TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools> answer with <tool_call>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<call {{ c.function.name }} {{ c.function.arguments.city }}>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "What the weather will be.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Paris", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    folder: Path = make_folder(tmp_path_factory.mktemp("tools") / "tiny", template=TEMPLATE, block_size=1024)
    return make_service(InferenceModel.load(folder, "cpu", "32-true"))


@pytest.fixture(scope="module")
def client(service) -> Iterator[openai.OpenAI]:
    with running(service) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        yield client


def ask(client, **settings):
    messages = [{"role": "user", "content": "Paris or Rome?"}]
    return client.chat.completions.create(**{"model": "tiny", "messages": messages, "tools": TOOLS, **settings})


SCRIPT = (
    'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
)


@pytest.fixture
def scripted(service, monkeypatch):
    async def script(tasks):
        service.backend.asked = tasks
        return Script(SCRIPT)

    monkeypatch.setattr(service.backend, "open", script)
    return service.backend


def test_an_answer_with_calls_has_them_parsed(client, scripted):
    choice = ask(client).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see.\n"
    called = [(call.function.name, json.loads(call.function.arguments)["city"]) for call in choice.message.tool_calls]
    assert called == [("weather", "Paris"), ("weather", "Rome")]


def test_a_streamed_answer_has_the_same_calls(client, scripted):
    text, calls, reasons = "", {}, []
    for chunk in ask(client, stream=True):
        delta = chunk.choices[0].delta
        text += delta.content or ""
        reasons += [chunk.choices[0].finish_reason] * (chunk.choices[0].finish_reason is not None)
        for call in delta.tool_calls or []:
            calls.setdefault(call.index, []).append((call.id, call.function.name, call.function.arguments))
    assert text == "Let me see.\n" and reasons == ["tool_calls"]
    assert [json.loads(parts[0][2])["city"] for _, parts in sorted(calls.items())] == ["Paris", "Rome"]


def test_one_call_at_most_where_parallel_ones_are_off(client, scripted):
    assert len(ask(client, parallel_tool_calls=False).choices[0].message.tool_calls) == 1


def test_tools_reach_the_template_and_results_come_back(client, service, scripted):
    first = ask(client).choices[0].message
    assert "What the weather will be." in service.base.inference_model.tokenizer.decode(scripted.asked[0].prompt)
    history = [
        {"role": "user", "content": "Paris?"},
        first,
        {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "Sunny."},
    ]
    ask(client, messages=history)
    text = service.base.inference_model.tokenizer.decode(scripted.asked[0].prompt, skip_special_tokens=False)
    assert "<call weather Paris>" in text and "<|im_start|>tool\nSunny.<|im_end|>" in text
    ask(client, tool_choice="none")
    assert "What the weather" not in service.base.inference_model.tokenizer.decode(scripted.asked[0].prompt)


@pytest.mark.parametrize(
    "text, given", [("", {}), (" ", {}), ("null", {}), ('{"city": "Rome"}', {"city": "Rome"}), ("[1]", "[1]")]
)
def test_a_call_without_arguments_reaches_the_template_as_an_empty_object(text, given):
    call = ToolCall(id="1", function=FunctionCall(name="weather", arguments=text))
    (message,) = plain_messages([ChatMessage(role="assistant", tool_calls=[call])])
    assert message["tool_calls"][0]["function"] == {"name": "weather", "arguments": given}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_that_is_asked_for_comes(client, choice):
    pytest.importorskip("llguidance")
    for seed in range(2):
        answer = ask(client, tool_choice=choice, temperature=1.0, seed=seed, max_tokens=300).choices[0]
        assert answer.finish_reason == "tool_calls"
        (call,) = answer.message.tool_calls
        assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_tools_of_a_notation_that_is_not_known_are_named(tmp_path, caplog, monkeypatch):
    template = TEMPLATE.replace("<tool_call>", "<other_call>")
    folder = make_folder(tmp_path / "tiny", template=template, block_size=1024)
    service = make_service(InferenceModel.load(folder, "cpu", "32-true"))
    with running(service) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        caplog.set_level(logging.WARNING, "uvicorn.error")
        monkeypatch.setattr(logging.getLogger("uvicorn.error"), "handlers", [caplog.handler])
        answer = ask(client, max_tokens=2)
        chunks = list(ask(client, max_tokens=2, stream=True))
        assert not hasattr(ask(client, max_tokens=2, tools=[]), "warnings")
    assert "How this model writes tool calls is not known" in answer.warnings[0]
    assert [getattr(chunk, "warnings", None) for chunk in chunks] == [answer.warnings] + [None] * (len(chunks) - 1)
    assert "How this model writes tool calls is not known" in caplog.text


CHANNELS = (
    "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Sunny.<|end|>"
    '<|start|>assistant<|channel|>commentary to=functions.weather json<|message|>{"city": "Paris"}'
)


def test_answers_in_channels_are_parted_with_tools_and_without(tmp_path):
    folder = make_folder(tmp_path / "tiny", template="<|channel|>" + TEMPLATE, block_size=1024)
    service = make_service(InferenceModel.load(folder, "cpu", "32-true"))

    async def script(tasks):
        assert "<|channel|>" in tasks[0].shown
        return Script(CHANNELS)

    service.backend.open = script
    with running(service) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        choice = ask(client).choices[0]
        assert (choice.message.content, choice.message.reasoning_content) == ("Sunny.", "Hm.")
        assert choice.message.tool_calls[0].function.name == "weather" and choice.finish_reason == "tool_calls"
        plain = ask(client, tools=[]).choices[0]
        assert (plain.message.content, plain.message.tool_calls) == ('Sunny.{"city": "Paris"}', None)
        deltas = [chunk.choices[0].delta for chunk in ask(client, stream=True)]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "Hm."
    assert "".join(delta.content or "" for delta in deltas) == "Sunny."


def test_a_tool_that_is_not_there_is_told(client):
    with pytest.raises(openai.BadRequestError, match="There is no tool 'other'"):
        ask(client, tool_choice={"type": "function", "function": {"name": "other"}})


@pytest.mark.parametrize("depth", [100, 700, 950, 5000])
@pytest.mark.parametrize(
    "field",
    [
        '"tools":[{"type":"function","function":{"name":"f","parameters":DEEP}}]',
        '"tool_choice":"required","tools":[{"type":"function","function":{"name":"f","parameters":DEEP}}]',
        '"response_format":{"type":"json_schema","json_schema":{"name":"a","schema":DEEP}}',
        '"chat_template_kwargs":{"message":DEEP}',
        '"metadata":DEEP',
    ],
)
def test_nesting_without_end_is_told(service, field, depth):
    deep = '{"items":' * depth + "{}" + "}" * depth
    head = '{"model":"tiny","max_tokens":2,"messages":[{"role":"user","content":"Hi"}],'
    body = (head + field.replace("DEEP", deep) + "}").encode()
    with TestClient(make_app(make_service(service.base.inference_model)), raise_server_exceptions=False) as client:
        answer = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
        assert answer.status_code < 500, answer.text
        assert depth < 5000 or answer.status_code == 400

"""Chat completions, messages and responses: three protocols before one model, asked by the official clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from litgpt.deploy.protocol import responses as answering
from litgpt.engine.inference_model import InferenceModel
from tests.deploy.routes.conversations import (
    ANTHROPIC_TOOLS,
    CHAT_TOOLS,
    RESPONSES_TOOLS,
    TEMPLATE,
    as_anthropic,
    as_items,
    of_chat,
    of_chunks,
    of_message,
    of_response,
)
from tests.deploy.served import Script, alone, make_service, running
from tests.generate.folder import make_folder

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_folder(tmp_path_factory.mktemp("routes") / "tiny", template=TEMPLATE, block_size=2048)
    return make_service(InferenceModel.load(folder, "cpu", "32-true"), keys=["s3cret"])


@pytest.fixture(scope="module")
def clients(service: Any) -> Iterator[SimpleNamespace]:
    with (
        running(service) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="s3cret", max_retries=0) as ours,
        anthropic.Anthropic(base_url=url, api_key="s3cret", max_retries=0) as theirs,
    ):
        yield SimpleNamespace(openai=ours, anthropic=theirs, url=url)


def by_each_route(clients: SimpleNamespace, messages: list[dict[str, Any]], tools: bool = False) -> dict[str, Any]:
    """The answers to a conversation, whole and streamed, as each client has it in the end."""
    chat = dict(model="tiny", messages=messages, max_tokens=12) | ({"tools": CHAT_TOOLS} if tools else {})
    asked = dict(model="tiny", max_tokens=12, **as_anthropic(messages)) | ({"tools": ANTHROPIC_TOOLS} if tools else {})
    items = dict(model="tiny", max_output_tokens=12, **as_items(messages))
    items |= {"tools": RESPONSES_TOOLS} if tools else {}
    found = {
        "chat": of_chat(clients.openai.chat.completions.create(**chat).choices[0]),
        "chat, streamed": of_chunks(clients.openai.chat.completions.create(stream=True, **chat)),
    }
    message = clients.anthropic.messages.create(**asked)
    with clients.anthropic.messages.stream(**asked) as stream:
        streamed = stream.get_final_message()
    found |= {"messages": of_message(message), "messages, streamed": of_message(streamed)}
    assert [block.type for block in streamed.content] == [block.type for block in message.content]
    assert streamed.usage == message.usage and streamed.stop_reason == message.stop_reason
    response = clients.openai.responses.create(**items)
    *_, last = clients.openai.responses.create(stream=True, **items)
    found |= {"responses": of_response(response), "responses, streamed": of_response(last.response)}
    assert [item.type for item in last.response.output] == [item.type for item in response.output]
    assert last.response.usage == response.usage and last.response.status == response.status
    return found


WORDS = st.text(st.sampled_from("ab é\n<{:日"), min_size=1, max_size=12)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "%s"}}\n</tool_call>'
PIECES = st.sampled_from([CALL % "Paris", CALL % "Rome", "Sunny.", " <", "\n", "</think>", "<tool_call>", "é日"])
THOUGHTS = st.sampled_from(["", "<think>\nHm.\n\nSo.\n</think>\n\n", "\n<think></think>", "<think>Cut", "<thin"])


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Conversations as OpenAI's chat API has them, which end where an answer is due."""
    found: list[dict[str, Any]] = [{"role": "system", "content": draw(WORDS)}] if draw(st.booleans()) else []
    for turn in range(draw(st.integers(0, 2))):
        found.append({"role": "user", "content": draw(WORDS)})
        cities = draw(st.lists(st.sampled_from(["Paris", "Rome"]), max_size=2))
        answer: dict[str, Any] = {"role": "assistant", "content": draw(WORDS if not cities else WORDS | st.just(""))}
        if draw(st.booleans()):
            answer["reasoning_content"] = draw(WORDS)
        calls = [
            {
                "id": f"call{turn}{at}",
                "type": "function",
                "function": {"name": "weather", "arguments": json.dumps({"city": city})},
            }
            for at, city in enumerate(cities)
        ]
        found.append(answer | ({"tool_calls": calls} if calls else {}))
        found += [{"role": "tool", "tool_call_id": call["id"], "content": draw(WORDS)} for call in calls]
    return [*found, {"role": "user", "content": draw(WORDS)}]


@pytest.mark.parametrize("examples", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_one_conversation_is_one_prompt_and_one_answer_whole_or_streamed(service, clients, examples):
    asked: list[list[int]] = []

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(conversations(), st.booleans(), THOUGHTS, st.lists(PIECES, max_size=4), st.integers(1, 9))
    def each(messages, tools, thought, pieces, size):
        async def script(tasks):
            asked.append(tasks[0].prompt)
            return Script(thought + "".join(pieces), size)

        service.backend.open = script
        asked.clear()
        found = by_each_route(clients, messages, tools)
        assert len(asked) == 6 and all(prompt == asked[0] for prompt in asked)
        assert all(answer == found["chat"] for answer in found.values()), found

    real = service.backend.open
    try:
        each()
    finally:
        service.backend.open = real


def test_a_model_says_the_same_by_each_route(clients, service):
    found = by_each_route(clients, [{"role": "user", "content": "Hi"}])
    assert set(map(str, found.values())) == {str((alone(service.base.inference_model, "Hi", 12), "", []))}


def test_counts_are_those_of_the_prompt(clients, service):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Paris?"}]
    counted = clients.anthropic.messages.count_tokens(model="tiny", **as_anthropic(messages), tools=ANTHROPIC_TOOLS)
    items = clients.openai.responses.input_tokens.count(model="tiny", **as_items(messages), tools=RESPONSES_TOOLS)
    chat = clients.openai.chat.completions.create(model="tiny", messages=messages, tools=CHAT_TOOLS, max_tokens=1)
    assert counted.input_tokens == items.input_tokens == chat.usage.prompt_tokens


PICTURES = {
    "chat/completions": {"messages": [{"role": "user", "content": [{"type": "%s"}]}]},
    "messages": {"max_tokens": 1, "messages": [{"role": "user", "content": [{"type": "%s"}]}]},
    "messages/count_tokens": {
        "messages": [
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "%s"}]}]}
        ]
    },
    "responses": {"input": [{"role": "user", "content": [{"type": "%s"}]}]},
    "responses/input_tokens": {
        "input": [{"type": "function_call_output", "call_id": "1", "output": [{"type": "%s"}]}],
    },
}


@pytest.mark.parametrize("path", [*PICTURES])
def test_pictures_files_and_audio_are_refused_in_a_sentence(clients, path):
    for kind in ("image", "image_url", "input_image", "document", "file", "input_file", "input_audio", "video_url"):
        body = json.loads(json.dumps({"model": "tiny"} | PICTURES[path]) % kind)
        answer = clients.openai._client.post(f"{clients.url}/v1/{path}", json=body, headers={"x-api-key": "s3cret"})
        told = answer.json()["error"]
        assert answer.status_code == 400 and "pictures, files, audio and video are not read here" in told["message"]
        assert set(told) == ({"type", "message"} if "messages" in path else {"message", "type", "param", "code"})


STREAMS = {
    "chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "completions": {"prompt": "Hi"},
    "messages": {"messages": [{"role": "user", "content": "Hi"}]},
    "responses": {"input": "Hi"},
}


@pytest.mark.parametrize("path", [*STREAMS])
def test_a_stream_says_that_it_is_alive_while_nothing_comes(clients, service, monkeypatch, path):
    class Slow(Script):
        n = 0

        async def change(self) -> None:
            self.n += 1
            if self.n < 4:
                raise TimeoutError  # as a wait does that nothing ended

        def take(self):
            return super().take() if self.n > 3 else []

    async def slow(tasks):
        return Slow("Hay.")

    monkeypatch.setattr(answering, "KEEP_ALIVE_SECONDS", 1e-3)
    monkeypatch.setattr(service.backend, "open", slow)
    limit = "max_output_tokens" if path == "responses" else "max_tokens"
    body = {"model": "tiny", "stream": True, limit: 9, **STREAMS[path]}
    answer = clients.openai._client.post(f"{clients.url}/v1/{path}", json=body, headers={"x-api-key": "s3cret"})
    assert answer.status_code == 200 and "Hay." in answer.text
    sign = 'event: ping\ndata: {"type":"ping"}\n\n' if path == "messages" else ": keep-alive\n\n"
    assert answer.text.count(sign) == 3
    by_each_route(clients, [{"role": "user", "content": "Hi"}])  # the clients read over it


def test_a_server_describes_itself_truly(clients):
    described = clients.openai._client.get(f"{clients.url}/openapi.json").json()
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses"):
        answers = described["paths"][path]["post"]["responses"]
        assert set(answers) == {"200", "4XX", "5XX"} and set(answers["200"]["content"]) == {
            "application/json",
            "text/event-stream",
        }
        shape = answers["4XX"]["content"]["application/json"]["schema"]["$ref"]
        assert shape.endswith("/AnthropicErrorAnswer" if path == "/v1/messages" else "/ErrorAnswer")

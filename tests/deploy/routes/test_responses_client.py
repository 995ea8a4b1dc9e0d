"""The responses of the official `openai` client, as it comes, against a small model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from litgpt.deploy import stored_responses
from litgpt.deploy.protocol.errors import APIError
from litgpt.deploy.protocol.schemas import ChatMessage
from litgpt.deploy.stored_responses import StoredResponses
from litgpt.engine.inference_model import InferenceModel
from tests.deploy.routes.conversations import RESPONSES_TOOLS, TEMPLATE
from tests.deploy.served import Script, alone, make_service, running
from tests.generate.folder import make_folder

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_folder(tmp_path_factory.mktemp("responses") / "tiny", template=TEMPLATE, block_size=512)
    return make_service(InferenceModel.load(folder, "cpu", "32-true"))


@pytest.fixture(scope="module")
def client(service: Any) -> Iterator[Any]:
    with running(service) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        yield client


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
ANSWER = f"<think>\nHm.\n</think>\n\nLet me see.{CALL}"


@pytest.fixture
def prompts(service: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that are asked, as texts; each is answered with a thought, a text and a call."""
    found: list[str] = []

    async def script(tasks: Any) -> Script:
        found.append(service.base.inference_model.tokenizer.decode(tasks[0].prompt, skip_special_tokens=False))
        return Script(ANSWER)

    monkeypatch.setattr(service.backend, "open", script)
    return found


def ask(client: Any, given: Any = "Hi", **settings: Any) -> Any:
    return client.responses.create(**{"model": "tiny", "input": given, "max_output_tokens": 12, **settings})


def test_a_response_has_text_usage_and_a_status(client, service):
    response = ask(client)
    assert response.output_text == alone(service.base.inference_model, "Hi", 12)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output[0].status == "incomplete"
    assert response.usage.input_tokens == len(service.base.inference_model.encode("Hi"))
    assert response.usage.output_tokens == 12 == response.usage.total_tokens - response.usage.input_tokens
    assert response.id.startswith("resp_") and response.temperature == 0 and response.model == "tiny"


def test_a_stream_has_typed_events_numbered_in_their_order(client, prompts):
    events = list(ask(client, stream=True, tools=RESPONSES_TOOLS))
    assert [event.sequence_number for event in events] == [*range(len(events))]
    kinds = [event.type.removeprefix("response.") for event in events]
    kinds = [kind for at, kind in enumerate(kinds) if at == 0 or kind != kinds[at - 1]]
    thought, said = (
        ["output_item.added", "content_part.added", f"{kind}.delta", f"{kind}.done", "content_part.done"]
        for kind in ("reasoning_text", "output_text")
    )
    done = ["output_item.done"]
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done"]
    assert kinds == ["created", "in_progress", *thought, *done, *said, *done, *call, *done, "completed"]
    done_items = [event.item for event in events if event.type == "response.output_item.done"]
    assert done_items == events[-1].response.output
    assert [item.type for item in done_items] == ["reasoning", "message", "function_call"]
    with client.responses.stream(model="tiny", input="Hi", tools=RESPONSES_TOOLS) as stream:
        assert [event.type for event in stream][-1] == "response.completed"
        assert stream.get_final_response().output_text == "Let me see."


def test_a_conversation_goes_on_by_the_last_ones_id_as_if_it_were_sent_whole(client, prompts):
    settings = {"tools": RESPONSES_TOOLS}
    first = ask(client, "Paris?", instructions="Be brief.", **settings)
    result = {"type": "function_call_output", "call_id": first.output[-1].call_id, "output": "Sunny."}
    ask(client, [result], previous_response_id=first.id, instructions="Be kind.", **settings)
    whole = [{"role": "user", "content": "Paris?"}, *first.output, result]
    ask(client, whole, instructions="Be kind.", **settings)
    assert prompts[1] == prompts[2] and "Be kind." in prompts[1] and "Be brief." not in prompts[1]
    assert "<think>Hm.</think>Let me see.<call" in prompts[1]
    streamed = [*ask(client, "Rome?", stream=True, previous_response_id=first.id)][-1].response
    ask(client, "And?", previous_response_id=streamed.id)
    assert "Rome?" in prompts[-1] and "Paris?" in prompts[-1]


def test_responses_are_kept_unless_asked_not_to(client, prompts):
    kept, not_kept = ask(client), ask(client, store=False)
    assert (kept.store, not_kept.store) == (True, False)
    assert client.responses.retrieve(kept.id).output == kept.output
    client.responses.delete(kept.id)
    for name in (kept.id, not_kept.id, "resp_none"):
        with pytest.raises(openai.NotFoundError, match="send the whole conversation"):
            client.responses.retrieve(name)
        with pytest.raises(openai.NotFoundError) as failure:
            ask(client, previous_response_id=name)
        assert failure.value.param == "previous_response_id"


def test_what_is_kept_is_bounded(monkeypatch):
    message = ChatMessage(role="user", content="h" * 1000)
    monkeypatch.setattr(stored_responses, "MOST", 3)
    stored = StoredResponses()
    for at in range(4):
        stored.add({"id": str(at)}, [message])
        stored.get("0" if at < 3 else "3")
    assert stored.get("0") and stored.get("3")  # of four the one that was used longest ago is gone
    with pytest.raises(APIError):
        stored.get("1")
    monkeypatch.setattr(stored_responses, "MOST_CHARACTERS", 2500)
    stored.add({"id": "4"}, [message])
    stored.delete("4")
    assert stored.get("3") and stored._characters < 1100


def test_a_schema_is_kept_and_parsed(client):
    pytest.importorskip("llguidance")

    class Answer(BaseModel):
        colour: Literal["red", "green"]

    parsed = client.responses.parse(model="tiny", input="Hi", text_format=Answer, max_output_tokens=60)
    assert parsed.output_parsed.colour in ("red", "green") and parsed.text.format.type == "json_schema"
    mode = ask(client, text={"format": {"type": "json_object"}}, max_output_tokens=200)
    assert mode.output_text.startswith("{")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_a_call_that_is_asked_for_comes(client, choice):
    pytest.importorskip("llguidance")
    (call,) = ask(client, tools=RESPONSES_TOOLS, tool_choice=choice, max_output_tokens=300).output
    assert call.type == "function_call" and json.loads(call.arguments)["city"] in ("Paris", "Rome")


@pytest.mark.parametrize(
    ("settings", "param", "words"),
    [
        (dict(model="other"), "model", "There is no model 'other'"),
        (dict(given=[]), "input", "at least one item"),
        (dict(given="hay " * 600), "input", "the context only"),
        (dict(given=[{"type": "item_reference", "id": "x"}]), "input[0]", "none of message, function_call"),
        (dict(given=[{"role": "user", "content": [{"type": "input_text"}]}]), "input[0].content[0].text", "missing"),
        (dict(temperature=-1), "temperature", "temperature is -1"),
        (
            dict(text={"format": {"type": "json_schema", "name": "n", "schema": {"$ref": "#"}}}),
            "text.format",
            "no text",
        ),
        (dict(text={"verbosity": "low"}), "text.verbosity", "no field `text.verbosity`"),
        (dict(tools=[{"type": "web_search"}]), "tools[0].type", "input should be 'function'"),
        (dict(tool_choice="required"), "tool_choice", "there are no tools"),
        (dict(tool_choice={"type": "function", "name": "x"}, tools=RESPONSES_TOOLS), "tool_choice", "no tool 'x'"),
        (dict(reasoning={"effort": "high", "summary": "detailed"}), "reasoning.summary", "should be 'auto'"),
        (dict(background=True), "background", "input should be False"),
        (dict(truncation="auto"), "truncation", "input should be 'disabled'"),
        (dict(include=["message.output_text.logprobs"]), "include[0]", "reasoning.encrypted_content"),
        (dict(max_tool_calls=2), "max_tool_calls", "There is no field `max_tool_calls`"),
        (dict(conversation="c"), "conversation", "There is no field `conversation`"),
        (dict(prompt={"id": "p"}), "prompt", "There is no field `prompt`"),
        (dict(top_logprobs=3), "top_logprobs", "There is no field `top_logprobs`"),
        (dict(extra_body={"n": 2}), "n", "There is no field `n`"),
    ],
)
def test_a_mistake_has_openais_shape_and_names_the_field(client, settings, param, words):
    with pytest.raises(openai.APIStatusError) as failure:
        ask(client, **settings)
    told = failure.value.response.json()["error"]
    assert failure.value.status_code in (400, 404) and set(told) == {"message", "type", "param", "code"}
    assert told["param"] == param and words in told["message"]


def test_effort_turns_thinking_off(client, prompts):
    ask(client, reasoning={"effort": "none"})
    ask(client, reasoning={"effort": "high"})
    assert [prompt.endswith("</think>\n\n") for prompt in prompts] == [True, False]


def test_a_failing_step_ends_a_stream_with_a_failed_response(client, service, monkeypatch, caplog):
    def fail(*arguments: Any, **settings: Any) -> Any:
        raise RuntimeError("the reason")

    with monkeypatch.context() as patched:
        patched.setattr(service.base.inference_model.model, "hidden", fail)
        last = list(ask(client, stream=True))[-1]
    assert last.type == "response.failed" and "log says why" in last.response.error.message
    caplog.clear()
    assert ask(client).output_text

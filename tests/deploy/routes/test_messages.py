"""The official `anthropic` client, as it comes, against a small model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from litgpt.engine.inference_model import InferenceModel
from tests.deploy.routes.conversations import ANTHROPIC_TOOLS, TEMPLATE
from tests.deploy.served import Script, alone, make_service, running
from tests.generate.folder import make_folder

anthropic = pytest.importorskip("anthropic")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_folder(tmp_path_factory.mktemp("messages") / "tiny", template=TEMPLATE, block_size=512)
    return make_service(InferenceModel.load(folder, "cpu", "32-true"), keys=["s3cret"])


@pytest.fixture(scope="module")
def url(service: Any) -> Iterator[str]:
    with running(service) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=url, api_key="s3cret", max_retries=0) as client:
        yield client


@pytest.fixture
def prompts(service: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that are asked, as texts; each is answered with `Hay.`."""
    found: list[str] = []

    async def script(tasks: Any) -> Script:
        found.append(service.base.inference_model.tokenizer.decode(tasks[0].prompt, skip_special_tokens=False))
        return Script("Hay.")

    monkeypatch.setattr(service.backend, "open", script)
    return found


def ask(client: Any, content: Any = "Hi", **settings: Any) -> Any:
    asked = {"model": "tiny", "max_tokens": 12, "messages": [{"role": "user", "content": content}], **settings}
    return client.messages.create(**asked)


def test_a_message_has_usage_and_the_reason_it_ended(client, service):
    message = ask(client)
    assert message.content[0].text == alone(service.base.inference_model, "Hi", 12)
    assert (message.type, message.role, message.model, message.stop_reason) == (
        "message",
        "assistant",
        "tiny",
        "max_tokens",
    )
    n = len(service.base.inference_model.encode("Hi"))
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == n
    assert message.usage.output_tokens == 12 and message.id.startswith("msg_") and message._request_id in message.id


def test_a_context_that_is_full_is_another_reason_than_the_limit(client):
    message = ask(client, "h" * 450, max_tokens=10_000, extra_body={"ignore_eos": True})
    assert message.stop_reason == "model_context_window_exceeded" and message.usage.output_tokens < 512


def test_the_stop_sequence_is_named(client, service):
    whole = alone(service.base.inference_model, "Hi", 40)
    stop = whole[7:10]
    message = ask(client, max_tokens=40, stop_sequences=["never said", stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert message.content[0].text == whole[: whole.index(stop)]


def test_a_stream_has_anthropics_events_in_their_order(client, service):
    with client.messages.stream(model="tiny", max_tokens=12, messages=[{"role": "user", "content": "Hi"}]) as stream:
        kinds = [event.type for event in stream if event.type != "text"]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


def test_blocks_come_in_the_order_of_the_answer(client, service, monkeypatch):
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'

    async def script(tasks: Any) -> Script:
        return Script(f"<think>\nHm.\n</think>\n\nLet me see.{call}And.{call}", 3)

    monkeypatch.setattr(service.backend, "open", script)
    message = ask(client, tools=ANTHROPIC_TOOLS)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "text", "tool_use"]
    assert message.stop_reason == "tool_use" and message.content[2].input == {"city": "Paris"}
    assert message.content[0].thinking == "Hm." and message.content[0].signature
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    alone_ = ask(client, tools=ANTHROPIC_TOOLS, tool_choice=choice)
    assert [block.type for block in alone_.content] == ["thinking", "text", "tool_use", "text"]
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": message.content}]
    history.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": message.content[2].id}]})
    assert ask(client, messages=history, tools=ANTHROPIC_TOOLS).content  # what the client got goes back as it is


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_call_that_is_asked_for_comes(client, choice):
    pytest.importorskip("llguidance")
    message = ask(client, tools=ANTHROPIC_TOOLS, tool_choice=choice, max_tokens=300)
    assert [block.type for block in message.content] == ["tool_use"] and message.stop_reason == "tool_use"
    assert message.content[0].name == "weather" and message.content[0].input["city"] in ("Paris", "Rome")


def test_a_json_schema_is_kept(client):
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    message = ask(client, max_tokens=300, output_config={"format": {"type": "json_schema", "schema": schema}})
    assert json.loads(message.content[0].text) in ({"a": "x"}, {"a": "y"})


def test_system_prompts_and_results_reach_the_template(client, prompts):
    blocks = [
        {"type": "text", "text": "Be ", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "brief."},
    ]
    called = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}}
    for system in ("Be brief.", blocks):
        for content in ("No such city.", [{"type": "text", "text": "No such city."}]):
            result = {"type": "tool_result", "tool_use_id": "t1", "content": content, "is_error": True}
            messages = [
                {"role": "user", "content": "Rome?"},
                {"role": "assistant", "content": [called]},
                {"role": "user", "content": [result, {"type": "text", "text": "Well?"}]},
            ]
            ask(client, messages=messages, system=system)
    assert len(set(prompts)) == 1 and prompts[0] == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nRome?<|im_end|>\n<|im_start|>assistant\n"
        '<call t1 weather {"city": "Rome"}><|im_end|>\n<|im_start|>tool t1\nError: No such city.<|im_end|>\n'
        "<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_thinking_is_turned_off_and_on_where_the_template_can(client, prompts):
    answers = [ask(client, thinking={"type": kind}) for kind in ("disabled", "adaptive")]
    budgeted = ask(client, thinking={"type": "enabled", "budget_tokens": 1024})
    assert [prompt.endswith("<think>\n\n</think>\n\n") for prompt in prompts] == [True, False, False]
    assert not any(hasattr(answer, "warnings") for answer in answers)
    assert "budget_tokens doesn't bound" in budgeted.warnings[0]


@pytest.mark.parametrize(
    ("template", "kind", "words"),
    [
        (TEMPLATE.replace("enable_thinking", "other").replace("think>", "t>"), "enabled", "no thinking to turn on"),
        (TEMPLATE.replace("enable_thinking", "other"), "disabled", "can't turn its thinking off"),
    ],
)
def test_thinking_that_the_template_has_no_switch_for_is_named(tmp_path, template, kind, words):
    folder = make_folder(tmp_path / "tiny", template=template)
    service = make_service(InferenceModel.load(folder, "cpu", "32-true"))
    with running(service) as url, anthropic.Anthropic(base_url=url, api_key="-", max_retries=0) as client:
        thinking = {"type": kind} | ({"budget_tokens": 1024} if kind == "enabled" else {})
        assert words in ask(client, thinking=thinking, max_tokens=1).warnings[0]


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("settings", "error", "kind", "words"),
    [
        (dict(model="other"), "NotFoundError", "not_found_error", "There is no model 'other'"),
        (dict(max_tokens=0), "BadRequestError", None, "greater than or equal to 1"),
        (dict(messages=[]), "BadRequestError", None, "at least 1"),
        (dict(messages=[{"role": "wizard", "content": "Hi"}]), "BadRequestError", None, "messages[0].role"),
        (dict(messages=[{**USER, "content": [{"type": "txt"}]}]), "BadRequestError", None, "its type is none of text"),
        (
            dict(messages=[{**USER, "content": [{"type": "text"}]}]),
            "BadRequestError",
            None,
            "`messages[0].content[0].text`",
        ),
        (dict(messages=[USER, {"role": "assistant", "content": "H"}]), "BadRequestError", None, "going on with it"),
        (
            dict(messages=[{**USER, "content": [{"type": "thinking", "thinking": "", "signature": ""}]}]),
            "BadRequestError",
            None,
            "messages[0] is the user's and has a block of the type thinking",
        ),
        (dict(messages=[{**USER, "content": "hay " * 600}]), "BadRequestError", None, "the context only"),
        (dict(extra_body={"temperature": -1}), "BadRequestError", None, "temperature is -1"),
        (dict(extra_body={"container": "c"}), "BadRequestError", None, "There is no field `container`"),
        (dict(extra_body={"mcp_servers": []}), "BadRequestError", None, "There is no field `mcp_servers`"),
        (
            dict(tools=[{"type": "web_search_20250305", "name": "web_search"}]),
            "BadRequestError",
            None,
            "`tools[0].type` is of the wrong kind: input should be 'custom'",
        ),
        (dict(tool_choice={"type": "any"}), "BadRequestError", None, "there are no tools"),
        (dict(tool_choice={"type": "any", "name": "a"}), "BadRequestError", None, "names a tool where its type"),
        (dict(stop_sequences=[""]), "BadRequestError", None, "empty"),
    ],
)
def test_a_mistake_has_anthropics_shape(client, settings, error, kind, words):
    with pytest.raises(anthropic.APIStatusError) as failure:
        ask(client, **settings)
    assert type(failure.value).__name__ == error
    told = failure.value.response.json()
    assert set(told) == {"type", "error"} and told["type"] == "error"
    assert set(told["error"]) == {"type", "message"} and words in told["error"]["message"]
    assert told["error"]["type"] == kind or (kind is None and told["error"]["type"] == "invalid_request_error")


def test_a_key_may_come_in_either_header(url):
    for keys in ({"api_key": "s3cret"}, {"auth_token": "s3cret"}):
        with anthropic.Anthropic(base_url=url, max_retries=0, **keys) as client:
            assert ask(client, max_tokens=1).content
    for keys in ({"api_key": "wrong"}, {"auth_token": "wrong"}):
        with (
            anthropic.Anthropic(base_url=url, max_retries=0, **keys) as client,
            pytest.raises(anthropic.AuthenticationError) as failure,
        ):
            ask(client)
        assert failure.value.response.json()["error"]["type"] == "authentication_error"
    both = {"x-api-key": "s3cret", "authorization": "Bearer of-a-proxy"}
    body = {"model": "tiny", "messages": [USER]}
    assert httpx.post(f"{url}/v1/messages/count_tokens", json=body, headers=both).status_code == 200


def test_a_failing_step_is_an_error_of_either_kind(client, service, monkeypatch, caplog):
    async def fail(*arguments: Any, **settings: Any) -> Any:
        raise RuntimeError("the reason")

    def fail_at_once(*arguments: Any, **settings: Any) -> Any:
        raise RuntimeError("the reason")

    with monkeypatch.context() as patched:
        patched.setattr(service.backend, "open", fail)
        with pytest.raises(anthropic.InternalServerError) as failure:
            ask(client)
        assert failure.value.response.json()["error"]["type"] == "api_error"
    with monkeypatch.context() as patched:
        patched.setattr(service.base.inference_model.model, "hidden", fail_at_once)
        with pytest.raises(anthropic.APIStatusError, match="log says why"):
            list(ask(client, stream=True))
    caplog.clear()
    assert ask(client).content


def test_models_are_listed_for_both_kinds_of_client(client):
    (model,) = client.models.list()
    assert (model.id, model.type, model.display_name) == ("tiny", "model", "tiny") and model.created_at.year >= 2024


def test_a_body_of_another_kind_is_told(url):
    for content in (b"[]", b"{oops", b'{"model": "tiny"}'):
        headers = {"x-api-key": "s3cret", "content-type": "application/json"}
        answer = httpx.post(f"{url}/v1/messages", content=content, headers=headers)
        assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error"

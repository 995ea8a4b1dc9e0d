"""The official `openai` client, as it comes, against a small model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from litgpt.deploy.service import Service
from litgpt.engine.inference_model import InferenceModel
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError
from tests.deploy.served import GREEDY, alone, make_service, running
from tests.generate.folder import make_folder

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def inference_model(tmp_path_factory: pytest.TempPathFactory) -> InferenceModel:
    folder: Path = make_folder(tmp_path_factory.mktemp("serve") / "tiny", block_size=512)
    return InferenceModel.load(folder, "cpu", "32-true")


@pytest.fixture(scope="module")
def service(inference_model) -> Service:
    return make_service(inference_model, keys=["s3cret"])


@pytest.fixture(scope="module")
def client(service) -> Iterator[openai.OpenAI]:
    with running(service) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="s3cret", max_retries=0) as client:
        yield client


HI = [{"role": "user", "content": "Hi"}]


def chat(client, messages=HI, max_tokens: int | None = 12, **settings):
    return client.chat.completions.create(model="tiny", messages=messages, max_tokens=max_tokens, **settings)


def streamed(client, n: int = 1, **settings) -> tuple[list[str], list]:
    chunks = list(chat(client, stream=True, n=n, **settings))
    texts = [""] * n
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    return texts, chunks


def test_chat_answers_with_usage_and_the_reason_it_ended(client, inference_model):
    answer = chat(client)
    assert answer.choices[0].message.content == alone(inference_model, "Hi", 12)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(inference_model.encode("Hi")), 12)
    assert usage.total_tokens == usage.prompt_tokens + 12
    assert answer.model == "tiny" and answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"


def test_a_stream_is_the_same_text_under_one_id(client, inference_model):
    texts, chunks = streamed(client)
    assert texts == [alone(inference_model, "Hi", 12)]
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_usage_where_it_is_asked_for(client):
    _, chunks = streamed(client, stream_options={"include_usage": True})
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer(client, inference_model, stream):
    whole = alone(inference_model, "Hi", 40)
    stop = whole[7:10]
    if stream:
        texts, chunks = streamed(client, max_tokens=40, stop=stop)
        assert texts == [whole[: whole.index(stop)]]
        assert chunks[-1].choices[0].finish_reason == "stop"
    else:
        choice = chat(client, max_tokens=40, stop=["never said", stop]).choices[0]
        assert (choice.message.content, choice.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_a_seed_makes_an_answer_repeatable(client, inference_model):
    first, second = (chat(client, temperature=1.5, seed=7).choices[0].message.content for _ in range(2))
    assert first == second == alone(inference_model, "Hi", 12, Sampling(temperature=1.5, seed=7))
    assert chat(client, temperature=1.5, seed=-8).choices[0].message.content != first


def test_several_answers_each_have_a_draw_and_an_end_of_their_own(client, inference_model):
    def expected(seed: int, n: int = 200) -> str:
        return alone(inference_model, "Hi", n, Sampling(temperature=1.5, seed=seed))

    answer = chat(client, max_tokens=200, temperature=1.5, seed=3, n=3)
    assert [choice.message.content for choice in answer.choices] == [expected(3), expected(4), expected(5)]
    assert answer.usage.prompt_tokens == len(inference_model.encode("Hi"))
    texts, _ = streamed(client, n=3, max_tokens=200, temperature=1.5, seed=3)
    assert texts == [expected(3), expected(4), expected(5)]
    assert len({len(text) for text in texts}) > 1


def test_temperature_zero_is_greedy_and_no_limit_is_the_room_left(client, inference_model):
    answer = chat(client, max_tokens=None, temperature=0)
    assert answer.choices[0].message.content == alone(inference_model, "Hi", None)
    assert answer.usage.total_tokens == 513 or answer.choices[0].finish_reason == "stop"


def test_max_completion_tokens_comes_first(client):
    answer = chat(client, max_tokens=9, max_completion_tokens=4)
    assert answer.usage.completion_tokens == 4


def test_logprobs_are_those_of_the_tokens(client, inference_model):
    answer = chat(client, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == 12 and all(len(entry.top_logprobs) == 3 for entry in content)
    assert all(entry.token == entry.top_logprobs[0].token and entry.logprob <= 0 for entry in content)
    _, chunks = streamed(client, logprobs=True, top_logprobs=3)
    entries = [e for chunk in chunks if chunk.choices[0].logprobs for e in chunk.choices[0].logprobs.content]
    assert entries == content


def test_logprobs_end_where_a_stop_string_cuts_the_text(client, inference_model):
    whole = alone(inference_model, "Hi", 40)
    stop = whole[7:10]
    choice = chat(client, max_tokens=40, stop=stop, logprobs=True).choices[0]
    said = bytes(byte for entry in choice.logprobs.content for byte in entry.bytes)
    content = choice.message.content.encode()
    assert said.startswith(content) and len(said) < len(content) + 8


def test_logprobs_of_half_characters_have_their_bytes(client, inference_model):
    tokens = inference_model.tokenizer.encode_ids("日")
    assert len(tokens) == 3
    biases = {str(token): 100 for token in tokens}
    answer = chat(client, max_tokens=6, temperature=1.0, seed=1, logprobs=True, top_logprobs=20, logit_bias=biases)
    content = answer.choices[0].logprobs.content
    whole = b"".join(map(bytes, (entry.bytes for entry in content)))
    assert whole.decode("utf-8", "replace") == answer.choices[0].message.content
    assert {entry.token for entry in content} <= {rf"bytes:\x{byte:02x}" for byte in "日".encode()}
    assert all(len({top.token for top in entry.top_logprobs}) == 20 for entry in content)


def test_a_bias_bans_or_forces_a_token(client, inference_model):
    token = inference_model.tokenizer.encode_ids("Z")[0]
    assert chat(client, max_tokens=5, logit_bias={str(token): 100}).choices[0].message.content == "ZZZZZ"
    first = inference_model.reply(inference_model.engine(), inference_model.encode("Hi"), GREEDY, 1).request.result()[0]
    banned = chat(client, max_tokens=1, logit_bias={str(first): -100}).choices[0].message.content
    assert banned != inference_model.tokenizer.decode([first])


def test_penalties_change_the_answer(client, inference_model):
    expected = alone(inference_model, "Hi", 60, Sampling(temperature=0, frequency_penalty=2.0, presence_penalty=1.0))
    answer = chat(client, max_tokens=60, frequency_penalty=2.0, presence_penalty=1.0)
    assert answer.choices[0].message.content == expected != alone(inference_model, "Hi", 60)


def test_a_json_schema_is_kept(client):
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Ada", "Bob"]}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": True}}
    for seed in range(3):
        answer = chat(client, max_tokens=200, temperature=1.0, seed=seed, response_format=wanted)
        person = json.loads(answer.choices[0].message.content)
        assert person["name"] in ("Ada", "Bob") and 1 <= person["age"] <= 99
        assert answer.choices[0].finish_reason == "stop"


def test_parse_returns_an_object(client):
    pytest.importorskip("llguidance")
    from typing import Literal

    from pydantic import BaseModel

    class Answer(BaseModel):
        colour: Literal["red", "green"]

    parsed = client.chat.completions.parse(model="tiny", messages=HI, response_format=Answer, max_tokens=60)
    assert parsed.choices[0].message.parsed.colour in ("red", "green")


def test_json_mode_gives_an_object(client):
    pytest.importorskip("llguidance")
    wanted = {"type": "json_object"}
    bias = {}
    answer = chat(client, max_tokens=400, temperature=1.0, seed=1, response_format=wanted, logit_bias=bias)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    else:
        assert answer.choices[0].message.content.startswith("{")


def schema(content: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "n", "schema": content}}


@pytest.mark.parametrize(
    ("settings", "error", "param", "words"),
    [
        (dict(model="other"), "NotFoundError", "model", "There is no model 'other'"),
        (dict(temperature=-1), "BadRequestError", "temperature", "temperature is -1"),
        (dict(temperature="hot"), "BadRequestError", "temperature", "The field `temperature` is of the wrong kind"),
        (dict(top_p=7), "BadRequestError", "top_p", "top_p is 7"),
        (dict(n=0), "BadRequestError", "n", "greater than or equal to 1"),
        (dict(n=99), "BadRequestError", "n", "at most 16"),
        (dict(max_tokens=0), "BadRequestError", "max_tokens", "greater than or equal to 1"),
        (dict(stop=[str(i) for i in range(17)]), "BadRequestError", "stop", "at most 16"),
        (dict(stop=""), "BadRequestError", "stop", "empty"),
        (dict(messages=[]), "BadRequestError", "messages", "at least 1"),
        (dict(messages=[{"role": "wizard", "content": "Hi"}]), "BadRequestError", "messages[0].role", "system"),
        (dict(messages=[{"role": "user"}]), "BadRequestError", "messages[0].content", "no content"),
        (dict(messages=[{"role": "user", "content": "hay " * 600}]), "BadRequestError", "messages", "the context only"),
        (dict(messages=[{"role": "user", "content": "h" * 40_000}]), "BadRequestError", "messages", "more than 32768"),
        (
            dict(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            "BadRequestError",
            "messages[0].content[0]",
            "pictures, files, audio and video are not read here; send text",
        ),
        (
            dict(response_format=schema({"type": "objekt"})),
            "BadRequestError",
            "response_format",
            "Invalid type: objekt",
        ),
        (dict(response_format=schema({"$ref": "#"})), "BadRequestError", "response_format", "no text could ever keep"),
        (
            dict(response_format=schema({"type": "string", "pattern": "(?!a)b"})),
            "BadRequestError",
            "response_format",
            "look-around",
        ),
        (
            dict(response_format=schema({"enum": ["x" * 130_000]})),
            "BadRequestError",
            "response_format",
            "at most 120000",
        ),
        (dict(top_logprobs=3), "BadRequestError", "top_logprobs", "needs logprobs"),
        (dict(logprobs=True, top_logprobs=30), "BadRequestError", "top_logprobs", "less than or equal to 20"),
        (dict(logit_bias={"a": 1}), "BadRequestError", "logit_bias", "token ids"),
        (dict(logit_bias={"99999": 1}), "BadRequestError", "logit_bias", "outside 0 ... 319"),
        (dict(stream_options={"include_usage": True}), "BadRequestError", "stream_options", "needs stream"),
        (dict(response_format={"type": "yaml"}), "BadRequestError", "response_format", "'json_schema'"),
        (dict(extra_body={"best_of": 3}), "BadRequestError", "best_of", "There is no field `best_of`"),
        (dict(tool_choice="required"), "BadRequestError", "tool_choice", "there are no tools"),
        (
            dict(tools=[{"type": "function", "function": {"name": "f"}}]),
            "BadRequestError",
            "tools",
            "no place for tools",
        ),
        (dict(extra_body={"chat_template_kwargs": {"messages": []}}), "BadRequestError", None, "no place for messages"),
    ],
)
def test_a_mistake_has_openais_shape_and_names_the_field(client, settings, error, param, words):
    try:
        client.chat.completions.create(**{"model": "tiny", "messages": HI, "max_tokens": 4, **settings})
    except openai.APIStatusError as failure:
        assert type(failure).__name__ == error
        told = failure.response.json()["error"]
        assert set(told) == {"message", "type", "param", "code"}
        assert words in told["message"]
        assert param is None or told["param"] == param
    else:
        pytest.fail("the mistake was taken")


def test_an_answer_that_cant_be_held_to_its_grammar_is_the_requests_fault(client, monkeypatch):
    structured = pytest.importorskip("litgpt.engine.structured")

    def refuse(*_):
        raise LitGPTError("The grammar is too complex.")

    monkeypatch.setattr(structured.Match, "restrict", refuse)
    with pytest.raises(openai.UnprocessableEntityError, match="too complex"):
        chat(client, response_format={"type": "json_object"})
    assert chat(client).choices[0].finish_reason == "length"


def test_a_body_that_is_no_object_is_told_what_one_looks_like(client):
    with pytest.raises(openai.BadRequestError, match='a JSON object like {"model": "..."}'):
        client.post("/chat/completions", body=[], cast_to=object)


def test_a_prompt_that_is_too_long_has_openais_code(client):
    with pytest.raises(openai.BadRequestError) as failure:
        chat(client, [{"role": "user", "content": "hay " * 600}])
    assert failure.value.code == "context_length_exceeded"


def test_a_wrong_key_is_an_authentication_error(client):
    with pytest.raises(openai.AuthenticationError):
        chat(client.with_options(api_key="wrong"))


def test_harmless_fields_are_taken(client):
    assert chat(client, user="me", metadata={"a": "b"}, store=False, service_tier="auto").choices


def test_a_field_that_is_null_asks_for_nothing_whether_it_is_known_or_not(client):
    nulls = dict.fromkeys(["functions", "prediction", "verbosity", "tools", "stop", "seed", "stream_options", "n"])
    message = {"role": "user", "content": "Hi", "thinking": None}
    assert chat(client, [message], extra_body=nulls).choices


def test_content_in_parts_is_one_text(client, inference_model):
    parts = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    assert chat(client, [{"role": "user", "content": parts}]).choices[0].message.content == alone(
        inference_model, "Hi", 12
    )


# -- the other endpoints


def raw(inference_model: InferenceModel, text: str, n: int) -> str:
    tokens = inference_model.tokenizer.encode_ids(text)
    return "".join(inference_model.reply(inference_model.engine(), tokens, GREEDY, n))


def test_completions_continue_texts_as_they_are(client, inference_model):
    answer = client.completions.create(model="tiny", prompt=["Once upon", "Llamas"], max_tokens=8, n=2)
    texts = [choice.text for choice in answer.choices]
    assert texts == [raw(inference_model, text, 8) for text in ("Once upon", "Once upon", "Llamas", "Llamas")]
    tokens = inference_model.tokenizer.encode_ids("Once upon")
    assert client.completions.create(model="tiny", prompt=tokens, max_tokens=8).choices[0].text == texts[0]
    chunks = list(client.completions.create(model="tiny", prompt="Once upon", max_tokens=8, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == texts[0]
    assert answer.usage.prompt_tokens == len(tokens) + len(inference_model.tokenizer.encode_ids("Llamas"))


def test_completions_give_prompts_back_with_their_logprobs(client, inference_model):
    answer = client.completions.create(model="tiny", prompt="Once upon", max_tokens=3, echo=True, logprobs=2)
    choice = answer.choices[0]
    assert choice.text == "Once upon" + raw(inference_model, "Once upon", 3)
    n = len(inference_model.tokenizer.encode_ids("Once upon"))
    logprobs = choice.logprobs
    assert logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert len(logprobs.tokens) == n + 3 and "".join(logprobs.tokens) == choice.text
    assert [choice.text[at:].startswith(token) for token, at in zip(logprobs.tokens, logprobs.text_offset, strict=True)]
    alone_ = client.completions.create(model="tiny", prompt="Once upon", max_tokens=0, echo=True, logprobs=2)
    assert alone_.choices[0].logprobs.token_logprobs == logprobs.token_logprobs[:n]


def test_completions_go_on_in_the_middle_of_a_text(stories260k):
    """A vocabulary of pieces drops the space that a text begins with; what goes on with a prompt has it."""
    inference_model = InferenceModel.load(stories260k, "cpu", "32-true")
    prompt = "Once upon a time,"
    with running(make_service(inference_model)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="-") as client:
        ask = dict(model="tiny", prompt=prompt, max_tokens=20)
        text = client.completions.create(**ask).choices[0].text
        streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**ask, stream=True))
        echoed = client.completions.create(**ask, echo=True, logprobs=1).choices[0]
    tokens = inference_model.tokenizer.encode_ids(prompt)
    output = inference_model.engine().submit(tokens, GREEDY, inference_model.stops, 20).result()
    assert prompt + text == echoed.text == inference_model.tokenizer.decode([*tokens, *output])
    assert text == streamed and text.startswith(" there was")
    pairs = list(zip(echoed.logprobs.tokens, echoed.logprobs.text_offset, strict=True))[2:]  # after <s>, and " Once"
    assert [echoed.text[at : at + len(token)] for token, at in pairs] == [token for token, _ in pairs]


def test_the_logprobs_of_a_prompt_are_the_models(client, inference_model):
    import torch

    tokens = inference_model.tokenizer.encode_ids("Once upon a time")
    answer = client.completions.create(model="tiny", prompt=tokens, max_tokens=0, echo=True, logprobs=1)
    with torch.no_grad():
        expected = inference_model.model(torch.tensor([tokens]))[0].log_softmax(-1)
    wanted = [float(expected[at, token]) for at, token in enumerate(tokens[1:])]
    assert answer.choices[0].logprobs.token_logprobs[1:] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_embeddings_are_pooled_hidden_states_of_length_one(inference_model, pooling):
    import torch

    with running(make_service(inference_model, pooling=pooling)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="-")
        answer = client.embeddings.create(model="tiny", input=["Llamas eat hay.", "Paris is a city."])
        floats = client.embeddings.create(model="tiny", input="Paris is a city.", encoding_format="float")
        client.close()
    with torch.no_grad():
        tokens = inference_model.tokenizer.encode_ids("Paris is a city.")
        hidden = inference_model.model.hidden(torch.tensor([tokens]))[0]
    pooled = hidden.mean(0) if pooling == "mean" else hidden[-1]
    expected = (pooled / pooled.norm()).tolist()
    assert floats.data[0].embedding == pytest.approx(expected, abs=1e-5)
    assert answer.data[1].embedding == pytest.approx(expected, abs=1e-5)
    assert [entry.index for entry in answer.data] == [0, 1] and answer.usage.prompt_tokens > len(tokens)


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "litgpt"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")

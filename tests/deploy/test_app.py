"""The routes, over a small model: what they answer, what they refuse, and what becomes of one without a client."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import litgpt
from litgpt.deploy.access import Limits
from litgpt.deploy.app import make_app
from litgpt.deploy.routes.predict import Prediction
from litgpt.engine.inference_model import InferenceModel
from litgpt.engine.sampling import Sampling
from litgpt.errors import LitGPTError
from litgpt.prompts import PromptStyle
from tests.deploy.served import alone, asynchronous, make_service
from tests.generate.folder import make_folder


@pytest.fixture(scope="module")
def inference_model(tmp_path_factory: pytest.TempPathFactory) -> InferenceModel:
    folder: Path = make_folder(tmp_path_factory.mktemp("serve") / "tiny")
    return InferenceModel.load(folder, "cpu", "32-true")


@pytest.fixture
def client(inference_model) -> Iterator[TestClient]:
    with TestClient(make_app(make_service(inference_model))) as client:
        yield client


def test_a_prompt_gets_an_answer(client, inference_model):
    answer = client.post("/predict", json={"prompt": "Hi"})
    assert answer.status_code == 200
    assert answer.json() == {"output": alone(inference_model, "Hi")}


def test_the_body_may_change_the_settings(client, inference_model):
    long = client.post("/predict", json={"prompt": "Hi", "max_new_tokens": 20}).json()["output"]
    assert long == alone(inference_model, "Hi", 20)
    seeded = {"prompt": "Hi", "temperature": 1.5, "top_k": 40, "top_p": 0.9, "seed": 3, "max_new_tokens": 20}
    sampling = Sampling(temperature=1.5, top_k=40, top_p=0.9, seed=3)
    assert client.post("/predict", json=seeded).json()["output"] == alone(inference_model, "Hi", 20, sampling) != long
    stop = long[5:7]
    for stops in (stop, [stop, "never said"]):
        cut = client.post("/predict", json={"prompt": "Hi", "max_new_tokens": 20, "stop": stops}).json()["output"]
        assert cut == long[: long.index(stop)]


def test_null_means_all_tokens_for_top_k_and_the_servers_setting_elsewhere(inference_model):
    served = make_service(inference_model, sampling=Sampling(temperature=1.0, top_k=1))
    with TestClient(make_app(served)) as client:
        one = client.post("/predict", json={"prompt": "Hi", "temperature": None, "seed": 1}).json()["output"]
        free = client.post("/predict", json={"prompt": "Hi", "top_k": None, "seed": 1}).json()["output"]
    assert one == alone(inference_model, "Hi") != free


@pytest.mark.parametrize("style, warns", [("gemma", True), ("llama3", False)])
def test_a_system_prompt_that_the_style_has_no_place_for_is_left_out_with_a_warning(inference_model, style, warns):
    styled = replace(inference_model, style=PromptStyle.from_name(style))
    user = {"role": "user", "content": "Hi"}
    with TestClient(make_app(make_service(styled))) as client:
        answers = [
            client.post("/v1/chat/completions", json={"model": "tiny", "messages": messages, "max_tokens": 2}).json()
            for messages in ([{"role": "developer", "content": "Be brief."}, user], [user])
        ]
    assert [answer.get("warnings", []) != [] for answer in answers] == [warns, False]
    assert not warns or answers[0]["warnings"] == [
        "The prompt style Gemma has no place for a system prompt: it is left out."
    ]


def test_streaming_answers_in_lines(inference_model):
    served = make_service(inference_model, stream=True)
    step = served.base.engine.step
    served.base.engine.step = lambda: (time.sleep(0.05), step())  # tokens that come faster may share a line
    with TestClient(make_app(served)) as client:
        answer = client.post("/predict", json={"prompt": "Hi"})
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert len(lines) > 2 and all(list(line) == ["output"] for line in lines)
        assert "".join(line["output"] for line in lines) == alone(inference_model, "Hi")
        assert client.post("/predict", json={"prompt": "hay " * 200}).status_code == 400
        assert client.post("/predict", json={"promt": "Hi"}).status_code == 422


def test_another_path(inference_model):
    with TestClient(make_app(make_service(inference_model, api_path="/v2/say"))) as client:
        assert client.post("/v2/say", json={"prompt": "Hi"}).status_code == 200
        assert client.post("/predict", json={"prompt": "Hi"}).status_code == 404


def test_health(client):
    assert (client.get("/health").status_code, client.get("/health").text) == (200, "ok")
    assert (client.head("/health").status_code, client.head("/").status_code) == (200, 200)  # what monitors send


@pytest.mark.parametrize(("path", "method"), [("/predict", "POST"), ("/v1/chat/completions", "POST"), ("/", "GET")])
def test_another_method_is_told_which_one_works(client, path, method):
    answer = client.delete(path)
    assert answer.status_code == 405 and answer.headers["allow"] == method
    assert answer.json()["error"]["message"] == "This path takes another method."


def test_the_description_has_the_version(client):
    assert client.get("/openapi.json").json()["info"] == {"title": "litgpt", "version": litgpt.__version__}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{}", 422, "The field `prompt` is missing."),
        (b'{"prompt": 123}', 422, "The field `prompt` is of the wrong kind: input should be a valid string."),
        (b'{"prompt": null}', 422, "The field `prompt` is of the wrong kind"),
        (b'{"prompt": ["a"]}', 422, "The field `prompt` is of the wrong kind"),
        (b'{"prompt": "a", "top_k": "3"}', 422, "The field `top_k` is of the wrong kind"),
        (b'{"prompt": "a", "max_new_tokens": 1.5}', 422, "The field `max_new_tokens` is of the wrong kind"),
        (b'{"prompt": "a", "tempreature": 1}', 422, "There is no field `tempreature`. Closest: temperature."),
        (b'{"prompt": "a", "temperature": -1}', 400, "temperature is -1"),
        (b'{"prompt": "a", "temperature": NaN}', 400, "temperature is nan"),
        (b'{"prompt": "a", "top_p": 7}', 400, "top_p is 7"),
        (b'{"prompt": "a", "seed": -1}', 400, "seed is -1"),
        (b'{"prompt": "a", "max_new_tokens": 0}', 400, "max_new_tokens is 0"),
        (b'{"prompt": "a", "stop": [""]}', 400, "stop string is empty"),
        (b'{"prompt": "\\ud800"}', 400, "half a character"),
        (json.dumps({"prompt": "hay " * 200}).encode(), 400, "the context only 128; shorten the prompt"),
        (b"[]", 422, "The body must be a JSON object"),
        (b'"text"', 422, "The body must be a JSON object"),
        (b"null", 422, "must be|missing"),
        (b"", 422, "The body must be a JSON object|not valid JSON"),
        (b"{oops", 422, "The body is not valid JSON"),
        (b'{"prompt": "\xff"}', 400, ""),
        (b"[" * 100_000, 400, "The body can't be read as JSON"),
    ],
)
def test_a_malformed_request_is_told_and_the_server_lives_on(client, body, status, words):
    answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    assert re.search(words, answer.json()["detail"])
    assert client.post("/predict", json={"prompt": "Hi"}).status_code == 200


def test_another_content_type_is_told(client):
    answer = client.post("/predict", content=b'{"prompt": "Hi"}', headers={"content-type": "text/plain"})
    assert answer.status_code == 422 and "sent as application/json" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer ünknown".encode("latin-1")}, 401),
        ({"authorization": "Bearer s3cret"}, 200),
        ({"x-api-key": "s3cret"}, 200),
    ],
)
def test_a_key_is_asked_for(inference_model, headers, status):
    with TestClient(make_app(make_service(inference_model, keys=["s3cret"]))) as client:
        answer = client.post("/predict", json={"prompt": "Hi"}, headers=headers)
        assert answer.status_code == status and "s3cret" not in answer.text
        assert client.get("/health").status_code == 200


def test_a_failing_step_is_a_500_and_health_tells_until_a_step_works(tmp_path):
    inference_model = InferenceModel.load(make_folder(tmp_path / "tiny"), "cpu", "32-true")
    hidden = inference_model.model.hidden
    for stream in (False, True):
        with TestClient(
            make_app(make_service(inference_model, stream=stream)), raise_server_exceptions=False
        ) as client:
            inference_model.model.hidden = lambda *args, **kwargs: hidden(*args)[:, :0][0, 0]
            answer = client.post("/predict", json={"prompt": "Hi"})
            assert answer.status_code == (200 if stream else 500)
            assert "server's log says why" in answer.json()["error" if stream else "detail"]
            assert client.get("/health").status_code == 503
            inference_model.model.hidden = hidden
            assert client.post("/predict", json={"prompt": "Hi"}).status_code == 200
            assert client.get("/health").status_code == 200


# -- several clients at once, without a network


def test_clients_are_served_together_and_each_gets_its_own_answer(inference_model):
    served = make_service(inference_model, slots=3)
    prompts = [f"Prompt {n} {'hay ' * (n % 4)}" for n in range(10)]

    async def work(client):
        answers = await asyncio.gather(*(client.post("/predict", json={"prompt": prompt}) for prompt in prompts))
        return [answer.json()["output"] for answer in answers]

    assert asynchronous(make_app(served), work) == [alone(inference_model, prompt) for prompt in prompts]
    assert not served.base.engine.busy


def test_a_request_that_waits_too_long_for_its_turn_is_told(inference_model):
    served = make_service(inference_model, slots=1, limits=Limits(wait=0.05))
    step = served.base.engine.step

    def slow_step() -> None:
        time.sleep(0.03)
        step()

    served.base.engine.step = slow_step

    async def work(client):
        bodies = [{"prompt": "Hi", "max_new_tokens": 20}] * 2
        return await asyncio.gather(*(client.post("/predict", json=body) for body in bodies))

    first, second = sorted(asynchronous(make_app(served), work), key=lambda answer: answer.status_code)
    assert (first.status_code, second.status_code) == (200, 504)
    assert "no turn within 0.05 seconds" in second.json()["detail"]


def test_a_client_that_goes_away_frees_its_slot(inference_model):
    """Speaks ASGI itself: the client says what it wants, waits for the first piece (or not), and is gone."""
    served = make_service(inference_model, slots=1, stream=True)
    app = make_app(served)
    body = json.dumps({"prompt": "Hi", "max_new_tokens": 100}).encode()
    scope = dict(type="http", method="POST", path="/predict", raw_path=b"/predict", query_string=b"", root_path="")
    scope |= dict(http_version="1.1", scheme="http", server=("x", 80), client=("y", 1), asgi={"version": "3.0"})
    scope["headers"] = [(b"content-type", b"application/json")]

    async def run() -> int:
        async with app.router.lifespan_context(app):
            gone = asyncio.Event()
            messages = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive():
                if messages:
                    return messages.pop()
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message):
                if message.get("body"):
                    gone.set()

            await app(scope, receive, send)
            submitted = served.base.engine.submit([1], Sampling(temperature=0), max_new_tokens=1)
            await asyncio.to_thread(submitted.result)
            return served.base.engine.n_running

    assert asyncio.run(run()) == 0


def test_settings_of_a_request_are_checked_as_the_servers_are():
    with pytest.raises(LitGPTError, match="top_k is 0"):
        Prediction(prompt="Hi", top_k=0).sampling(Sampling())

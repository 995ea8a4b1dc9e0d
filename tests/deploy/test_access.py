"""What the server does when it is asked for too much, too often, too slowly or by the wrong people."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time

import httpx
import pytest
from fastapi.testclient import TestClient

from litgpt.deploy.access import Keys, Limits, read_keys
from litgpt.deploy.app import make_app
from litgpt.deploy.request_log import RequestLog
from litgpt.engine.inference_model import InferenceModel
from litgpt.errors import LitGPTError
from tests.deploy.served import asynchronous, make_service, running
from tests.generate.folder import make_folder

HI = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 20}


@pytest.fixture(scope="module")
def inference_model(tmp_path_factory: pytest.TempPathFactory) -> InferenceModel:
    return InferenceModel.load(make_folder(tmp_path_factory.mktemp("serve") / "tiny"), "cpu", "32-true")


def slowed(service, seconds: float):
    """The service, each step of whose engine takes a while longer, and is counted: `service.base.engine.n_steps`."""
    engine = service.base.engine
    step, engine.n_steps = engine.step, 0

    def slow_step() -> None:
        engine.n_steps += 1
        time.sleep(seconds)
        step()

    engine.step = slow_step
    return service


def post(url: str, body=HI, **settings) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30, **settings)


# -- the queue and the clock


def test_what_exceeds_the_queue_is_told_to_come_again_at_once(inference_model):
    service = slowed(make_service(inference_model, slots=1, limits=Limits(queue=2)), 0.02)

    async def work(client):
        posts = [client.post("/v1/chat/completions", json=HI) for _ in range(8)]
        return await asyncio.gather(*posts)

    answers = asynchronous(make_app(service), work)
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 5
    refused = [answer for answer in answers if answer.status_code == 429]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert refused[0].json()["error"]["code"] == "server_busy"
    assert (
        len({answer.json()["choices"][0]["message"]["content"] for answer in answers if answer.status_code == 200}) == 1
    )
    assert service.in_flight == 0


def test_a_hundred_requests_too_many_are_told_while_another_is_answered(inference_model):
    service = slowed(make_service(inference_model, slots=1, limits=Limits(queue=0)), 0.2)
    with running(service) as url, httpx.Client(timeout=30) as client:
        body = HI | {"stream": True, "ignore_eos": True, "max_tokens": 100}
        with client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
            pieces = answer.iter_bytes()  # let go of, it would end the answer
            next(pieces)
            for _ in range(100):
                refused = client.post(f"{url}/v1/chat/completions", json=HI)
                assert refused.status_code == 429 and refused.headers["retry-after"]
            assert service.in_flight == 1


def test_more_answers_than_there_will_ever_be_room_for_are_a_mistake(inference_model):
    service = make_service(inference_model, slots=1, limits=Limits(queue=2))
    with TestClient(make_app(service)) as client:
        assert client.post("/v1/chat/completions", json=HI | {"n": 4}).status_code == 400
        assert client.post("/v1/completions", json={"model": "tiny", "prompt": ["a"] * 4}).status_code == 400
        assert client.post("/v1/chat/completions", json=HI | {"n": 3}).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_waiting_too_long_for_a_turn_is_a_504(inference_model, stream):
    service = slowed(make_service(inference_model, slots=1, limits=Limits(wait=0.06)), 0.02)

    async def work(client):
        return await asyncio.gather(
            *(client.post("/v1/chat/completions", json=HI | {"stream": stream}) for _ in range(2))
        )

    first, second = sorted(asynchronous(make_app(service), work), key=lambda answer: answer.status_code)
    assert (first.status_code, second.status_code) == (200, 504)
    assert second.json()["error"]["code"] == "queue_timeout"


def test_a_request_that_takes_too_long_ends(inference_model):
    service = slowed(make_service(inference_model, limits=Limits(seconds=0.2)), 0.05)
    with TestClient(make_app(service)) as client:
        answer = client.post("/v1/chat/completions", json=HI)
        assert answer.status_code == 504 and "more than 0.2 seconds" in answer.json()["error"]["message"]
        lines = client.post("/v1/chat/completions", json=HI | {"stream": True}).text.split("\n\n")
        assert json.loads(lines[-2].removeprefix("data: "))["error"]["code"] == "timeout"
        assert service.in_flight == 0


def test_a_client_that_goes_away_frees_its_slot_at_once(inference_model):
    service = slowed(make_service(inference_model, slots=1), 0.01)
    with running(service) as url:
        for path in ("/v1/chat/completions", "/v1/completions"):
            body = {"model": "tiny", "stream": True, "max_tokens": 100, "ignore_eos": True}
            body |= {"messages": HI["messages"]} if "chat" in path else {"prompt": "Hi"}
            with httpx.stream("POST", url + path, json=body, timeout=30) as answer:
                next(answer.iter_bytes())
            before = service.base.engine.n_steps
            assert post(url, HI | {"max_tokens": 1}).status_code == 200
            assert service.base.engine.n_steps - before < 60
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/chat/completions", json=HI | {"ignore_eos": True, "max_tokens": 100}, timeout=0.2)
        before = service.base.engine.n_steps
        assert post(url, HI | {"max_tokens": 1}).status_code == 200
        assert service.base.engine.n_steps - before < 60


def test_ten_clients_that_went_away_cost_the_next_one_nothing(inference_model):
    service = slowed(make_service(inference_model, slots=2), 0.005)
    body = json.dumps(HI | {"ignore_eos": True, "max_tokens": 100}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    with running(service) as url:
        host, port = url.removeprefix("http://").split(":")
        gone = [socket.create_connection((host, int(port))) for _ in range(10)]
        for connection in gone:
            connection.sendall(head.encode() + body)
        while service.in_flight < 10:
            time.sleep(0.001)
        for connection in gone:
            connection.close()
        before = service.base.engine.n_steps
        assert post(url, HI | {"ignore_eos": True, "max_tokens": 20}).status_code == 200
        assert service.base.engine.n_steps - before <= 30


# -- sizes


def test_a_large_body_is_refused_unread(inference_model):
    service = make_service(inference_model, limits=Limits(body=1000))
    with TestClient(make_app(service)) as client:
        big = client.post("/v1/chat/completions", content=b"x" * 1001)
        assert big.status_code == 413 and big.json()["error"]["code"] == "request_too_large"
        pieces = client.post("/v1/chat/completions", content=(b"x" * 100 for _ in range(11)))
        assert pieces.status_code == 413 and "1000 bytes" in pieces.json()["error"]["message"]
        assert client.post("/predict", content=b"x" * 1001).json()["detail"].startswith("The body has more than")
        assert client.post("/v1/chat/completions", json=HI).status_code == 200


def test_a_body_that_stops_coming_is_given_up(inference_model):
    service = make_service(inference_model, limits=Limits(upload=0.1))
    with running(service) as url:
        host, port = url.removeprefix("http://").split(":")

        async def half() -> bytes:
            reader, writer = await asyncio.open_connection(host, int(port))
            head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 90\r\n\r\n"
            writer.write(head + b'{"model": ')
            answer = await reader.readuntil(b"\r\n")
            writer.close()
            return answer

        assert b" 408 " in asyncio.run(half())


@pytest.mark.parametrize("text", ["hay " * 5000, "h" * 1_000_000])
def test_a_prompt_that_is_far_too_long_is_refused_before_it_is_encoded(inference_model, text):
    service = make_service(inference_model)
    encoded = []
    service.base.inference_model.tokenizer.encode_ids, kept = (
        encoded.append,
        service.base.inference_model.tokenizer.encode_ids,
    )
    try:
        with TestClient(make_app(service)) as client:
            for path, body in {
                "/v1/chat/completions": HI | {"messages": [{"role": "user", "content": text}]},
                "/v1/completions": {"model": "tiny", "prompt": text},
                "/v1/embeddings": {"model": "tiny", "input": text},
                "/tokenize": {"prompt": text},
                "/predict": {"prompt": text},
            }.items():
                answer = client.post(path, json=body)
                assert answer.status_code == 400, path
                assert answer.json()["error"]["code"] == "context_length_exceeded"
    finally:
        service.base.inference_model.tokenizer.encode_ids = kept
    assert not encoded


def test_a_shorter_limit_on_prompts(inference_model):
    with TestClient(make_app(make_service(inference_model, limits=Limits(prompt=10)))) as client:
        assert client.post("/v1/completions", json={"model": "tiny", "prompt": [5] * 10}).status_code == 200
        answer = client.post("/v1/completions", json={"model": "tiny", "prompt": [5] * 11})
        assert answer.status_code == 400 and "the context only 10" in answer.json()["error"]["message"]


# -- keys, origins, logs


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer three"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "Bearer one"}, 200),
        ({"authorization": "bearer two"}, 200),
        ({"x-api-key": "two"}, 200),
        ({"x-api-key": ""}, 401),
    ],
)
def test_any_of_several_keys_opens(inference_model, headers, status):
    service = make_service(inference_model, keys=["one", " two "])
    with TestClient(make_app(service)) as client:
        for path in ("/v1/models", "/metrics"):
            answer = client.get(path, headers=headers)
            assert answer.status_code == status
            if status == 401:
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/health").status_code == 200


def test_keys_come_from_the_command_line_a_file_or_the_environment(tmp_path, monkeypatch):
    def opens(keys: Keys, key: str) -> bool:
        return keys.admit({b"authorization": f"Bearer {key}".encode()})

    file = tmp_path / "keys"
    file.write_text("# ours\nfrom-file\n\n")
    monkeypatch.setenv("LITGPT_API_KEY", "from-env")
    both = read_keys("a,b", file)
    assert [opens(both, key) for key in ("a", "b", "from-file", "from-env")] == [True, True, True, False]
    assert opens(read_keys(None, None), "from-env")
    monkeypatch.delenv("LITGPT_API_KEY")
    monkeypatch.setenv("LIT_SERVER_API_KEY", "litserves")
    assert opens(read_keys(None, None), "litserves")
    monkeypatch.delenv("LIT_SERVER_API_KEY")
    assert not read_keys(None, None) and opens(read_keys(None, None), "any")
    file.write_text("\n")
    for given, at, words in [
        ("", None, "--api_key is empty"),
        (None, file, "holds no key"),
        (None, tmp_path / "no", "can't be read"),
        ("ü", None, "no header can carry"),
    ]:
        with pytest.raises(LitGPTError, match=words):
            read_keys(given, at)


@pytest.mark.parametrize(
    ("origins", "allowed"), [((), None), (("https://a.example",), "https://a.example"), (("*",), "*")]
)
def test_pages_of_other_origins_may_ask_only_where_they_are_let(inference_model, origins, allowed):
    headers = {"origin": "https://a.example", "access-control-request-method": "POST"}
    service = make_service(inference_model, origins=origins, keys=["s3cret"])
    with TestClient(make_app(service)) as client:
        preflight = client.options("/v1/chat/completions", headers=headers)
        assert preflight.headers.get("access-control-allow-origin") == allowed
        answer = client.post("/v1/chat/completions", json=HI, headers=headers | {"authorization": "Bearer s3cret"})
        assert answer.status_code == 200
        assert answer.headers.get("access-control-allow-origin") == allowed
        assert "access-control-allow-credentials" not in answer.headers


def test_the_log_has_a_line_of_json_a_request_and_no_secret(inference_model, tmp_path):
    path = tmp_path / "requests.jsonl"
    service = make_service(inference_model, keys=["s3cret"], log=RequestLog(str(path)))
    headers = {"authorization": "Bearer s3cret"}
    with TestClient(make_app(service)) as client:
        done = client.post("/v1/chat/completions", json=HI, headers=headers)
        client.post("/v1/chat/completions", json=HI | {"model": "no"}, headers=headers)
        client.post("/v1/chat/completions?key=hidden", json=HI)
        client.get("/health")
    text = path.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["status"] for line in lines] == [200, 404, 401]
    first = lines[0]
    assert first["id"] == done.headers["x-request-id"] and done.json()["id"].endswith(first["id"])
    assert (first["model"], first["completion_tokens"], first["finish_reasons"]) == ("tiny", 20, ["length"])
    assert 0 <= first["queue_seconds"] <= first["first_token_seconds"] <= first["seconds"]
    assert not re.search("s3cret|hidden|Hi", text)


def test_a_log_that_cant_be_written_is_told(tmp_path):
    with pytest.raises(LitGPTError, match="can't be written"):
        RequestLog(str(tmp_path / "no" / "log"))


# -- health and metrics


def parsed(text: str) -> dict[str, float]:
    found = {}
    for line in text.splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) litgpt_\w+ .+|litgpt_\w+(\{[^}]*\})? [-+0-9.e]+", line), line
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found


def test_metrics_count_requests_tokens_and_times(inference_model):
    service = make_service(inference_model)
    with TestClient(make_app(service)) as client:
        for _ in range(2):
            usage = client.post("/v1/chat/completions", json=HI).json()["usage"]
        client.post("/v1/chat/completions", json={})
        client.get("/no/such/path")
        answer = client.get("/metrics")
        client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = parsed(answer.text)
    assert found['litgpt_requests_total{path="/v1/chat/completions",status="200"}'] == 2
    assert found['litgpt_requests_total{path="/v1/chat/completions",status="400"}'] == 1
    assert found['litgpt_requests_total{path="other",status="404"}'] == 1
    assert found['litgpt_answers_total{reason="length"}'] == 2
    assert found["litgpt_prompt_tokens_total"] == 2 * usage["prompt_tokens"]
    assert found["litgpt_prompt_tokens_cached_total"] == usage["prompt_tokens_details"]["cached_tokens"] > 0
    assert found["litgpt_generated_tokens_total"] == 40
    for name in ("queue", "time_to_first_token", "time_per_output_token", "request"):
        assert found[f"litgpt_{name}_seconds_count"] == 2
        assert found[f'litgpt_{name}_seconds_bucket{{le="+Inf"}}'] == 2
    assert found["litgpt_answers_running"] == found["litgpt_answers_waiting"] == 0
    assert found["litgpt_slots"] == 4 and 0 < found["litgpt_cache_use_ratio"] < 1


def test_health_tells_of_a_step_that_does_not_end(inference_model, monkeypatch):
    service = make_service(inference_model)
    monkeypatch.setattr("litgpt.deploy.backends.local.STUCK_SECONDS", 0.0)
    hidden, stuck, released = inference_model.model.hidden, threading.Event(), threading.Event()

    def stuck_hidden(*args, **kwargs):
        stuck.set()
        released.wait(60)
        return hidden(*args, **kwargs)

    async def work(client):
        monkeypatch.setattr(inference_model.model, "hidden", stuck_hidden)
        asked = asyncio.create_task(client.post("/v1/chat/completions", json=HI | {"max_tokens": 1}))
        assert await asyncio.to_thread(stuck.wait, 60)
        during = await client.get("/health")
        released.set()
        await asked
        while service.base.engine.busy or service.base.engine.step_began is not None:
            await asyncio.sleep(0.01)
        return during, await client.get("/health")

    during, after = asynchronous(make_app(service), work)
    assert (during.status_code, after.status_code) == (503, 200)

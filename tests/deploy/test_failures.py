"""What the server's own faults leave: a 500 of one shape for the client, the reason with its traceback in the log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from litgpt.deploy.app import make_app
from litgpt.deploy.backends.embeddings import embed
from litgpt.deploy.backends.litserve import EngineAPI, EngineCall, Failure
from litgpt.deploy.backends.task import GenerationTask
from litgpt.deploy.service import Service
from litgpt.deploy.settings import Loading
from litgpt.engine.inference_model import InferenceModel
from tests.deploy.served import GREEDY, make_service
from tests.generate.folder import make_folder

ORIGIN = "https://app.example"
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "embed": ("/v1/embeddings", {"model": "tiny", "input": "Hi"}),
    "score": ("/v1/completions", {"model": "tiny", "prompt": "Hi", "echo": True, "logprobs": 1, "max_tokens": 0}),
    "open": ("/v1/chat/completions", {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}),
}
FAULTS = [RuntimeError, KeyError, AssertionError, MemoryError, torch.OutOfMemoryError, TypeError, OSError]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("failures") / "tiny")


@pytest.fixture(scope="module")
def service(folder) -> Service:
    return make_service(InferenceModel.load(folder, "cpu", "32-true"), origins=[ORIGIN])


@pytest.fixture(scope="module")
def client(service) -> Iterator[TestClient]:
    with TestClient(make_app(service)) as client:
        yield client


def traceback_in(caplog: pytest.LogCaptureFixture, reason: str) -> bool:
    return any(
        record.levelno >= logging.ERROR and record.exc_info and reason in str(record.exc_info[1])
        for record in caplog.records
    )


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", [*CALLS])
def test_a_fault_is_a_500_whose_reason_and_traceback_are_in_the_log(client, service, monkeypatch, caplog, call, fault):
    async def fail(*arguments: Any) -> Any:
        raise fault("the reason")

    monkeypatch.setattr(service.backend, call, fail)
    path, body = CALLS[call]
    answer = client.post(path, json=body, headers={"origin": ORIGIN})
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "model_failed"
    assert answer.headers["access-control-allow-origin"] == ORIGIN and answer.headers["x-request-id"]
    assert traceback_in(caplog, "the reason")
    monkeypatch.undo()
    assert client.post(path, json=body).status_code == 200
    assert service.in_flight == 0


def test_the_models_own_fault_is_in_the_log(client, service, monkeypatch, caplog):
    def fail(*arguments: Any, **settings: Any) -> Any:
        raise RuntimeError("the reason")

    monkeypatch.setattr(service.base.inference_model.model, "hidden", fail)
    for path, body in CALLS.values():
        caplog.clear()
        assert client.post(path, json=body).status_code == 500
        assert traceback_in(caplog, "the reason"), path
    assert client.get("/health").status_code == 503
    caplog.clear()


def test_litserves_worker_logs_what_fails_there(folder, monkeypatch, caplog):
    def fail(*arguments: Any, **settings: Any) -> Any:
        raise RuntimeError("the reason")

    api = EngineAPI(str(folder), "tiny", {}, Loading("cpu", "32-true", slots=2), at_once=4)
    api.setup("cpu")
    monkeypatch.setattr(api.served_models["tiny"].inference_model.model, "hidden", fail)
    for work in (EngineCall(embed, "tiny", ([1, 2], "mean")), [GenerationTask("tiny", [1], GREEDY, 8)]):
        caplog.clear()
        api.add_request("one", work)
        outputs = [output.output for _ in range(3) for output in api.step(None) if output.output]
        assert traceback_in(caplog, "the reason")
        if isinstance(work, EngineCall):
            assert isinstance(outputs[0], Failure) and "the reason" in outputs[0].reason
    caplog.clear()
    api.add_request("other", EngineCall(embed, "no such model", ([1], "mean")))
    assert traceback_in(caplog, "no such model") and not api.running.get("other")


# -- pages of other origins


CLIENTS = {
    "openai": "authorization,content-type,x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-package-version,"
    "x-stainless-retry-count,x-stainless-runtime,x-stainless-runtime-version,x-stainless-timeout",
    "openai, streaming": "authorization,x-stainless-helper-method,openai-organization,openai-project,idempotency-key",
    "anthropic": "anthropic-version,anthropic-dangerous-direct-browser-access,content-type,x-api-key,x-stainless-os",
    "azure": "api-key,content-type,x-ms-useragent",
    "openrouter": "authorization,content-type,http-referer,x-title",
    "none": "",
}


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses", "/v1/models", "/predict"])
@pytest.mark.parametrize("named", [*CLIENTS])
def test_a_clients_preflight_is_answered_from_an_allowed_origin_alone(client, named, path):
    asked = {"access-control-request-method": "GET" if path == "/v1/models" else "POST"}
    asked |= {"access-control-request-headers": CLIENTS[named]} if CLIENTS[named] else {}
    asked |= {"access-control-request-private-network": "true"}
    allowed, refused = (client.options(path, headers=asked | {"origin": at}) for at in (ORIGIN, "https://evil.example"))
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == ORIGIN
    assert set(filter(None, CLIENTS[named].split(","))) <= set(
        allowed.headers.get("access-control-allow-headers", "").split(",")
    )
    assert allowed.headers["access-control-allow-private-network"] == "true"
    assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers

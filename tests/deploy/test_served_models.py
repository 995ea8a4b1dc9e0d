"""Adapters beside one model: each is asked for by its name, and answers as it would alone."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import save_file

from litgpt.deploy.app import make_app
from litgpt.deploy.served_models import base_of, find_adapter, make_served_models
from litgpt.deploy.service import Service
from litgpt.engine.inference_model import InferenceModel
from litgpt.errors import LitGPTError
from tests.deploy.lora_runs import make_run
from tests.deploy.served import alone, asynchronous, service_of
from tests.generate.folder import make_folder

RUNS = {"legal": (dict(r=4, alpha=8), "alpaca"), "medical": (dict(r=2, alpha=8, mlp=True, head=True), None)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("base") / "tiny", block_size=256)


@pytest.fixture(scope="module")
def runs(folder, tmp_path_factory) -> dict[str, Path]:
    return {
        name: make_run(tmp_path_factory.mktemp(name), folder, seed, style, **settings)
        for seed, (name, (settings, style)) in enumerate(RUNS.items())
    }


@pytest.fixture(scope="module")
def service(folder, runs) -> Service:
    inference_model = InferenceModel.load(folder, "cpu", "32-true")
    return service_of(make_served_models(inference_model, "tiny", 8, runs), max_new_tokens=12)


@pytest.fixture(scope="module")
def expected(folder, runs) -> dict[str, str]:
    """What each answers when it is served alone, its update merged."""
    inference_models = {
        name: InferenceModel.load(place, "cpu", "32-true") for name, place in {"tiny": folder, **runs}.items()
    }
    return {name: alone(inference_model, "Hi", 12) for name, inference_model in inference_models.items()}


def body(model: str) -> dict:
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 12}


def test_requests_for_different_adapters_run_together_and_answer_as_each_alone(service, expected):
    names = ["tiny", "legal", "medical", "legal", "tiny", "medical", "medical", "tiny"]
    widest, came, engine = 0, threading.Event(), service.base.engine
    using_adapters, deadline = engine.using_adapters, time.monotonic() + 30

    def counting(adapters):
        nonlocal widest
        while (
            came.is_set()
            and not widest
            and engine.n_running + engine.n_waiting < len(names)
            and time.monotonic() < deadline
        ):
            time.sleep(0.001)  # until all have come, before the first has more than a token
        if came.is_set():  # or what the server asked for itself would have been the first
            widest = max(widest, len(set(adapters)))
        return using_adapters(adapters)

    engine.using_adapters = counting

    async def work(client):
        came.set()  # the server has asked its model already whether it answers
        return await asyncio.gather(*(client.post("/v1/chat/completions", json=body(name)) for name in names))

    answers = asynchronous(make_app(service), work)
    found = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
    assert found == [expected[name] for name in names]
    assert len(set(found)) == 3 and widest == 3


@pytest.fixture
def client(folder, runs):
    served_models = make_served_models(InferenceModel.load(folder, "cpu", "32-true"), "tiny", 2, runs)
    with TestClient(make_app(service_of(served_models, max_new_tokens=12))) as client:
        yield client


def test_adapters_are_listed_and_may_be_asked_for_everywhere(client, expected):
    listed = client.get("/v1/models").json()["data"]
    assert [(entry["id"], entry["parent"]) for entry in listed] == [
        ("tiny", None),
        ("legal", "tiny"),
        ("medical", "tiny"),
    ]
    assert client.post("/predict", json={"prompt": "Hi", "model": "legal"}).json() == {"output": expected["legal"]}
    assert client.post("/predict", json={"prompt": "Hi"}).json() == {"output": expected["tiny"]}
    vectors = {}
    for name in expected:
        answer = client.post("/v1/embeddings", json={"model": name, "input": "Llamas eat hay."}).json()
        vectors[name] = tuple(answer["data"][0]["embedding"])
    assert len(set(vectors.values())) == 3
    assert (
        client.post("/v1/chat/completions", json=body("lega"))
        .json()["error"]["message"]
        .endswith("There is no model 'lega' here. Closest: legal. See /v1/models.")
    )


def peft_folder(folder: Path, base: str, n_layer: int = 2) -> Path:
    """An update of two kinds of layers, as PEFT writes it; the model is 32 wide, its MLP 48."""
    folder.mkdir()
    targets = {"self_attn.q_proj": (32, 32), "mlp.down_proj": (48, 32)}
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 12}
    said = settings | {"target_modules": ["q_proj", "down_proj"], "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    random = torch.Generator().manual_seed(3)
    state = {}
    for name, (n_in, n_out) in targets.items():
        for layer in range(n_layer):
            place = f"base_model.model.model.layers.{layer}.{name}"
            state[f"{place}.lora_A.weight"] = 0.3 * torch.randn(4, n_in, generator=random)
            state[f"{place}.lora_B.weight"] = 0.3 * torch.randn(n_out, 4, generator=random)
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def test_pefts_folders_answer_as_well_wherever_they_say_that_the_model_is(folder, runs, expected, tmp_path):
    poems = alone(InferenceModel.load(peft_folder(tmp_path / "told", str(folder)), "cpu", "32-true"), "Hi", 12)
    place = peft_folder(tmp_path / "poems", "some/where")
    served_models = make_served_models(
        InferenceModel.load(folder, "cpu", "32-true"), "tiny", 2, {"poems": place, "legal": runs["legal"]}, base=folder
    )
    with TestClient(make_app(service_of(served_models, max_new_tokens=12))) as client:
        answers = [
            client.post("/v1/chat/completions", json=body(name)).json()["choices"][0]["message"]["content"]
            for name in ("poems", "legal", "tiny")
        ]
    assert answers == [poems, expected["legal"], expected["tiny"]] and poems != expected["tiny"]


def test_a_run_that_left_its_whole_model_beside_the_update_is_an_adapter(folder, runs, tmp_path):
    for file in runs["legal"].iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "lit_model.pth").touch()  # never read
    assert find_adapter("legal", tmp_path, folder).file == tmp_path / "lit_model.pth.lora"


def test_a_folder_of_something_else_is_refused(folder):
    with pytest.raises(LitGPTError, match="--adapters x=.* is no folder of a LoRA run"):
        find_adapter("x", folder, folder)


def test_the_weights_that_adapters_stand_beside_are_those_of_the_model_that_was_finetuned(folder, runs):
    assert base_of(folder) == folder
    assert base_of(runs["legal"]) == folder


def test_an_adapter_cant_have_the_models_name(folder, runs):
    with pytest.raises(LitGPTError, match="what the model itself is called"):
        make_served_models(InferenceModel.load(folder, "cpu", "32-true"), "legal", 1, runs)

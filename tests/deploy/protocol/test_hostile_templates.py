"""A checkpoint's chat template is somebody else's program: it reads nothing, runs nothing, and holds nobody up."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from litgpt.deploy.app import make_app
from litgpt.engine.inference_model import InferenceModel
from litgpt.prompts import rendering
from tests.deploy.served import asynchronous, make_service
from tests.generate.folder import make_folder

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
HOSTILE = {
    "code": "{{ cycler.__init__.__globals__.os.popen('touch {path}').read() }}",
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a file": "{% include '{path}' %}",
    "another file": "{{ self._TemplateReference__context.environment.loader.get_source('{path}') }}",
    "no end": ENDLESS,
    "memory": "{{ 'a' * 9999999999 }}",
    "growth": "{% set n = namespace(t='aaaaaaaaaa') %}{% for i in range(99) %}{% set n.t = n.t + n.t %}{% endfor %}",
}


def inference_model_with(folder: Path, template: str) -> InferenceModel:
    return InferenceModel.load(make_folder(folder / "tiny", template=template), "cpu", "32-true")


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_and_the_server_lives_on(tmp_path, name, monkeypatch):
    monkeypatch.setattr(rendering, "MAX_SECONDS", 2.0)
    monkeypatch.setattr(rendering, "MAX_BYTES", 100_000_000)
    path = tmp_path / "touched"
    inference_model = inference_model_with(tmp_path, HOSTILE[name].replace("{path}", str(path)))
    service = make_service(inference_model)

    async def work(client):
        hostile = [asyncio.create_task(client.post("/v1/chat/completions", json=BODY)) for _ in range(3)]
        await asyncio.sleep(0.5)
        for _ in range(5):
            assert (await client.get("/health")).status_code == 200
        assert name != "no end" or not any(task.done() for task in hostile)
        plain = await client.post("/v1/completions", json={"model": "tiny", "prompt": "Hi", "max_tokens": 2})
        return await asyncio.gather(*hostile), plain

    answers, plain = asynchronous(make_app(service), work)
    for answer in answers:
        assert answer.status_code == 422 and answer.json()["error"]["code"] == "template_refused"
        message = answer.json()["error"]["message"]
        assert "refuses this conversation" in message and str(tmp_path) not in message.replace(str(path), "")
    assert plain.status_code == 200
    assert not path.exists()

"""The smaller routes: tokens of texts and conversations."""

from __future__ import annotations

from fastapi.testclient import TestClient

from litgpt.deploy.app import make_app
from litgpt.engine.inference_model import InferenceModel
from tests.deploy.served import make_service
from tests.generate.folder import make_folder

MESSAGES = [{"role": "user", "content": "Hi"}]


def test_texts_become_tokens_and_back(tmp_path):
    inference_model = InferenceModel.load(make_folder(tmp_path / "tiny"), "cpu", "32-true")
    with TestClient(make_app(make_service(inference_model))) as client:
        told = client.post("/tokenize", json={"prompt": "Llamas eat hay."}).json()
        assert told["tokens"] == inference_model.tokenizer.encode_ids("Llamas eat hay.")
        assert told["count"] == len(told["tokens"]) and told["max_model_len"] == 128
        assert "".join(told["pieces"]) == "Llamas eat hay."
        assert client.post("/detokenize", json={"tokens": told["tokens"]}).json() == {"prompt": "Llamas eat hay."}
        chat = client.post("/tokenize", json={"messages": MESSAGES}).json()
        assert chat["tokens"] == inference_model.encode("Hi")
        shorter = client.post("/tokenize", json={"messages": MESSAGES, "add_generation_prompt": False}).json()
        assert shorter["tokens"] == chat["tokens"][: shorter["count"]] and shorter["count"] < chat["count"]
        for body in (
            {},
            {"prompt": "Hi", "messages": MESSAGES},
            {"prompt": "Hi", "add_generation_prompt": True},
            {"messages": MESSAGES, "add_special_tokens": False},
        ):
            assert client.post("/tokenize", json=body).status_code == 400
        assert client.post("/detokenize", json={"tokens": [-1]}).status_code == 400

"""The chat page as the server gives it."""

from __future__ import annotations

import re

import pytest
from fastapi.testclient import TestClient

from litgpt.deploy.app import make_app
from litgpt.engine.inference_model import InferenceModel
from tests.deploy.served import make_service
from tests.generate.folder import make_folder


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What a server with a key answers to someone without one."""
    inference_model = InferenceModel.load(make_folder(tmp_path_factory.mktemp("page") / "tiny"), "cpu", "32-true")
    with TestClient(make_app(make_service(inference_model, keys=["secret"]))) as client:
        yield client.get("/")


def test_it_needs_no_key(page):
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")


def test_it_asks_nobody_else(page):
    assert not re.findall(r"(?:src|href)=\"(?!data:)|url\(|https?://(?!\")\w", page.text)


def test_nothing_but_its_own_script_may_run(page):
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert re.search(r"script-src 'sha256-[\w+/=]{44}';", policy)

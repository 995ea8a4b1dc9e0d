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
def client(tmp_path_factory):
    """Someone without the key that the server asks for."""
    inference_model = InferenceModel.load(make_folder(tmp_path_factory.mktemp("page") / "tiny"), "cpu", "32-true")
    with TestClient(make_app(make_service(inference_model, keys=["secret"]))) as client:
        yield client


@pytest.fixture(scope="module")
def page(client):
    return client.get("/")


def test_it_needs_no_key(page):
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-encoding"] == "gzip"  # and the client has unpacked it


def test_it_is_sent_once(client, page):
    again = client.get("/", headers={"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    plain = client.get("/", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers and plain.text == page.text


def test_it_asks_nobody_else(page):
    own = re.sub(
        r"<script>.*?</script>", lambda script: "" if len(script[0]) > 45_000 else script[0], page.text, flags=re.S
    )
    assert own.count("<script>") == 3  # the libraries know addresses, which test_page.py watches
    assert not re.findall(r"(?:src|href)=\"(?!data:)|url\(|https?://(?!\")\w", own)


def test_nothing_but_its_own_script_may_run(page):
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert re.search(r"script-src( 'sha256-[\w+/=]{44}'){6};", policy)

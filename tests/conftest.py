"""What the tests share: real assets beside the project, and how their absence is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.paths import ROOT

# The same draws everywhere, so that a change is judged by what it changes; HYPOTHESIS_PROFILE=random looks further.
settings.register_profile("fixed", derandomize=True)
settings.register_profile("random", derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests leave no tokens in the user's cache."""
    os.environ["LITGPT_CACHE"] = str(tmp_path_factory.mktemp("cache"))


def _absent(reason: str) -> None:
    """Skips; fails instead where the assets are promised to be there."""
    if os.environ.get("LITGPT_REQUIRE_ASSETS"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def shared_assets() -> Path:
    """Real texts, tokenizers, chat templates and small models that lie beside the project, not in it."""
    folder = ROOT.parent / "shared" / "assets"
    if not folder.is_dir():
        _absent("needs the larger assets in ../shared/assets")
    return folder


@pytest.fixture(scope="session")
def stories260k(shared_assets: Path) -> Path:
    """A real Llama of 260 thousand parameters, as a Hugging Face folder."""
    return shared_assets / "models" / "stories260k"


@pytest.fixture(scope="session")
def fetched_assets() -> Path:
    """Real models and tokenizers of some hundred megabytes, fetched beforehand into `$LITGPT_TEST_ASSETS`."""
    folder = os.environ.get("LITGPT_TEST_ASSETS")
    if not folder or not Path(folder).is_dir():
        _absent("needs $LITGPT_TEST_ASSETS, a folder with smollm2/ and tokenizers/")
    return Path(str(folder))


@pytest.fixture(scope="session")
def smollm2(fetched_assets: Path) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, bfloat16."""
    return fetched_assets / "smollm2"


@pytest.fixture(scope="session")
def peer_python() -> str:
    """The python of an environment with litgpt 0.5.13, the oracle for its formats."""
    python = os.environ.get("LITGPT_PEER_PYTHON")
    if not python:
        _absent("needs $LITGPT_PEER_PYTHON, a python with litgpt==0.5.13")
    return str(python)


@pytest.fixture(scope="session")
def trl_python() -> str:
    """The python of an environment with TRL, the oracle for losses on preferences and of policies."""
    python = os.environ.get("LITGPT_TRL_PYTHON")
    if not python:
        _absent("needs $LITGPT_TRL_PYTHON, a python with trl==1.16.0")
    return str(python)


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than a small run."""
    from litgpt.training.metrics import metrics

    monkeypatch.setattr(metrics, "draw_loss", lambda rows, path, title: path)
    monkeypatch.setattr(metrics, "write_report", lambda report, path: path)

from __future__ import annotations

import pytest

from litgpt.training.metrics import metrics


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than such a run."""
    monkeypatch.setattr(metrics, "draw_loss", lambda rows, path, title: path)
    monkeypatch.setattr(metrics, "write_report", lambda report, path: path)

"""The tutorials as a site: it builds without a warning, so every page is in its menu and every link leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT

pytest.importorskip("mkdocstrings", reason="needs the extra `docs` (pip install 'litgpt[docs]')")
pytestmark = pytest.mark.slow


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(site)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_the_site_builds_and_asks_no_other_host(tmp_path: Path) -> None:
    done = build(ROOT / "tutorials" / "site" / "mkdocs.yml", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    assert {path.stem for path in pages} > {path.stem for path in (ROOT / "tutorials").glob("*.md")}
    for path, page in pages.items():
        assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?://", page), path
    assert "Config.from_name" in pages[tmp_path / "api" / "model.html"]  # the pages from docstrings have their content


def test_a_link_that_leads_nowhere_stops_it(tmp_path: Path) -> None:
    (tmp_path / "pages" / "site").mkdir(parents=True)
    config = (ROOT / "tutorials" / "site" / "mkdocs.yml").read_text(encoding="utf-8")
    config = config[: config.index("plugins:")] + config[config.index("validation:") : config.index("nav:")]
    (tmp_path / "pages" / "site" / "mkdocs.yml").write_text(config, encoding="utf-8")
    (tmp_path / "pages" / "index.md").write_text("# Title\n\n[gone](gone.md) [part](#part)\n", encoding="utf-8")
    done = build(tmp_path / "pages" / "site" / "mkdocs.yml", tmp_path / "out")
    said = done.stdout + done.stderr
    assert done.returncode != 0 and "gone.md" in said and "#part" in said, said

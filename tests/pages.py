"""The README and the tutorials as what a reader runs: their fenced blocks, and the commands in these."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.paths import ROOT

TUTORIALS = ROOT / "tutorials"
PAGES = [ROOT / "README.md", *sorted(TUTORIALS.rglob("*.md")), *sorted((ROOT / "extensions").rglob("README.md"))]
SHELLS = ("bash", "console")
BLOCK = re.compile(
    r"(?:^ *<!-- not run: (?P<reason>[^>]+) -->\n+)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.M | re.S,
)
HERE = re.compile(r"<<\s*'?(\w+)'?")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    not_run: str | None
    """Why no test runs it, as the comment above it says (`<!-- not run: a server -->`)."""

    def commands(self) -> list[str]:
        """The commands of a shell: lines that go on (`\\`, `<<EOF`) are one; in a `console` they begin with `$`."""
        found: list[str] = []
        ends: str | None = None
        for line in self.text.splitlines():
            if self.language == "console" and ends is None:
                if not line.startswith("$ "):
                    continue  # what was printed
                line = line.removeprefix("$ ")
            if ends is not None or (found and found[-1].endswith("\\")):
                found[-1] += f"\n{line}"
            elif line.strip() and not line.lstrip().startswith("#"):
                found.append(line)
                here = HERE.search(line)
                ends = here and here[1]
                continue
            ends = None if line == ends else ends
        return found


def page_id(page: Path) -> str:
    """The name of a page in the names of tests."""
    return page.relative_to(ROOT).as_posix().removesuffix(".md").removeprefix("tutorials/")


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
        text = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.M)
        yield Block(match["language"], text, match["reason"])


def fences(page: Path, language: str) -> list[str]:
    """The texts of a page's blocks in one language."""
    return [block.text for block in blocks(page) if block.language == language]


def commands(page: Path, *languages: str) -> list[str]:
    """The commands of a page's shell blocks, run or not."""
    shown = languages or SHELLS
    return [command for block in blocks(page) if block.language in shown for command in block.commands()]

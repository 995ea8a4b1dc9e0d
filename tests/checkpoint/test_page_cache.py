"""Files that are read once do not stay in memory, and what others mapped is left alone."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch

from litgpt.checkpoint.page_cache import RELEASE_BYTES, ReadOnce

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SIZE = 8 * 2**20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


def mapped(file: Path) -> torch.Tensor:
    return torch.from_file(str(file), shared=False, size=SIZE, dtype=torch.uint8)


def resident() -> int:
    """Bytes of mapped files that are in this process's memory."""
    found = re.search(r"RssFile:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def test_pages_are_let_go_of_and_come_back(file: Path) -> None:
    pages = ReadOnce([file])
    tensor = mapped(file)
    total = tensor.sum(dtype=torch.int64)
    before = resident()
    pages.read(RELEASE_BYTES - 1)
    assert resident() > before - SIZE // 2
    pages.read(1)
    assert resident() < before - SIZE // 2
    assert tensor.sum(dtype=torch.int64) == total


def test_what_was_mapped_before_keeps_what_was_written_to_it(file: Path) -> None:
    others = mapped(file)
    others.fill_(7)
    pages = ReadOnce([file])
    tensor = mapped(file)
    pages.release()
    assert bool((others == 7).all()) and int(tensor[3]) == 3

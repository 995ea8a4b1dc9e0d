"""What a cache costs before and while it fills."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from litgpt.config import Config
from litgpt.model.cache import KVCache
from tests.model.test_attention import LLAMA

STATUS = Path("/proc/self/statm")


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(STATUS.read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.skipif(not STATUS.is_file(), reason="asks Linux for the memory in use")
def test_a_large_cache_takes_memory_as_it_fills_a_few_pages_for_a_token():
    before = resident()
    cache = KVCache(Config(**LLAMA), slots=8, length=2**16)
    size = sum(tensor.nbytes for tensor in cache.kv_tensors)
    assert size >= 2**26 and resident() - before < size // 8
    for tensor in cache.kv_tensors:
        assert not tensor[:, :, 0].any()
        tensor[:, :, 0] = 1
    assert resident() - before < size // 8

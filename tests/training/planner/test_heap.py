"""The allocator that the planner counts with."""

from __future__ import annotations

import random
from itertools import pairwise

from litgpt.training.planner.heap import RECORD, SLACK, Heap

MB = 2**20


def test_what_is_freed_is_used_again():
    heap = Heap()
    for _ in range(100):
        chunks = heap.allocate(MB)
        heap.free(chunks)
    assert MB < heap.extent < 2 * MB + 100 * SLACK


def test_a_hole_serves_what_fits_in_it_and_the_smallest_hole_first():
    heap = Heap()
    small, between, large = (heap.allocate(size) for size in (MB, MB, 4 * MB))
    last = heap.allocate(MB)
    heap.free(small)
    heap.free(large)
    (start, _), _ = heap.allocate(MB // 2)
    assert start < between[0][0]
    before = heap.extent
    heap.allocate(3 * MB)
    assert heap.extent == before < last[0][0] + 2 * MB


def test_chunks_never_overlap_and_all_comes_back():
    heap, chosen = Heap(), random.Random(0)
    live = []
    for _ in range(3000):
        if live and chosen.random() < 0.5:
            heap.free(live.pop(chosen.randrange(len(live))))
        else:
            live.append(heap.allocate(chosen.choice([1, 2000, 100_000, MB, 5 * MB])))
        spans = sorted(span for chunks in live for span in chunks)
        assert all(a + size <= b for (a, size), (b, _) in pairwise(spans))
        assert not spans or heap.extent >= spans[-1][0] + spans[-1][1] - RECORD

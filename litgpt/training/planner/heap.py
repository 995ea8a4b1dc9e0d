"""What glibc's allocator needs for tensors that come and go: more than the most that are there at a time.

On a CPU a run takes its tensors from one heap and gives nothing back (`runtime.keep_freed_memory`), so its memory is
the heap's greatest extent. torch wants tensors at multiples of 64 bytes; to be sure of such a place glibc (up to 2.37)
takes `SLACK` bytes more and frees what lies before and after the tensor. Where a small object settles in that, the hole
that the tensor leaves is too small for its like, and doesn't join with its neighbours.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

ALIGNMENT = 64
HEADER = 16
"""Of each chunk, bytes; sizes are multiples of it."""
SLACK = 96
TINY = 1024
"""Tensors below it, in bytes, are not followed: they find a place anywhere."""
RECORD = 112
"""torch's record of a tensor's memory, which lies in the heap as well and is there as long."""
SETTLED = 5
"""Of so many remainders beside tensors, one is taken by a small object that stays, as long as there are no more of
these than tensors. Fitted to the heaps of some training runs with glibc 2.36; benchmarks/plan.py compares."""
SMALLEST_CHUNK = 32


class Heap:
    """Places chunks as glibc does: in the smallest free one that they fit in, else at the end."""

    def __init__(self) -> None:
        self.extent = 0
        """Greatest size so far, bytes."""
        self._end = 0
        self._tensors = self._remainders = 0
        self._settled: deque[tuple[int, int]] = deque()
        self._free: list[tuple[int, int]] = []  # (size, start), sorted
        self._size_at: dict[int, int] = {}  # start of a free chunk → its size
        self._start_of: dict[int, int] = {}  # end of a free chunk → its start
        self._records: list[tuple[int, int]] = []  # free ones, used again first

    def allocate(self, nbytes: int) -> tuple[tuple[int, int], ...]:
        """Room for a tensor; returns the `(start, size)` of its chunks, for `free`."""
        if nbytes < TINY:
            return ()
        self._tensors += 1
        size = -(-(nbytes + HEADER // 2) // HEADER) * HEADER
        start, found = self._take(size + SLACK)
        aligned = -(-(start + HEADER) // ALIGNMENT) * ALIGNMENT - HEADER
        if 0 < aligned - start < SMALLEST_CHUNK:
            aligned += ALIGNMENT
        if aligned > start:
            self._free_remainder(start, aligned - start)
        left = found - (aligned - start) - size
        if left >= SMALLEST_CHUNK:
            self._free_remainder(aligned + size, left)
        else:
            size += left
        return (aligned, size), self._record()

    def free(self, chunks: tuple[tuple[int, int], ...]) -> None:
        """Gives the room of a tensor back."""
        if chunks:
            tensor, record = chunks
            self._join(*tensor)
            self._records.append(record)
            self._tensors -= 1
            while len(self._settled) > self._tensors:
                self._join(*self._settled.popleft())

    def _record(self) -> tuple[int, int]:
        if self._records:
            return self._records.pop()
        start, found = self._take(RECORD)
        if found - RECORD >= SMALLEST_CHUNK:
            self._join(start + RECORD, found - RECORD)
            found = RECORD
        return start, found

    def _free_remainder(self, start: int, size: int) -> None:
        if size <= SLACK + SMALLEST_CHUNK:
            self._remainders += 1
            if self._remainders % SETTLED == 0:
                self._settled.append((start, size))
                return
        self._join(start, size)

    def _take(self, size: int) -> tuple[int, int]:
        """The smallest free chunk that is large enough, whole; else a new one at the end."""
        at = bisect_left(self._free, (size, 0))
        if at < len(self._free):
            found, start = self._free.pop(at)
            del self._size_at[start], self._start_of[start + found]
            return start, found
        start = self._end
        self._end += size
        self.extent = max(self.extent, self._end)
        return start, size

    def _join(self, start: int, size: int) -> None:
        """A free chunk, joined with the free ones beside it, or with what lies beyond the end."""
        if start + size in self._size_at:
            size += self._remove(start + size)
        if start in self._start_of:
            start = self._start_of[start]
            size += self._remove(start)
        if start + size == self._end:
            self._end = start
            return
        insort(self._free, (size, start))
        self._size_at[start] = size
        self._start_of[start + size] = start

    def _remove(self, start: int) -> int:
        size = self._size_at.pop(start)
        del self._start_of[start + size]
        self._free.pop(bisect_left(self._free, (size, start)))
        return size

"""Pages of memory-mapped files: letting go of those that have been read."""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

MAPS = Path("/proc/self/maps")
RELEASE_BYTES = 16 * 2**20
"""Bytes that are read between two times that pages are let go of."""
MADV_DONTNEED = 4


class ReadOnce:
    """Keeps files that are read from beginning to end, through memory maps made after this, from staying in memory.

    On Linux; elsewhere the system takes the pages back when it needs them. Made before the files are opened: maps that
    were there are others', who may have written to theirs.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self.names = {str(file.resolve()) for file in files}
        self.others = self._maps()
        self.pending = 0

    def read(self, nbytes: int) -> None:
        """So much more has been read, and is not looked at again."""
        self.pending += nbytes
        if self.pending >= RELEASE_BYTES:
            self.release()

    def release(self) -> None:
        """Lets go of all pages, and of what was allocated and freed meanwhile, which glibc may keep.

        Whoever still looks at a page gets it from the file again.
        """
        self.pending = 0
        for start, end in self._maps() - self.others:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), MADV_DONTNEED)
        if platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)

    def _maps(self) -> set[tuple[int, int]]:
        if sys.platform != "linux" or not MAPS.is_file():
            return set()
        found = set()
        for line in MAPS.read_text().splitlines():
            where, _, _, _, _, *name = line.split(maxsplit=5)
            if name and name[0] in self.names:
                start, end = (int(address, 16) for address in where.split("-"))
                found.add((start, end))
        return found

"""What is looked at in a `.pth` or `.bin` file before torch unpacks it."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import IO, Any

MAX_PICKLE_BYTES = 200_000_000
MAX_NESTING = 200
"""Values inside each other. Python's `hash` of a tuple that is nested much deeper ends the process."""
LEGACY_PICKLES = 5
"""A file that is no zip holds so many, one after the other: magic number, protocol, machine, values, storages."""


def check_file(path: Path) -> bool:
    """Whether a file is a zip as torch writes them, else several pickles in a row.

    Raises:
        ValueError: Its records are packed, so that they may be larger than the file, or a pickle has no end.
        RecursionError: A pickle is nested too deeply.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            for _ in range(LEGACY_PICKLES):
                check_nesting(file)
        return False
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
        if packed or sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("its records are packed, as torch never does")
        for record in records:
            if record.filename.endswith("/data.pkl") and record.file_size < MAX_PICKLE_BYTES:
                with archive.open(record) as file:
                    check_nesting(file)
    return True


def check_nesting(file: IO[bytes]) -> None:
    """Walks through a pickle without making what it says; afterwards the file is at its end.

    Raises:
        RecursionError: Values are nested too deeply.
    """
    stack: list[int | None] = []  # how deep what is on the pickle's stack is nested; None: a mark
    memo: dict[Any, int] = {}
    for code, argument, _ in pickletools.genops(file):
        name = code.name
        if name == "MARK":
            stack.append(None)
        elif "PUT" in name:
            memo[argument] = stack[-1] or 0
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1] or 0
        elif "GET" in name:
            stack.append(memo[argument])
        else:
            taken = _take(stack, [kind.name for kind in code.stack_before])
            grows = "APPEND" in name or "SETITEM" in name or name in ("BUILD", "ADDITEMS")
            depth = max(taken[0], *(1 + part for part in taken[1:]), 0) if grows else 1 + max(taken, default=-1)
            if depth > MAX_NESTING:
                raise RecursionError
            stack += [depth] * len(code.stack_after)


def _take(stack: list[int | None], kinds: list[str]) -> list[int]:
    """Takes off what a code takes, in the order in which it was put there."""
    taken: list[int] = []
    for kind in reversed(kinds):
        if kind == "stackslice":
            while (part := stack.pop()) is not None:
                taken.append(part)
        elif kind != "mark":
            taken.append(stack.pop() or 0)
    return taken[::-1]

"""`litgpt serve` as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def served(folder: Path, *flags: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The server of a folder on a free port: its address and its process, which is killed at the end."""
    command = [sys.executable, "-m", "litgpt", "serve", str(folder), "--precision", "32-true", *flags]
    command += [] if "--port" in flags else ["--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    try:
        said = ""
        while "Ready at " not in said:
            line = process.stderr.readline()
            assert line, f"the server ended: {said}"
            said += line
        yield said.rpartition("Ready at ")[2].strip(), process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()

"""The runs in a folder, read from the files that training writes."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from litgpt.errors import LitGPTError, UnknownNameError, closest, quoted
from litgpt.reading import reading
from litgpt.training.metrics.loggers import Row, read_metrics, read_samples

MAX_RUNS, MAX_DEPTH, MAX_FOLDERS = 200, 5, 5000
"""Runs that are shown, folders inside each other that are searched for them, and folders altogether."""
MAX_BYTES = 64_000_000
"""Of a metrics or samples file."""
POINTS = 400
"""Of a curve, at most."""
SAMPLES, SAMPLE_LENGTH = 20, 10_000
"""Samples that are shown, the last ones, and characters of each."""
TAIL = 20_000
"""Bytes of a log that are shown, the last ones."""
MAX_SETTINGS = 200_000
ALIVE_SECONDS = 120.0
"""A run that somebody else started counts as running for so long after it wrote something."""
OWN = "studio"
"""The folder in a run's folder with what the studio that started it has written."""

Point = tuple[float, float | None]
"""A step, and a value; None where it is no finite number."""


@dataclass
class RunFolder:
    """What a run has written so far."""

    name: str
    """Its path below the folder of runs, with `/`."""
    path: Path
    _read: tuple[Any, list[Row]] = field(default=(None, []))

    @property
    def version(self) -> Path | None:
        """The newest `logs/csv/version_*`."""
        found = [one for one in (self.path / "logs" / "csv").glob("version_*") if one.name[8:].isdigit()]
        return max(found, key=lambda one: int(one.name[8:]), default=None)

    def stamp(self) -> str:
        """Another text whenever there is something new to read."""
        version = self.version
        files = [self.path / "report.html", self.log]
        files += [version / "metrics.csv", version / "samples.jsonl"] if version else []
        states = [file.stat() for file in files if file.is_file()]
        return "-".join(f"{state.st_mtime_ns:x}.{state.st_size:x}" for state in states)

    @property
    def log(self) -> Path:
        """What the run has printed, where a studio has started it."""
        return self.path / OWN / "log.txt"

    def rows(self) -> list[Row]:
        """The metrics, read again only where the file has changed.

        Raises:
            LitGPTError: It is too large or no metrics file.
        """
        file = self.version and self.version / "metrics.csv"
        if not file or not file.is_file():
            return []
        state = file.stat()
        key = (file, state.st_mtime_ns, state.st_size)
        if key != self._read[0]:
            check_size(file)
            with reading(file, "no metrics file", "delete the folder it is in"):
                self._read = (key, read_metrics(file))
        return self._read[1]

    def summary(self) -> dict[str, Any]:
        """Its last numbers, and when it last wrote."""
        rows = self.rows()
        wanted = ("step", "loss", "val_loss", "tokens_per_second", "peak_memory_gb", "epoch", "remaining_time")
        last = {name: next((finite(row[name]) for row in reversed(rows) if name in row), None) for name in wanted}
        files = [file for file in (self.version and self.version / "metrics.csv", self.log) if file and file.is_file()]
        written = max((file.stat().st_mtime for file in files), default=0.0)
        report = self.path / "report.html"
        ended = report.is_file() and report.stat().st_mtime >= written - 1
        return {**last, "written": written, "active": not ended and time.time() - written < ALIVE_SECONDS}

    def curves(self) -> dict[str, list[Point]]:
        """Step and value of everything that was logged, at most `POINTS` of each."""
        curves: dict[str, list[Point]] = {}
        for row in self.rows():
            for name, value in row.items():
                if name != "step" and "step" in row:
                    curves.setdefault(name, []).append((row["step"], finite(value)))
        return {name: thinned(curve) for name, curve in curves.items()}

    def samples(self) -> list[tuple[int, str]]:
        """What the model said on the way, the last ones."""
        file = self.version and self.version / "samples.jsonl"
        if not file or not file.is_file():
            return []
        check_size(file)
        return [(step, text[:SAMPLE_LENGTH]) for step, text in read_samples(file)[-SAMPLES:]]

    def settings(self) -> str:
        """Its settings: what it has saved, else what it was started with."""
        saved = [self.path / "final", *sorted(self.path.glob("step-*"), reverse=True)[:1]]
        files = [*(folder / "hyperparameters.yaml" for folder in saved), self.path / OWN / "config.yaml"]
        file = next((file for file in files if file.is_file()), None)
        return file.read_bytes()[:MAX_SETTINGS].decode(errors="replace") if file else ""

    def log_tail(self) -> str:
        """The end of what it has printed."""
        if not self.log.is_file():
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            return file.read(TAIL).decode(errors="replace")


def check_size(file: Path) -> None:
    """Raises a LitGPTError where a file is larger than what is read."""
    if file.stat().st_size > MAX_BYTES:
        raise LitGPTError(f"{file} has more than {MAX_BYTES // 1_000_000} MB, which are not shown.")


def finite(value: float) -> float | None:
    """A number, or None for what JSON has no number for."""
    return value if math.isfinite(value) else None


def thinned(curve: Sequence[Point]) -> list[Point]:
    """At most `POINTS` of a curve, evenly chosen, the first and the last among them."""
    last = len(curve) - 1
    if last < POINTS:
        return list(curve)
    return [curve[round(number * last / (POINTS - 1))] for number in range(POINTS)]


class RunFolders:
    """The runs below a folder; they are asked for by the names that were found, which never become paths."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, RunFolder] = {}

    def scan(self) -> list[RunFolder]:
        """All runs, in the order of their names."""
        found = {}
        for path in _run_folders(self.root):
            name = path.relative_to(self.root).as_posix()
            found[name] = self._known.get(name) or RunFolder(name, path)
            if len(found) == MAX_RUNS:
                break
        self._known = found
        return sorted(found.values(), key=lambda run: run.name)

    def __getitem__(self, name: str) -> RunFolder:
        """The run of a name.

        Raises:
            UnknownNameError: There is none.
        """
        if name not in self._known:
            self.scan()
        if name not in self._known:
            raise UnknownNameError(f"There is no run {quoted(name)} in {self.root}.{closest(name, self._known)}")
        return self._known[name]


def _run_folders(root: Path) -> Iterator[Path]:
    """The folders of runs below `root`, without following links."""
    waiting, seen = [(root, 0)], 0
    while waiting and seen < MAX_FOLDERS:
        folder, depth = waiting.pop()
        seen += 1
        try:
            below = [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
        except OSError:
            continue
        names = {path.name for path in below}
        if (folder / OWN / "config.yaml").is_file() or ("logs" in names and (folder / "logs" / "csv").is_dir()):
            if depth:
                yield folder
        elif depth < MAX_DEPTH:
            waiting += [(path, depth + 1) for path in sorted(below, reverse=True)]

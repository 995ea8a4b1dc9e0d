"""Runs that the studio starts and stops: each is a process of its own, which goes on when the studio ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from litgpt.checkpoint.atomic import atomic_file
from litgpt.cli.studio.recipe import ask
from litgpt.cli.studio.runs import MAX_DEPTH, OWN, RunFolder, RunFolders
from litgpt.errors import LitGPTError
from litgpt.reading import read_json, reading

STATE = "process.json"


@dataclass
class Started:
    """A process that a studio has started, as it is noted in the run's folder."""

    pid: int
    began: str
    """When, in the system's own words: another process may get the same number later."""
    command: str
    code: int | None = None
    """What it ended with, where this studio saw it."""
    stopped: bool = False
    """Whether it was asked to stop."""

    @property
    def running(self) -> bool:
        """Whether it is this very process that runs under its number."""
        return self.code is None and self.pid > 1 and bool(self.began) and began(self.pid) == self.began


def began(pid: int) -> str:
    """When a process began, in the system's own words; empty: there is none, or it has ended."""
    if Path("/proc/self/stat").is_file():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] == "Z" else fields[19]
    done = subprocess.run(["ps", "-o", "lstart=", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    text = done.stdout.strip()
    return "" if not text or text.split()[-1].startswith("Z") else text.rpartition(" ")[0].strip()


class Processes:
    """What this studio, or one before it, has started in a folder of runs."""

    def __init__(self, runs: RunFolders) -> None:
        self._runs = runs
        self._own: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def state_of(self, run: RunFolder) -> dict[str, Any]:
        """Whether a studio started the run, whether it runs, and what it ended with."""
        started = self._started(run)
        if started is None:
            return {"started": False}
        return {"started": True, "active": started.running, "code": started.code, "stopped": started.stopped}

    def start(self, command: str, text: str) -> str:
        """Starts a run from a recipe; returns its name.

        Raises:
            LitGPTError: The command can't take the recipe, or its folder is another run's or outside.
        """
        with self._lock:
            told = ask("check", command, text)
            name, folder = self._place(Path(told["out_dir"]), told["resume"])
            own = folder / OWN
            own.mkdir(parents=True, exist_ok=True)
            own.chmod(0o700)  # a recipe may hold a token
            (own / "config.yaml").write_text(text, encoding="utf-8")
            line = [sys.executable, "-m", "litgpt", command, "--config", str(own / "config.yaml")]
            with (own / "log.txt").open("ab") as log:
                process = subprocess.Popen(
                    line, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            self._own[name] = process
            _write(folder, Started(process.pid, began(process.pid), command))
            return name

    def stop(self, run: RunFolder) -> None:
        """Asks a run to save and end: as Ctrl-C does, and where that was done before, as the system does.

        Raises:
            LitGPTError: No studio has started it, or it has ended.
        """
        with self._lock:
            started = self._started(run)
            if started is None:
                raise LitGPTError(f"The studio didn't start {run.name}; stop it by Ctrl-C where it was started.")
            if not started.running:
                raise LitGPTError(f"{run.name} has ended already.")
            with suppress(ProcessLookupError):  # it ended this moment
                if started.stopped:  # a second Ctrl-C would end it without saving
                    os.kill(started.pid, signal.SIGTERM)
                else:
                    os.killpg(started.pid, signal.SIGINT)  # all its ranks, as a terminal does
            started.stopped = True
            _write(run.path, started)

    def _place(self, folder: Path, resume: bool) -> tuple[str, Path]:
        """The name and the folder of a new run."""
        root = self._runs.root
        if not folder.is_relative_to(root) or not 1 <= len(folder.relative_to(root).parts) <= MAX_DEPTH:
            raise LitGPTError(f"out_dir is {folder}; give a folder inside {root}, where the studio sees it.")
        name = folder.relative_to(root).as_posix()
        run = RunFolder(name, folder)
        if self.state_of(run).get("active"):
            raise LitGPTError(f"A run goes on in {folder}; stop it, or give another out_dir.")
        if run.version is not None and not resume:
            raise LitGPTError(f"{folder} holds a run already; give another out_dir, or resume: true to go on with it.")
        return name, folder

    def _started(self, run: RunFolder) -> Started | None:
        """What is noted of a run's process, with what has become of it."""
        file = run.path / OWN / STATE
        if not file.is_file():
            return None
        with reading(file, "not as the studio writes it", "delete it"):
            started = Started(**read_json(file))
            if not (isinstance(started.pid, int) and isinstance(started.began, str)):
                raise TypeError("its pid is no number")
        process = self._own.get(run.name)
        if process is not None and started.pid == process.pid and started.code is None:
            started.code = process.poll()
            if started.code is not None:
                _write(run.path, started)
        return started


def _write(folder: Path, started: Started) -> None:
    with atomic_file(folder / OWN / STATE) as temporary:
        temporary.write_text(json.dumps(asdict(started)), encoding="utf-8")

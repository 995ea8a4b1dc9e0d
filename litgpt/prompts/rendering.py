"""Asks processes that run chat templates; a process ends with the template that goes beyond the limits.

Each thread that renders has a process for that time; idle ones wait for the next rendering. Processes are started when
they are needed and end with this one.
"""

from __future__ import annotations

import atexit
import json
import os
import pickle
import subprocess
import sys
from typing import Any

from litgpt.errors import LitGPTError, escaped

MAX_SECONDS = 5.0
"""CPU time one rendering may take (a real one takes milliseconds)."""
MAX_BYTES = 512_000_000
"""Memory that one rendering may take."""
MAX_ANSWER = 200_000_000
"""Bytes of a rendered text."""
MAX_IDLE = 4
KEPT = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONHOME")
"""What the processes see of the environment; a user's access tokens are not among it."""
START = "import json, runpy, sys; file, *sys.path = json.loads(sys.argv[1]); runpy.run_path(file, run_name='__main__')"


class TemplateFailure(Exception):
    """A template did not render, and why."""


class TemplateProcess:
    """One process that runs templates."""

    usable = True
    """Whether it can be asked again."""

    def __init__(self) -> None:
        file = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sandbox.py")
        places = json.dumps([file, *(os.path.abspath(place) for place in sys.path)])
        environment = {name: os.environ[name] for name in KEPT if name in os.environ}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", START, places],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                start_new_session=True,  # Ctrl-C in a terminal is not for it
            )
        except OSError as error:
            raise LitGPTError(f"No process can be started that runs chat templates ({error.strerror}).") from None

    @property
    def runs(self) -> bool:
        """Whether the process is there."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def ask(self, source: str, context: dict[str, Any] | None) -> dict[str, Any]:
        """What `sandbox.answer` gives.

        Raises:
            TemplateFailure: The template failed, or ended the process.
        """
        request = pickle.dumps((source, context, MAX_SECONDS, MAX_BYTES))
        pipe, answers = self._process.stdin, self._process.stdout
        assert pipe is not None and answers is not None
        self.usable = False
        try:
            pipe.write(len(request).to_bytes(8, "little") + request)
            pipe.flush()
            size = int.from_bytes(answers.read(8), "little")
            content = answers.read(size) if 0 < size < MAX_ANSWER else b""
        except BrokenPipeError:
            content = b""
        if not content:
            raise TemplateFailure("it computes or writes without end")
        found: dict[str, Any] = json.loads(content)
        self.usable = "ended" not in found
        if "error" in found:
            raise TemplateFailure(escaped(" ".join(found["error"].split())).rstrip("."))
        return found

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def forget(self) -> None:
        """In a process that was forked: the other one is its parent's."""
        self._process.returncode = 0


_idle: list[TemplateProcess] = []


def ask(source: str, context: dict[str, Any] | None) -> dict[str, Any]:
    """The text of a template, and the spans of its generation blocks; without a context it is only compiled.

    Raises:
        TemplateFailure: The template failed, or went beyond the limits.
    """
    process = _take()
    try:
        return process.ask(source, context)
    finally:
        if process.usable and len(_idle) < MAX_IDLE:
            _idle.append(process)
        else:
            process.close()


def _take() -> TemplateProcess:
    """An idle process, else a new one; one that has ended meanwhile (memory ran out, say) is no template's fault."""
    while True:
        try:
            process = _idle.pop()
        except IndexError:
            return TemplateProcess()
        if process.runs:
            return process
        process.close()


def _close_all() -> None:
    while _idle:
        _idle.pop().close()


def _forget_all() -> None:
    for process in _idle:
        process.forget()
    _idle.clear()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forget_all)

"""Line editing at a terminal: a history that outlives the session, and completion of commands, settings and files."""

from __future__ import annotations

import atexit
import glob
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

HISTORY_VARIABLE = "LITGPT_CHAT_HISTORY"
"""Where the history is, if not at its usual place; empty: nowhere."""
HISTORY_LINES = 1000
FILES = 200
"""Names that one press of Tab lists."""


def edit_lines(commands: Iterable[str], settings: Callable[[], Iterable[str]]) -> None:
    """Gives `input` line editing, where the system has a library for it.

    Args:
        commands: As they are shown, with what they take: `/load FILE`.
        settings: The names that `/set` knows.
    """
    try:
        import readline  # input() uses it once it is imported
    except ImportError:
        return
    found: list[str] = []

    def complete(text: str, state: int) -> str | None:
        if state == 0:
            line = readline.get_line_buffer()[: readline.get_endidx()]
            found[:] = completions(line, list(commands), settings())
        return found[state] if state < len(found) else None

    readline.set_completer_delims(" \t\n")
    readline.set_completer(complete)
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
    file = history_file()
    if file is None:
        return
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o600)
        readline.set_history_length(HISTORY_LINES)
        readline.read_history_file(file)
        atexit.register(partial(_save, file, readline.get_current_history_length()))


def history_file() -> Path | None:
    """The file with the lines of earlier sessions; None: none is kept."""
    own = os.environ.get(HISTORY_VARIABLE)
    if own is not None:
        return Path(own).expanduser() if own else None
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "litgpt" / "chat_history"


def completions(line: str, commands: Iterable[str], settings: Iterable[str]) -> list[str]:
    """What the last word of a line may become."""
    name, space, rest = line.partition(" ")
    if not name.startswith("/"):
        return []
    if not space:
        heads = (command.partition(" ") for command in commands)
        return [head + takes for head, takes, _ in heads if head.startswith(name)]
    if name == "/set":
        return [f"{setting} " for setting in settings if setting.startswith(rest)]
    if f"{name} FILE" not in commands:
        return []
    names = sorted(glob.glob(glob.escape(os.path.expanduser(rest.rpartition(" ")[2])) + "*"))
    return [f"{file}{os.sep}" if os.path.isdir(file) else file for file in names[:FILES]]


def _save(file: Path, before: int) -> None:
    """Adds this session's lines to those that others may have added since."""
    import readline

    with suppress(OSError):
        readline.append_history_file(readline.get_current_history_length() - before, file)

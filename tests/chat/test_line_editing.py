"""What Tab and the arrows do in the terminal chat."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from litgpt.chat.line_editing import HISTORY_VARIABLE, completions, history_file
from litgpt.chat.terminal import COMMANDS
from tests.paths import ROOT

SETTINGS = ["temperature", "top_k", "top_p", "max_new_tokens"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/re", ["/reset"]),
        ("/s", ["/save ", "/set ", "/system "]),
        ("/x", []),
        ("", []),
        ("Hello /re", []),
        ("/set to", ["top_k ", "top_p "]),
        ("/set top_k 1", []),
        ("/system Be", []),
        ("/reset ", []),
    ],
)
def test_a_word_is_completed_where_it_can_only_be_a_name(line, expected):
    assert completions(line, COMMANDS, SETTINGS) == expected


def test_files_are_completed(tmp_path, monkeypatch):
    (tmp_path / "chat [1].json").touch()
    (tmp_path / "chats").mkdir()
    monkeypatch.chdir(tmp_path)
    assert completions("/load ch", COMMANDS, SETTINGS) == ["chat [1].json", "chats/"]
    assert completions(f"/save {tmp_path}/chats", COMMANDS, SETTINGS) == [f"{tmp_path}/chats/"]


def test_the_history_is_where_it_is_said_to_be(monkeypatch):
    monkeypatch.delenv(HISTORY_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert history_file() == Path("/state/litgpt/chat_history")
    monkeypatch.setenv(HISTORY_VARIABLE, "")
    assert history_file() is None


def typed(keys: str, history: Path) -> str:
    """What `input` returns in a terminal where these keys are pressed."""
    pty = pytest.importorskip("pty")
    pytest.importorskip("readline")
    program = (
        "from litgpt.chat.line_editing import edit_lines\n"
        "edit_lines(['/reset', '/load FILE'], lambda: [])\n"
        "print('GOT', repr(input('> ')))\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, HISTORY_VARIABLE: str(history), "TERM": "xterm", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = b""
    while not shown.endswith(b"> "):
        shown += os.read(ours, 1024)
    os.write(ours, keys.encode())
    try:
        while part := os.read(ours, 1024):
            shown += part
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait(20) == 0, shown
    return shown.decode().rpartition("GOT ")[2].strip()


def test_keys_complete_and_bring_lines_of_earlier_sessions_back(tmp_path):
    history = tmp_path / "state" / "history"
    assert typed("/re\t\n", history) == repr("/reset")
    assert typed("Hello\n", history) == repr("Hello")
    assert history.stat().st_mode & 0o077 == 0
    assert typed("\x1b[A\x1b[A\n", history) == repr("/reset")
    assert history.read_text().split() == ["/reset", "Hello", "/reset"]

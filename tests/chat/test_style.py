"""Colours change no text, and follow Markdown as it streams."""

from __future__ import annotations

import io
import re

import pytest

from litgpt.chat.style import BOLD, CYAN, RESET, MarkdownStyle, wants_colour

TEXT = "# Title\nSome **strong** and `code`.\n```python\nx = 'a ** b'\n```\nDone * 2."


@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_the_text_is_whole_whatever_the_pieces(step):
    style = MarkdownStyle()
    styled = "".join(style.push(TEXT[i : i + step]) for i in range(0, len(TEXT), step)) + style.close()
    assert re.sub(r"\x1b\[\d+m", "", styled) == TEXT
    whole = MarkdownStyle()
    assert styled == whole.push(TEXT) + whole.close()


def test_what_gets_which_colour():
    style = MarkdownStyle()
    styled = style.push(TEXT) + style.close()
    assert f"{BOLD}# Title" in styled
    assert "strong" in styled.partition(BOLD + "*")[2]
    assert f"{CYAN}`code`{RESET}." in styled
    assert f"{CYAN}```python\nx = 'a ** b'\n```\n{RESET}Done * 2." in styled


def test_codes_that_a_model_says_are_not_obeyed():
    assert MarkdownStyle().push("a\x1b[2Jb\x9b\tc") == "a\ufffd[2Jb\ufffd\tc"


def test_no_colours_where_they_are_not_wanted(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert wants_colour(Screen()) and not wants_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(Screen())

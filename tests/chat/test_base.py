"""`litgpt chat` as a user at a terminal, or a pipe, meets it."""

from __future__ import annotations

import io
import os
import signal
import threading
from pathlib import Path

import pytest

from litgpt.chat.base import main
from litgpt.errors import LitGPTError
from litgpt.generate.request import Request
from litgpt.generate.sampling import Sampling
from litgpt.generate.speaker import Speaker
from tests.generate.folder import make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("chat") / "tiny")


@pytest.fixture
def chat(folder, monkeypatch, capsys):
    """Runs a chat over what the user types; returns the answers, and what was told beside them."""

    def run(typed: str, **flags):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        main(folder, **{"temperature": 0.0, "precision": "32-true", "max_new_tokens": 6, **flags})
        out, err = capsys.readouterr()
        answers = [part.partition("\n\n>> Prompt: ")[0] for part in out.split(">> Reply: ")[1:]]
        return answers, err

    return run


def alone(folder: Path, *messages: tuple[str, str]) -> str:
    """The greedy answer to a conversation."""
    speaker = Speaker.load(folder, "cpu", "32-true")
    prompt = speaker.encode_messages([{"role": role, "content": content} for role, content in messages])
    return "".join(speaker.reply(speaker.engine(), prompt, Sampling(temperature=0), 6))


def test_it_answers_with_the_conversation_in_mind(chat, folder):
    answers, err = chat("Hello\nAnd now?\n")
    first = alone(folder, ("user", "Hello"))
    assert answers == [first, alone(folder, ("user", "Hello"), ("assistant", first), ("user", "And now?"))]
    assert "a conversation may have 128 tokens (KV cache: 0.00 GB)" in err
    assert err.count("tokens/sec") == 2
    assert err.count("--max_new_tokens allows more") == 1


@pytest.mark.parametrize("ending", ["\n", "!quit\n", "!exit\n", "!QUIT\n", ""])
def test_what_ends_a_chat(chat, ending):
    answers, _ = chat("Hello\n" + ending + ("Never read\n" if ending else ""))
    assert len(answers) == 1


def test_reset_forgets(chat, folder):
    answers, err = chat("Hello\n/reset\nHello\n")
    assert answers == [alone(folder, ("user", "Hello"))] * 2
    assert "starts over" in err


def test_a_system_prompt(chat, folder):
    answers, _ = chat("/system Be brief.\nHello\n/system\nHello\n")
    assert answers == [
        alone(folder, ("system", "Be brief."), ("user", "Hello")),
        alone(folder, ("user", "Hello")),
    ]


def test_help_and_a_mistyped_command_are_not_sent(chat):
    answers, err = chat("/help\n/rest\n")
    assert answers == []
    assert "/system TEXT" in err and "There is no command /rest. Closest: /reset" in err


def test_a_text_that_only_looks_like_a_command_is_sent(chat, folder):
    answers, _ = chat("/etc/hosts?\n")
    assert answers == [alone(folder, ("user", "/etc/hosts?"))]


def test_prompts_of_several_lines(chat, folder):
    answers, _ = chat("One\n\nTwo\n!submit\n!quit\n", multiline=True)
    assert answers == [alone(folder, ("user", "One\n\nTwo"))]


def test_several_lines_that_end_with_the_input(chat, folder):
    answers, _ = chat("One\nTwo", multiline=True)
    assert answers == [alone(folder, ("user", "One\nTwo"))]


def test_a_prompt_beyond_the_context_is_told_and_the_chat_goes_on(chat, folder):
    answers, err = chat("hay " * 200 + "\nHello\n")
    assert answers == [alone(folder, ("user", "Hello"))]
    assert "shorten the prompt" in err


def test_a_full_context_is_told(chat):
    _, err = chat("Question number one?\n" * 8)
    assert "the oldest 2 messages are forgotten" in err


def test_ctrl_c_stops_the_answer_and_not_the_chat(chat, monkeypatch):
    accept = Request.accept

    def interrupted(self: Request, token: int) -> None:
        accept(self, token)
        if len(self.output) == 2 and not interrupts:
            interrupts.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    interrupts: list[bool] = []
    monkeypatch.setattr(Request, "accept", interrupted)
    before = signal.getsignal(signal.SIGINT)
    answers, _ = chat("Hello\n/reset\nHello\n")
    assert answers[1].startswith(answers[0]) and len(answers[0]) < len(answers[1])
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_at_the_prompt_ends_the_chat(chat, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    assert chat("")[0] == []


def test_it_works_outside_the_main_thread(chat):
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.extend(chat("Hello\n")[0]))
    thread.start()
    thread.join()
    assert len(answers) == 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (dict(compile=True), "not built yet"),
        (dict(quantize="bnb.nf4"), "bnb.nf4"),
        (dict(max_new_tokens=0), "max_new_tokens is 0"),
        (dict(top_p=2.0), "top_p is 2.0"),
        (dict(checkpoint_dir=Path("nowhere")), "nowhere"),
    ],
)
def test_a_mistake_is_one_sentence(folder, flags, words):
    with pytest.raises(LitGPTError, match=words):
        main(**{"checkpoint_dir": folder, **flags})

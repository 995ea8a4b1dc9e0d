"""`litgpt chat` as a user at a terminal, or a pipe, meets it."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from litgpt.chat.base import main
from litgpt.engine.inference_model import InferenceModel
from litgpt.engine.request import Request
from litgpt.engine.sampling import Logprob, Sampling
from litgpt.errors import LitGPTError, warn_once
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
    inference_model = InferenceModel.load(folder, "cpu", "32-true")
    prompt = inference_model.encode_messages([{"role": role, "content": content} for role, content in messages])
    return "".join(inference_model.reply(inference_model.engine(), prompt, Sampling(temperature=0), 6))


def test_it_answers_with_the_conversation_in_mind(chat, folder):
    answers, err = chat("Hello\nAnd now?\n")
    first = alone(folder, ("user", "Hello"))
    assert answers == [first, alone(folder, ("user", "Hello"), ("assistant", first), ("user", "And now?"))]
    assert "The KV cache for 1 x 128 tokens takes 0.03 MB.\n" in err and "a conversation may have 128 tokens" in err
    assert err.count("tokens/sec") == 2
    assert err.count("/set max_new_tokens allows more") == 1


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
    assert "/system TEXT" in err and "/set NAME VALUE" in err and "There is no command /rest. Closest: /reset" in err


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

    def interrupted(self: Request, token: int, logprob: Logprob | None = None) -> None:
        accept(self, token, logprob)
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
        (dict(quantize="bnb.nf4", precision="bf16-mixed"), "bnb.nf4 computes in one dtype"),
        (dict(max_new_tokens=0), "max_new_tokens is 0"),
        (dict(top_p=2.0), "top_p is 2.0"),
        (dict(checkpoint_dir=Path("nowhere")), "nowhere"),
    ],
)
def test_a_mistake_is_one_sentence(folder, flags, words):
    with pytest.raises(LitGPTError, match=words):
        main(**{"checkpoint_dir": folder, **flags})


def test_settings_change_the_answers_to_come(chat, folder):
    answers, err = chat(
        "/set max_new_tokens 2\nHello\n/set temperature hot\n/set heat 1\n/set top_p 7\n/set seed\n/set\n"
    )
    assert alone(folder, ("user", "Hello")).startswith(answers[0]) and len(answers[0]) < 20
    assert "max_new_tokens is 2\n" in err
    assert "temperature can't be 'hot'" in err and "There is no setting 'heat'" in err
    assert "top_p is 7.0; it must be" in err and "/set seed needs a value" in err
    assert "\ntop_p is 1.0\n" in err


def test_a_saved_conversation_goes_on(chat, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (first,), _ = chat("/system Be brief.\nHello\n/save ~/talk.json\n")
    turns = [("system", "Be brief."), ("user", "Hello"), ("assistant", first)]
    answers, err = chat(f"/load {tmp_path / 'talk.json'}\nAnd now?\n")
    assert chat("/load ~/talk.json\nAnd now?\n")[0] == answers
    assert answers == [alone(folder, *turns, ("user", "And now?"))]
    assert "after 2 messages" in err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "There is no file"),
        ("[" * 100_000, "no conversation that /save wrote"),
        ("[]", "no conversation that /save wrote"),
        ("{", "no conversation that /save wrote"),
        ('{"system": null, "messages": [{"role": "user"}]}', "no conversation that /save wrote"),
        ('{"system": null, "messages": [{"role": "user", "content": "Hi"}]}', "questions and answers in turns"),
        ('{"system": 3, "messages": []}', "questions and answers in turns"),
    ],
)
def test_what_is_no_saved_conversation_is_told(chat, folder, tmp_path, content, words):
    file = tmp_path / "talk.json"
    if content is not None:
        file.write_text(content)
    answers, err = chat(f"/load {file}\n/load\n/save\n/save {tmp_path / 'file' / chr(0)}\nHello\n".replace("\0", "x"))
    assert answers == [alone(folder, ("user", "Hello"))]
    assert words in err and "/load needs a file" in err and "/save needs a file" in err


def test_a_system_prompt_flag(chat, folder):
    answers, _ = chat("Hello\n", sys_prompt="Be brief.")
    assert answers == [alone(folder, ("system", "Be brief."), ("user", "Hello"))]


def test_a_style_with_no_place_for_a_system_prompt_says_so(monkeypatch, capsys, tmp_path):
    folder = make_folder(tmp_path / "plain", template=None)
    warn_once.cache_clear()
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n/system Be brief.\nAnd now?\n"))
    main(folder, precision="32-true", temperature=0.0, max_new_tokens=6, sys_prompt="Be long.")
    out, err = capsys.readouterr()
    assert "litgpt: The prompt style Default has no place for a system prompt: it is left out." in err
    assert "Default has no place for a system prompt; leave it out" in err and "starts over" not in err
    first, second = (part.partition("\n\n>> Prompt: ")[0] for part in out.split(">> Reply: ")[1:])
    assert second == alone(folder, ("user", "Hello"), ("assistant", first), ("user", "And now?"))


def test_an_answer_that_fills_the_context_says_so(chat):
    _, err = chat("Hello\n", max_new_tokens=500)
    assert "context is full, so the answer ends" in err and "allows more" not in err


def test_an_answer_that_fails_does_not_end_the_chat(chat):
    answers, err = chat("/set top_k 1\n/set presence_penalty -3e38\n/set frequency_penalty -3e38\nHello\n/set seed 1\n")
    assert len(answers) == 1 and "leave no token to choose" in err and "seed is 1" in err


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_at_a_terminal_it_is_styled_and_ctrl_c_stops_the_answer(folder):
    import pty

    main_end, terminal = pty.openpty()
    command = [sys.executable, "-m", "litgpt", "chat", str(folder), "--max_new_tokens", "120", "--precision", "32-true"]
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    seen = ""

    def until(words: str) -> None:
        nonlocal seen
        while words not in seen:
            ready, _, _ = select.select([main_end], [], [], 120)
            assert ready, seen
            seen += os.read(main_end, 4096).decode(errors="replace")
        seen = seen.partition(words)[2]

    try:
        until("Prompt: ")
        os.write(main_end, "Grüße!\n".encode())
        until("\x1b[1m>> Reply: \x1b[0m")
        os.write(main_end, b"\x03")  # the terminal makes it a signal
        until("Time for inference")
        until("Prompt: ")
        os.write(main_end, b"/set temperature 0\n")
        until("temperature is 0.0")
        until("Prompt: ")
        os.write(main_end, b"\n")
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(main_end)

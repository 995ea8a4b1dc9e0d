"""The terminal side of `litgpt chat`: reads what the user types, prints what the model says as it comes."""

from __future__ import annotations

import io
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from litgpt.chat.line_editing import edit_lines
from litgpt.chat.session import ChatSession
from litgpt.chat.style import BOLD, RESET, MarkdownStyle, wants_colour
from litgpt.engine.detokenizer import TextStream
from litgpt.engine.metrics import RequestMetrics, print_status
from litgpt.errors import LitGPTError, closest, progress

ENDINGS = ("!quit", "!exit")
SUBMIT = "!submit"
COMMANDS = {
    "/help": "show these commands",
    "/load FILE": "go on with a conversation that /save wrote",
    "/reset": "start over: forget all turns, keep the system prompt",
    "/save FILE": "write the conversation to a file",
    "/set NAME VALUE": "change temperature, top_k, max_new_tokens …; alone, show them all",
    "/system TEXT": "set the system prompt and start over; without TEXT, go back to the model's own",
}


def prepare_input(settings: Callable[[], Iterable[str]]) -> None:
    """Gives a terminal line editing, and lets input that is not text through as replacement characters.

    Args:
        settings: The names that `/set` knows.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # an answer may have characters that the terminal hasn't
        sys.stdout.reconfigure(errors="replace")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
        if sys.stdin.isatty():
            edit_lines(COMMANDS, settings)


class Terminal:
    """A chat in the terminal, until the user ends it."""

    def __init__(self, session: ChatSession, multiline: bool = False) -> None:
        self.session = session
        self.multiline = multiline
        self.colourful = wants_colour()
        self._cut_explained = False

    def run(self) -> None:
        """Takes turns until an empty line, `!quit`, Ctrl-C at the prompt, or the end of the input."""
        end = f"`{ENDINGS[0]}`" if self.multiline else "an empty line"
        progress(f"To end, enter {end}. /help shows the commands; Ctrl-C stops an answer.")
        if not self.session.inference_model.multi_turn:
            progress("This model's prompt style knows single prompts: each answer is given without the earlier ones.")
        if self.multiline:
            progress(f"A prompt goes on until a line that says {SUBMIT}.")
        while (text := self.read()) is not None:
            name, _, argument = text.partition(" ")
            if re.fullmatch(r"/[a-z]+", name):
                self.obey(name, argument.strip())
            elif text:
                self.answer(text)

    def read(self) -> str | None:
        """The next prompt; None: the user is done."""
        try:
            line = input(self._bold(">> Prompt: ", invisible=True))
            if not self.multiline:
                return None if line.strip().lower() in ("", *ENDINGS) else line
            lines: list[str] = []
            while line.strip().lower() != SUBMIT:
                if line.strip().lower() in ENDINGS:
                    return None
                lines.append(line)
                line = self._next_line()
            return "\n".join(lines).strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return None

    def _next_line(self) -> str:
        try:
            return input()
        except EOFError:  # what was typed before it still counts; the next read meets the end again
            return SUBMIT

    def _bold(self, text: str, invisible: bool = False) -> str:
        """A label; `invisible`: line editing must not count the codes as characters."""
        if not self.colourful:
            return text
        on, off = (f"\x01{code}\x02" if invisible else code for code in (BOLD, RESET))
        return f"{on}{text}{off}"

    def obey(self, name: str, argument: str) -> None:
        """Carries out a command."""
        if name == "/help":
            for command, meaning in COMMANDS.items():
                print_status(f"{command:<17}{meaning}")
        elif name == "/reset":
            self.session.reset()
            print_status("The conversation starts over.")
        elif name in ("/save", "/load", "/set", "/system"):
            try:
                print_status(self._obey_with(name, argument))
            except LitGPTError as error:
                print_status(str(error))
        else:
            known = [command.partition(" ")[0] for command in COMMANDS]
            print_status(f"There is no command {name}.{closest(name, known)} /help shows all.")

    def _obey_with(self, name: str, argument: str) -> str:
        """Carries out a command that may fail; what to say of it."""
        session = self.session
        if name == "/set":
            setting, _, value = argument.partition(" ")
            if setting and not value.strip():
                raise LitGPTError(f"/set {setting} needs a value; /set alone shows all.")
            if setting:
                session.set(setting, value.strip())
            shown = {setting: session.settings[setting]} if setting else session.settings
            return "\n".join(f"{key} is {'null' if value is None else value}" for key, value in shown.items())
        if name == "/system":
            session.set_system_prompt(argument)
            whose = "set" if argument else "the model's own"
            return f"The system prompt is {whose}; the conversation starts over."
        if not argument:
            raise LitGPTError(f"{name} needs a file: {name} FILE.")
        if name == "/save":
            session.save(argument)
            return f"The conversation is in {argument}."
        session.load(argument)
        return f"The conversation in {argument} goes on after {len(session.messages)} messages."

    def answer(self, text: str) -> None:
        """Prints the model's answer."""
        try:
            reply, n_dropped = self.session.ask(text)
        except LitGPTError as error:
            print_status(str(error))
            return
        if n_dropped:
            print_status(f"(The context is full: the oldest {n_dropped} messages are forgotten.)")
        print(self._bold(">> Reply: "), end="", flush=True)
        pieces: list[str] = []
        style = MarkdownStyle() if self.colourful else None
        problem = ""
        try:
            with stopped_by_ctrl_c(reply):
                for piece in reply:
                    pieces.append(piece)
                    print(piece if style is None else style.push(piece), end="", flush=True)
        except LitGPTError as error:
            problem = str(error)
        print(style.close() if style else "", end="\n\n", flush=True)
        self.session.add_answer("".join(pieces))
        if problem:
            print_status(problem)
        else:
            progress(f"Time for inference: {RequestMetrics.of(reply.request)}")
        if reply.finish_reason == "length":
            self._explain_cut(reply.request.n_generated)

    def _explain_cut(self, n_tokens: int) -> None:
        if n_tokens < self.session.max_new_tokens:
            print_status("(The context is full, so the answer ends here.)")
        elif not self._cut_explained:
            self._cut_explained = True
            print_status(f"(The answer was cut at {n_tokens} tokens; /set max_new_tokens allows more.)")


@contextmanager
def stopped_by_ctrl_c(reply: TextStream) -> Iterator[None]:
    """Inside, Ctrl-C ends the answer and not the program; a second one ends the program."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        reply.request.cancel()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)

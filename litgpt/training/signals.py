"""Ctrl-C, SIGTERM and the end of the terminal end a run after the step it is in, so that it can be saved."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

HANGUP = getattr(signal, "SIGHUP", None)
"""The terminal is gone; Windows has none."""


class StopRequest:
    """The first signal to stop that came, if any."""

    signal: signal.Signals | None = None


@contextmanager
def stop_requests(says: bool = True) -> Iterator[StopRequest]:
    """Notes the first such signal while it is open, and `says` so at once; a second Ctrl-C interrupts."""
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = signal.Signals(number)
        if number == HANGUP:
            _drop_output()
        elif says:
            again = "; Ctrl-C again stops at once, without saving" if number == signal.SIGINT else ""
            with suppress(OSError):  # not by print, which may be what was interrupted
                os.write(2, f"\nStopping: all is saved after this step{again}.\n".encode())

    in_main_thread = threading.current_thread() is threading.main_thread()  # signals are the main thread's
    numbers = [signal.SIGINT, signal.SIGTERM] if in_main_thread else []
    if in_main_thread and HANGUP is not None and signal.getsignal(HANGUP) != signal.SIG_IGN:  # which nohup sets
        numbers.append(HANGUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _drop_output() -> None:
    """Lets what is printed to a terminal that is gone, or to a program that ended with it, go nowhere."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)

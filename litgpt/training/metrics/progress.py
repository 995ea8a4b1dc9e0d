"""What a run prints while it trains: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from litgpt.training.schedule import Counters, RunLimits

BAR = 20
"""Width of the bar, columns."""


SHOWN = {"ppl": ("perplexity", ".2f"), "accuracy": ("accuracy", ".3f"), "margin": ("margin", ".4f")}
"""Metrics that are printed beside the loss where there are any → their names, and how they are written."""


def named(name: str, value: float) -> str:
    """A metric of `SHOWN` as it is printed."""
    title, form = SHOWN[name]
    return f"{title} {value:{form}}"


@dataclass
class Screen:
    """One line for each logged step; on a terminal it is a bar, written over the one before until something else is
    printed."""

    say: Callable[[str], None]
    limits: RunLimits
    in_place: bool = False
    open_line: bool = False
    val_loss: float | None = None

    @classmethod
    def on(cls, say: Callable[[str], None], limits: RunLimits, first_rank: bool) -> Screen:
        """On the standard output, of the first rank alone."""

        def quietly(text: str) -> None:
            with suppress(OSError):  # a terminal that is gone costs no run
                say(text)

        return cls(quietly if first_rank else lambda text: None, limits, in_place=first_rank and sys.stdout.isatty())

    def step(self, counters: Counters, metrics: Mapping[str, float]) -> None:
        """A training step, with the metrics that the CSV file gets."""
        if self.in_place:
            columns = shutil.get_terminal_size().columns
            with suppress(OSError):
                sys.stdout.write(f"\r\x1b[K{self.bar(counters, metrics)[: max(1, columns - 1)]}")
                sys.stdout.flush()
            self.open_line = True
        else:
            self.say(self.plain(counters, metrics))

    def plain(self, counters: Counters, metrics: Mapping[str, float]) -> str:
        """The line of a step where output is not a terminal."""
        return (
            f"step {counters.step}{self._of_steps()} | epoch {metrics['epoch']:.2f} | {self._losses(metrics)} "
            f"| lr {metrics['learning_rate']:.2e} | {_speeds(metrics)} | {_left(metrics)}"
        )

    def bar(self, counters: Counters, metrics: Mapping[str, float]) -> str:
        """The line of a step on a terminal; what matters most comes first, as a narrow one cuts it off."""
        full, empty = ("━", "─") if _shows("━─") else ("#", ".")
        share = self.limits.progress(counters)
        done = round(BAR * share)
        parts = (
            f"{full * done}{empty * (BAR - done)} {share:4.0%} step {counters.step}{self._of_steps()}",
            self._losses(metrics),
            _left(metrics),
            _speeds(metrics),
            f"lr {metrics['learning_rate']:.1e}",
        )
        return " | ".join(parts)

    def print(self, text: str) -> None:
        """Prints any other line."""
        if self.open_line:
            sys.stdout.write("\n")
            self.open_line = False
        self.say(text)

    def _losses(self, metrics: Mapping[str, float]) -> str:
        val = "" if self.val_loss is None else f" | val {self.val_loss:.4f}"
        others = "".join(f" | {named(name, metrics[name])}" for name in SHOWN if name in metrics)
        return f"loss {metrics['loss']:.4f}{val}{others}"

    def _of_steps(self) -> str:
        return f"/{self.limits.max_steps}" if self.limits.max_steps is not None else ""


def _speeds(metrics: Mapping[str, float]) -> str:
    """Tokens a second, those with a loss among them, those with the padding; and memory."""
    return (
        f"{metrics['tokens_per_second']:,.0f} tokens/s ({metrics['target_tokens_per_second']:,.0f} target, "
        f"{metrics['padded_tokens_per_second']:,.0f} padded) | {metrics['peak_memory_gb']:.2f} GB"
    )


def _left(metrics: Mapping[str, float]) -> str:
    return f"{duration(metrics['remaining_time'])} left" if "remaining_time" in metrics else "? left"


def _shows(text: str) -> bool:
    """Whether the standard output can write these characters."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeError:
        return False
    return True


def duration(seconds: float) -> str:
    """`3:05`, `1:02:03`, `2 d 1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02}:{rest:02}" if hours or days else f"{minutes}:{rest:02}"
    return f"{days} d {clock}" if days else clock

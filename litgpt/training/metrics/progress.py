"""What a run prints while it trains: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from litgpt.errors import is_quiet
from litgpt.training.schedule import Counters, RunLimits

if TYPE_CHECKING:
    from rich.live import Live

BAR = 20
"""Width of the bar, columns."""


SHOWN = {
    "bits_per_byte": ("bits per byte", ".4f"),
    "ppl": ("perplexity", ".2f"),
    "accuracy": ("accuracy", ".3f"),
    "margin": ("margin", ".4f"),
    "divergence": ("divergence", ".4f"),
    "reward": ("reward", ".3f"),
}
"""Metrics that are printed beside the loss where there are any → their names, and how they are written."""


def named(name: str, value: float) -> str:
    """A metric of `SHOWN` as it is printed."""
    title, form = SHOWN[name]
    return f"{title} {value:{form}}"


@dataclass
class Screen:
    """One line for each logged step; on a terminal it is a bar below everything else that is printed."""

    say: Callable[[str], None]
    limits: RunLimits
    in_place: bool = False
    n_steps: int | None = None
    """How many optimizer steps the run is expected to have."""
    val_loss: float | None = None
    ends_alone: bool = False
    """Nothing is printed but what the run ended with."""
    _live: Live | None = field(default=None, repr=False)
    _share: float = 0.0
    _text: str = ""

    @classmethod
    def on(cls, say: Callable[[str], None], limits: RunLimits, first_rank: bool) -> Screen:
        """On the standard output, of the first rank alone."""

        def quietly(text: str) -> None:
            with suppress(OSError):  # a terminal that is gone costs no run
                say(text)

        if is_quiet() or not first_rank:
            return cls(lambda text: None, limits, ends_alone=first_rank)
        return cls(quietly, limits, in_place=sys.stdout.isatty())

    def step(self, counters: Counters, metrics: Mapping[str, float]) -> None:
        """A training step, with the metrics that the CSV file gets."""
        if self.in_place:
            self._share, self._text = self.limits.progress(counters), self.line(counters, metrics)
            self._show(self._text)
        else:
            self.say(self.plain(counters, metrics))

    def validating(self, done: int, count: int) -> None:
        """A validation that has come to sample `done` of `count`."""
        if self.in_place:
            self._show(" | ".join(filter(None, (self._text, f"validating {done:,}/{count:,}"))))

    def print(self, text: str) -> None:
        """Prints any other line, above the bar."""
        if self._live is not None:
            self._show(self._text)  # whatever was under way is over
        self.say(text)

    def conclude(self, text: str) -> None:
        """Prints a line about what the run ended with."""
        if self.ends_alone:
            print(text, flush=True)
        else:
            self.print(text)

    def close(self) -> None:
        """Leaves the bar as it is; the cursor goes below it."""
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()
            self._live = None

    def _show(self, text: str) -> None:
        """Draws the bar and what stands beside it, over several lines where the terminal is narrow."""
        from rich.console import Console
        from rich.live import Live
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        row = Table.grid(padding=(0, 1))
        row.add_row(ProgressBar(total=1.0, completed=self._share, width=BAR), Text(f"{self._share:4.0%} {text}"))
        with suppress(OSError):
            if self._live is None:
                self._live = Live(console=Console(highlight=False, markup=False), auto_refresh=False)
                self._live.start()
            self._live.update(row, refresh=True)

    def plain(self, counters: Counters, metrics: Mapping[str, float]) -> str:
        """The line of a step where output is not a terminal."""
        return (
            f"step {counters.step}{self._of_steps()} | epoch {metrics['epoch']:.2f} | {self._losses(metrics)} "
            f"| lr {metrics['learning_rate']:.2e} | {_speeds(metrics)} | {_left(metrics)}"
        )

    def line(self, counters: Counters, metrics: Mapping[str, float]) -> str:
        """What stands beside the bar, what matters most first."""
        parts = (
            f"step {counters.step}{self._of_steps()}",
            self._losses(metrics),
            _left(metrics),
            _speeds(metrics),
            f"lr {metrics['learning_rate']:.1e}",
        )
        return " | ".join(parts)

    def _losses(self, metrics: Mapping[str, float]) -> str:
        val = "" if self.val_loss is None else f" | val {self.val_loss:.4f}"
        others = "".join(f" | {named(name, metrics[name])}" for name in SHOWN if name in metrics)
        return f"loss {metrics['loss']:.4f}{val}{others}"

    def _of_steps(self) -> str:
        return "" if self.n_steps is None else f"/{self.n_steps}"


def _speeds(metrics: Mapping[str, float]) -> str:
    """Tokens a second, those with a loss among them, those with the padding; and memory."""
    return (
        f"{metrics['tokens_per_second']:,.0f} tokens/s ({metrics['target_tokens_per_second']:,.0f} target, "
        f"{metrics['padded_tokens_per_second']:,.0f} padded) | {metrics['peak_memory_gb']:.2f} GB"
    )


def _left(metrics: Mapping[str, float]) -> str:
    return f"{duration(metrics['remaining_time'])} left" if "remaining_time" in metrics else "? left"


def duration(seconds: float) -> str:
    """`3:05`, `1:02:03`, `2 d 1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02}:{rest:02}" if hours or days else f"{minutes}:{rest:02}"
    return f"{days} d {clock}" if days else clock

"""What a run tells while it trains: lines on the screen, and how fast it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from litgpt.model import GPT
from litgpt.training.schedule import Counters, Limits


@dataclass
class Screen:
    """One line for each logged step; on a terminal it is written over the one before, until something else is said."""

    say: Callable[[str], None]
    limits: Limits
    in_place: bool = False
    open_line: bool = False
    val_loss: float | None = None

    @classmethod
    def on(cls, say: Callable[[str], None], limits: Limits, first_rank: bool) -> Screen:
        """On the standard output, of the first rank alone."""
        return cls(say if first_rank else lambda text: None, limits, in_place=first_rank and sys.stdout.isatty())

    def step(self, counters: Counters, epoch: float, loss: float, rate: float, tokens_per_second: float) -> None:
        """A training step."""
        val = "" if self.val_loss is None else f" | val {self.val_loss:.4f}"
        left = self.limits.seconds_left(counters)
        line = (
            f"step {counters.step}{self._of_steps()} | epoch {epoch:.2f} | loss {loss:.4f}{val} | lr {rate:.2e} | "
            f"{tokens_per_second:,.0f} tokens/s | {'?' if left is None else duration(left)} left"
        )
        if self.in_place:
            sys.stdout.write(f"\r\x1b[K{line}")
            sys.stdout.flush()
            self.open_line = True
        else:
            self.say(line)

    def line(self, text: str) -> None:
        """Anything else."""
        if self.open_line:
            sys.stdout.write("\n")
            self.open_line = False
        self.say(text)

    def _of_steps(self) -> str:
        return f"/{self.limits.max_steps}" if self.limits.max_steps is not None else ""


def duration(seconds: float) -> str:
    """`3:05`, `1:02:03`, `2 d 1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    clock = f"{hours}:{minutes:02}:{rest:02}" if hours or days else f"{minutes}:{rest:02}"
    return f"{days} d {clock}" if days else clock


def flops_per_token(model: GPT, length: int) -> float:
    """Floating-point operations of one training token in a sequence of `length`: 6 for each weight of a matrix
    product, and attention's 12·L·N·H·T.

    PaLM (https://arxiv.org/abs/2204.02311), appendix B. Embeddings are looked up, not multiplied, so they don't count.
    """
    config = model.config
    assert config.head_size is not None
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    return 6.0 * weights + 12.0 * config.n_layer * config.n_head * config.head_size * length


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """What the device's data sheet promises per second for products in `dtype`; None where that is not known."""
    if device.type != "cuda":
        return None
    from lightning.fabric.utilities.throughput import get_available_flops

    available = get_available_flops(device, dtype)
    return None if available is None else float(available)

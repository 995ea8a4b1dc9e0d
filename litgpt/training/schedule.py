"""When a run ends, how far it is, and the learning rate that follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from litgpt.args import TrainArgs
from litgpt.errors import LitGPTError

if TYPE_CHECKING:
    from torch.optim import Optimizer


@dataclass
class Counters:
    """How far a run has come; all that a schedule and the order of samples depend on."""

    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    """Samples seen, all ranks."""
    tokens: int = 0
    """Input tokens seen, all ranks."""
    seconds: float = 0.0
    """Wall time, validation and saving included."""
    training_seconds: float = 0.0
    """Wall time of the steps alone."""
    skipped: int = 0
    """Steps that `train.guard` left out."""
    losses: list[float] = field(default_factory=list)
    """Of the last steps, which the guard measures spikes by."""
    norms: list[float] = field(default_factory=list)
    """Likewise, of the gradients."""


@dataclass(frozen=True)
class RunLimits:
    """Where a run ends: at the first limit reached. None is no limit."""

    max_steps: int | None
    max_samples: int | None
    """`epochs` times the samples of one."""
    max_tokens: int | None
    max_time: float | None
    """Seconds."""

    @classmethod
    def of(cls, train: TrainArgs, samples_per_epoch: int) -> RunLimits:
        """The limits that `train` sets.

        Raises:
            LitGPTError: It sets none.
        """
        max_samples = None if train.epochs is None else train.epochs * samples_per_epoch
        limits = cls(train.max_steps, max_samples, train.max_tokens, train.max_time)
        if all(limit is None for limit in (limits.max_steps, max_samples, limits.max_tokens, limits.max_time)):
            raise LitGPTError(
                "Nothing says when to stop: set train.max_steps, train.epochs, train.max_tokens or train.max_time."
            )
        return limits

    def progress(self, counters: Counters) -> float:
        """From 0 to 1, where the run ends. Time counts only where nothing else limits: how fast a machine is
        shouldn't change a model."""
        parts = [
            done / limit if limit else 1.0
            for done, limit in (
                (counters.step, self.max_steps),
                (counters.samples, self.max_samples),
                (counters.tokens, self.max_tokens),
            )
            if limit is not None
        ]
        if not parts:
            assert self.max_time is not None
            parts = [counters.seconds / self.max_time if self.max_time else 1.0]
        return min(1.0, max(parts))

    def reached(self, counters: Counters) -> bool:
        """Whether the run ends here."""
        return self.progress(counters) >= 1 or (self.max_time is not None and counters.seconds >= self.max_time)

    def samples_left(self, counters: Counters) -> int | None:
        """Samples until the last epoch is over; None: no end."""
        return None if self.max_samples is None else self.max_samples - counters.samples

    def seconds_left(self, counters: Counters) -> float | None:
        """Estimated from the pace so far; None before there is one."""
        progress = self.progress(counters)
        paced = counters.seconds * (1 - progress) / progress if progress and counters.seconds else None
        timed = None if self.max_time is None else max(0.0, self.max_time - counters.seconds)
        return min((left for left in (paced, timed) if left is not None), default=None)

    def steps(self, samples_per_step: int, tokens_per_sample: float) -> int | None:
        """How many steps the run will have; None where only time limits it."""
        ends = [
            limit / per_step
            for limit, per_step in (
                (self.max_steps, 1),
                (self.max_samples, samples_per_step),
                (self.max_tokens, samples_per_step * tokens_per_sample),
            )
            if limit is not None
        ]
        return math.ceil(min(ends)) if ends else None


DECAY_FRACTION = 0.2
"""Share of a run in which `wsd` falls, where nothing is said."""

SHAPES: dict[str, Callable[[float, float], float]] = {
    "cosine": lambda share, falling: 0.5 * (1 + math.cos(math.pi * share)),
    "linear": lambda share, falling: 1 - share,
    "wsd": lambda share, falling: falling,
    "constant": lambda share, falling: 1.0,
}
"""By name, how much of the way from the lowest to the full rate is left, 1 to 0: by the share of the run after the
warm-up that is done, and by how much of the last part of the run is left."""


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up, then the way down to the lowest rate at the end of the run: half a cosine, a line, a line in the
    last part of the run only (`wsd`: warm-up, stable, decay; https://arxiv.org/abs/2404.06395), or none.

    Step number `s` (from 0) of a warm-up over `w` steps has `(s + 1) / (w + 1)` of the full rate, so the first step
    is not wasted on a rate of zero.
    """

    lowest: float
    """Learning rate at the end of the run."""
    warmup_steps: int
    warmup_progress: float
    """How far the run is when the warm-up is over, 0 to 1."""
    shape: str = "cosine"
    decay_fraction: float = DECAY_FRACTION
    """Length of the last part, as a share of the run."""

    def rate(self, peak: float, step: int, progress: float) -> float:
        """The learning rate of a step, of an optimizer whose full rate is `peak`."""
        if step < self.warmup_steps:
            return peak * (step + 1) / (self.warmup_steps + 1)
        share = (progress - self.warmup_progress) / (1 - self.warmup_progress) if self.warmup_progress < 1 else 1.0
        falling = (1 - progress) / self.decay_fraction if self.decay_fraction else float(progress < 1)
        lowest = min(self.lowest, peak)
        return lowest + (peak - lowest) * SHAPES[self.shape](min(max(share, 0.0), 1.0), min(max(falling, 0.0), 1.0))


@dataclass(frozen=True)
class GroupRates:
    """The full learning rate of an optimizer, and the multiple of it that each parameter group has at every step."""

    full: float
    factors: tuple[float, ...]

    @classmethod
    def of(cls, optimizer: Optimizer) -> Self:
        """Of an optimizer whose groups have their full rates. Its own rate is what they are measured by, or the first
        group's where that is zero."""
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        full = float(optimizer.defaults.get("lr") or rates[0])
        return cls(full, tuple(rate / full if full else 1.0 for rate in rates))


def make_schedule(train: TrainArgs, samples_per_epoch: int, steps: int | None, peak: float) -> tuple[Schedule, str]:
    """The schedule that `train` asks for.

    Args:
        train: Warm-up, shape and lowest rate.
        samples_per_epoch: What `lr_warmup_fraction` is a share of.
        steps: Optimizer steps of the whole run; None: limited by time alone.
        peak: The optimizer's full rate.

    Returns:
        The schedule, and what the user should know (or nothing): a warm-up as long as the run would end before the full
        rate is reached, so it is cut to a tenth; a lowest rate above the full one makes it constant.
    """
    warmup, notices = train.lr_warmup_steps or 0, []
    if train.lr_warmup_fraction:
        warmup = math.ceil(train.lr_warmup_fraction * samples_per_epoch / train.global_batch_size)
    if steps is not None and warmup and warmup >= steps:
        shorter = steps // 10
        notices.append(
            f"A warm-up of {warmup} steps doesn't fit into a run of {steps}: "
            f"warming up over {shorter} (train.lr_warmup_steps)."
        )
        warmup = shorter
    if train.min_lr > peak and train.lr_schedule != "constant":
        notices.append(
            f"train.min_lr {train.min_lr:g} is above the optimizer's rate {peak:g}, "
            "which therefore stays constant after the warm-up."
        )
    decay = DECAY_FRACTION if train.lr_decay_fraction is None else train.lr_decay_fraction
    schedule = Schedule(train.min_lr, warmup, warmup / steps if steps else 0.0, train.lr_schedule, decay)
    return schedule, " ".join(notices)

"""The arguments of a plan, `--plan.X`."""

from __future__ import annotations

from dataclasses import dataclass

from litgpt.errors import LitGPTError


@dataclass
class PlanArgs:
    """What the plan is to assume."""

    tokens_per_sample: int | None = None
    """Tokens of a sample, on average; null takes `train.max_seq_length`, or the model's context."""
    samples: int | None = None
    """Training samples in an epoch, without which `train.epochs` tells nothing."""
    memory_gb: float | None = None
    """Memory of one device, in GB of 10^9 bytes; null takes what is free on this one."""
    peak_tflops: float | None = None
    """Peak of one device, in 10^12 operations a second; null takes this one's."""
    peak_share: float = 0.4
    """Share of the peak that the training reaches, 0 to 1."""

    def __post_init__(self) -> None:
        for name in ("tokens_per_sample", "samples", "memory_gb", "peak_tflops", "peak_share"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise LitGPTError(f"plan.{name} must be above 0, not {value}.")
        if self.peak_share > 1:
            raise LitGPTError(f"plan.peak_share is a share of the peak, at most 1, not {self.peak_share}.")

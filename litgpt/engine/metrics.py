"""What a finished answer cost: tokens per second, time to the first token, memory."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch

from litgpt.engine.request import Request
from litgpt.errors import progress
from litgpt.runtime import peak_memory


@dataclass(frozen=True)
class RequestMetrics:
    """Times of one finished request."""

    seconds: float
    """From submission to the last token."""
    time_to_first_token: float
    """Seconds."""
    n_tokens: int
    """Tokens generated."""

    @classmethod
    def of(cls, request: Request) -> RequestMetrics:
        """Of a request that is done; an answer without a token has its end for its first."""
        timing = request.timing
        assert timing.finished is not None
        first = timing.finished if timing.first is None else timing.first
        return cls(timing.finished - timing.submitted, first - timing.submitted, request.n_generated)

    def __str__(self) -> str:
        rate = f"{self.tokens_per_second:.2f} tokens/sec"
        return f"{self.seconds:.2f} sec total, {rate}, {self.time_to_first_token:.3f} sec to the first token"

    @property
    def tokens_per_second(self) -> float:
        """Over the whole request, its prompt included."""
        return self.n_tokens / self.seconds if self.seconds > 0 else 0.0


def print_status(text: str) -> None:
    """Prints something beside the answer to standard error, so that piped output stays clean."""
    print(text, file=sys.stderr, flush=True)


def print_peak_memory(device: torch.device) -> None:
    """Prints the most memory that was used so far."""
    progress(f"Memory used: {peak_memory(device) / 1e9:.2f} GB")


def benchmark_dict_to_markdown_table(data: dict[str, list[float]]) -> str:
    """What `LLM.benchmark` measured as a Markdown table: mean and standard deviation over the iterations."""
    lines = ["| Metric | Mean | Std Dev |", "|---|---|---|"]
    for name, values in data.items():
        numbers = torch.tensor(values, dtype=torch.float64)
        deviation = f"{float(numbers.std()):.2f}" if len(values) > 1 else "nan"
        lines.append(f"| {name} | {float(numbers.mean()):.2f} | {deviation} |")
    return "\n".join(lines) + "\n"

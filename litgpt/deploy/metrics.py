"""Counts and times for Prometheus, in its text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Histogram:
    """How often a value was at most this large."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts a value in."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str) -> Iterable[str]:
        """The samples."""
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._sum:.6f}"
        yield f"{name}_count {total}"


class Metrics:
    """What a server has done since it started; used in the event loop's thread only."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        """(path, status) → requests."""
        self.answers: Counter[str] = Counter()
        """Finish reason → answers."""
        self.tokens: Counter[str] = Counter()
        """`prompt`, `shared`, `generated`."""
        self.queue_seconds = Histogram(SECONDS)
        self.first_token_seconds = Histogram(SECONDS)
        self.token_seconds = Histogram(TOKEN_SECONDS)
        self.request_seconds = Histogram(SECONDS)

    def render(self, gauges: Mapping[str, float]) -> str:
        """Everything, with what is running now."""
        by_request: dict[str, float] = {
            f'path="{path}",status="{status}"': n for (path, status), n in sorted(self.requests.items())
        }
        by_reason: dict[str, float] = {f'reason="{reason}"': n for reason, n in sorted(self.answers.items())}
        lines = [
            *_family("requests_total", "counter", "HTTP requests, by path and status", by_request),
            *_family("answers_total", "counter", "Answers, by why they ended", by_reason),
        ]
        counters: dict[str, tuple[str, float]] = {
            "prompt_tokens_total": ("Tokens of prompts", self.tokens["prompt"]),
            "prompt_tokens_cached_total": ("Tokens of prompts that were in the cache", self.tokens["shared"]),
            "generated_tokens_total": ("Tokens generated", self.tokens["generated"]),
        }
        for name, (what, count) in counters.items():
            lines += _family(name, "counter", what, {"": count})
        for name, value in gauges.items():
            lines += _family(name, "gauge", GAUGES[name], {"": value})
        for name, (what, histogram) in self._histograms().items():
            lines += [f"# HELP litgpt_{name} {what}.", f"# TYPE litgpt_{name} histogram"]
            lines += histogram.lines(f"litgpt_{name}")
        return "\n".join(lines) + "\n"

    def _histograms(self) -> dict[str, tuple[str, Histogram]]:
        return {
            "queue_seconds": ("Time from a request's coming to its slot", self.queue_seconds),
            "time_to_first_token_seconds": (
                "Time from a request's coming to its first token",
                self.first_token_seconds,
            ),
            "time_per_output_token_seconds": ("Time between tokens of an answer, on average", self.token_seconds),
            "request_seconds": ("Time from a request's coming to its end", self.request_seconds),
        }


GAUGES = {
    "answers_running": "Answers that have a slot",
    "answers_waiting": "Answers that wait for a slot",
    "slots": "Answers that can run at the same time",
    "cache_tokens": "Tokens whose keys and values are in the cache",
    "cache_capacity_tokens": "Tokens that the cache has room for",
    "cache_use_ratio": "Share of the cache that is filled",
}


def _family(name: str, kind: str, what: str, samples: Mapping[str, float]) -> list[str]:
    head = [f"# HELP litgpt_{name} {what}.", f"# TYPE litgpt_{name} {kind}"]
    return head + [f"litgpt_{name}{f'{{{labels}}}' if labels else ''} {n:.10g}" for labels, n in samples.items()]

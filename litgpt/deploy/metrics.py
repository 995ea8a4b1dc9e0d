"""Counts and times for Prometheus, in its text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from time import perf_counter

from litgpt.deploy.request_log import RequestRecord

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
        """By their names in `TOKENS`."""
        self.histograms = {name: Histogram(bounds) for name, (_, bounds) in HISTOGRAMS.items()}

    def count(self, record: RequestRecord) -> None:
        """Counts a request that has ended."""
        self.requests[record.path, record.status] += 1
        if not record.prompt_tokens:
            return
        now, histograms = perf_counter(), self.histograms
        tokens = (record.prompt_tokens, record.shared_tokens, record.generated_tokens)
        self.tokens.update(dict(zip(TOKENS, tokens, strict=True)))
        self.answers.update(record.finish_reasons)
        histograms["request_seconds"].observe(now - record.came)
        if record.waited is not None:
            histograms["queue_seconds"].observe(record.waited)
        if record.first is not None:
            histograms["time_to_first_token_seconds"].observe(record.first - record.came)
            # Of several answers to one request, each had its own share of the time.
            steps = record.generated_tokens / max(len(record.finish_reasons), 1) - 1
            if steps > 0:
                histograms["time_per_output_token_seconds"].observe((now - record.first) / steps)

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
        for name, what in TOKENS.items():
            lines += _family(name, "counter", what, {"": self.tokens[name]})
        for name, value in gauges.items():
            lines += _family(name, "gauge", GAUGES[name], {"": value})
        for name, histogram in self.histograms.items():
            lines += _family(name, "histogram", HISTOGRAMS[name][0], {})
            lines += histogram.lines(f"litgpt_{name}")
        return "\n".join(lines) + "\n"


TOKENS = {
    "prompt_tokens_total": "Tokens of prompts",
    "prompt_tokens_cached_total": "Tokens of prompts that were in the cache",
    "generated_tokens_total": "Tokens generated",
}
GAUGES = {
    "answers_running": "Answers that have a slot",
    "answers_waiting": "Answers that wait for a slot",
    "slots": "Answers that can run at the same time",
    "cache_tokens": "Tokens whose keys and values are in the cache",
    "cache_capacity_tokens": "Tokens that the cache has room for",
    "cache_use_ratio": "Share of the cache that is filled",
}
HISTOGRAMS = {
    "queue_seconds": ("Time from a request's coming to its slot", SECONDS),
    "time_to_first_token_seconds": ("Time from a request's coming to its first token", SECONDS),
    "time_per_output_token_seconds": ("Time between tokens of an answer, on average", TOKEN_SECONDS),
    "request_seconds": ("Time from a request's coming to its end", SECONDS),
}


def _family(name: str, kind: str, what: str, samples: Mapping[str, float]) -> list[str]:
    head = [f"# HELP litgpt_{name} {what}.", f"# TYPE litgpt_{name} {kind}"]
    return head + [f"litgpt_{name}{f'{{{labels}}}' if labels else ''} {n:.10g}" for labels, n in samples.items()]

"""Counts and times of a server, as `prometheus_client` keeps and prints them."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from litgpt.deploy.request_log import RequestRecord

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
TOKENS = {
    "prompt_tokens": "Tokens of prompts",
    "prompt_tokens_cached": "Tokens of prompts that were in the cache",
    "generated_tokens": "Tokens generated",
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

# When each counter was made, a series of its own for each: nothing that a server's user asks.
disable_created_metrics()


class Metrics:
    """What a server has done since it started; used in the event loop's thread only."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = dict(namespace="litgpt", registry=self.registry)
        self.requests = Counter("requests", "HTTP requests, by path and status", ["path", "status"], **own)
        self.answers = Counter("answers", "Answers, by why they ended", ["reason"], **own)
        self.tokens = {name: Counter(name, what, **own) for name, what in TOKENS.items()}
        self.gauges: dict[str, Gauge] = {}  # those that the back end knows
        self.histograms = {
            name: Histogram(name, what, buckets=bounds, **own) for name, (what, bounds) in HISTOGRAMS.items()
        }
        ProcessCollector(registry=self.registry)  # its memory, processor time and open files

    def count(self, record: RequestRecord) -> None:
        """Counts a request that has ended."""
        self.requests.labels(record.path, record.status).inc()
        if not record.prompt_tokens:
            return
        now, histograms = perf_counter(), self.histograms
        tokens = (record.prompt_tokens, record.shared_tokens, record.generated_tokens)
        for counter, count in zip(self.tokens.values(), tokens, strict=True):
            counter.inc(count)
        for reason in record.finish_reasons:
            self.answers.labels(reason).inc()
        histograms["request_seconds"].observe(now - record.came)
        if record.waited is not None:
            histograms["queue_seconds"].observe(record.waited)
        if record.first is not None:
            histograms["time_to_first_token_seconds"].observe(record.first - record.came)
            # Of several answers to one request, each had its own share of the time.
            steps = record.generated_tokens / max(len(record.finish_reasons), 1) - 1
            if steps > 0:
                histograms["time_per_output_token_seconds"].observe((now - record.first) / steps)

    def render(self, gauges: Mapping[str, float]) -> bytes:
        """Everything, with what is running now (by the names in `GAUGES`), in Prometheus' text format."""
        for name, value in gauges.items():
            if name not in self.gauges:
                self.gauges[name] = Gauge(name, GAUGES[name], namespace="litgpt", registry=self.registry)
            self.gauges[name].set(value)
        return generate_latest(self.registry)

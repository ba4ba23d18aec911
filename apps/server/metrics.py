"""Counts what `/metrics` shows in Prometheus's text format."""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

Outcome = Literal["done", "cancelled", "failed"]
FIRST_TOKEN_BOUNDS_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)


class Metrics:
    """Holds one server's counters, in a registry of their own."""

    def __init__(self, kernels: str) -> None:
        """`kernels` compute the answers, as `TOOLKIT_KERNELS` names them."""
        self._registry = CollectorRegistry()
        Info("toolkit_kernels", "Kernels that compute answers.", registry=self._registry).info({"kernels": kernels})
        self.running = Gauge("toolkit_rows_running", "Answers being generated.", registry=self._registry)
        self.waiting = Gauge("toolkit_rows_waiting", "Answers waiting for a row.", registry=self._registry)
        self.prompt_tokens = Counter("toolkit_prompt_tokens", "Prompt tokens read.", registry=self._registry)
        self.cached_tokens = Counter(
            "toolkit_cached_tokens", "Prompt tokens found in the cache.", registry=self._registry
        )
        self.generated_tokens = Counter("toolkit_generated_tokens", "Tokens drawn.", registry=self._registry)
        self.refused = Counter("toolkit_refused", "Requests refused, by status.", ["status"], registry=self._registry)
        self.first_token_s = Histogram(
            "toolkit_first_token_seconds",
            "Seconds from a request to its first token.",
            buckets=FIRST_TOKEN_BOUNDS_S,
            registry=self._registry,
        )
        self._ended = Counter("toolkit_rows_ended", "Answers that ended.", ["outcome"], registry=self._registry)

    def ended(self, outcome: Outcome) -> None:
        self._ended.labels(outcome).inc()

    def text(self) -> bytes:
        return generate_latest(self._registry)

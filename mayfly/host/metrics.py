"""What `GET /metrics` shows, in Prometheus's text format."""

from collections.abc import Mapping
from typing import Protocol

from mayfly.host.observer import Observer


class Measured(Protocol):
    """Something whose metrics can be had."""

    async def measure(self) -> bytes:
        """All metrics, as text."""


class Metrics(Observer):
    """Prometheus counters and histograms."""

    def __init__(self) -> None:
        from prometheus_client import CollectorRegistry, Counter, Histogram  # a server's only

        self.registry = CollectorRegistry()
        self._starts = Counter("mayfly_starts", "Machines that runs got", ["kind", "language"], registry=self.registry)
        self._runs = Counter("mayfly_runs", "Runs that are over", ["status"], registry=self.registry)
        self._refusals = Counter("mayfly_refusals", "Runs that were refused for lack of room", registry=self.registry)
        self._evictions = Counter("mayfly_evictions", "Idle machines that were ended to make room", registry=self.registry)
        buckets = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
        self._phases = Histogram("mayfly_phase_seconds", "Time of a run's phases", ["phase"], registry=self.registry, buckets=buckets)

        self._function_requests = Counter(
            "mayfly_function_requests", "Requests to functions that are over", ["function", "status"], registry=self.registry
        )
        self._function_starts = Counter(
            "mayfly_function_starts", "Requests to functions by how their guest had started", ["function", "kind"], registry=self.registry
        )
        self._function_guests = Counter(
            "mayfly_function_guests", "Guests of functions: created, failed, evicted", ["function", "what"], registry=self.registry
        )
        self._function_phases = Histogram(
            "mayfly_function_seconds", "Time of a request's phases", ["function", "phase"], registry=self.registry, buckets=buckets
        )

    def started(self, kind: str, language: str) -> None:
        """Count a start."""
        self._starts.labels(kind, language).inc()

    def ended(self, status: str, phases: Mapping[str, float]) -> None:
        """Count a run and its phases."""
        self._runs.labels(status).inc()
        for name, seconds in phases.items():
            self._phases.labels(name).observe(seconds)

    def refused(self) -> None:
        """Count a refusal."""
        self._refusals.inc()

    def evicted(self) -> None:
        """Count an eviction."""
        self._evictions.inc()

    def function_answered(self, function: str, status: str, start: str, phases: Mapping[str, float]) -> None:
        """Count a request and its phases."""
        self._function_requests.labels(function, status).inc()
        if start:
            self._function_starts.labels(function, start).inc()
        for name, seconds in phases.items():
            self._function_phases.labels(function, name).observe(seconds)

    def function_guest(self, function: str, what: str) -> None:
        """Count a guest."""
        self._function_guests.labels(function, what).inc()

    def text(self) -> bytes:
        """All metrics."""
        from prometheus_client import generate_latest

        text: bytes = generate_latest(self.registry)
        return text

    async def measure(self) -> bytes:
        """As `text`."""
        return self.text()

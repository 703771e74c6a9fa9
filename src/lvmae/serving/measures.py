"""The metrics for Prometheus at /metrics: requests, their times, searches and batches, connections."""

from __future__ import annotations

import time
from collections.abc import Callable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from lvmae.serving.guard import Receive, Scope, Send

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Measures:
    """Counters of one server, apart from those of the process that it runs in."""

    def __init__(self, values: Callable[[], dict[str, tuple[str, str, float]]]) -> None:
        """`values`: name -> ("counter" or "gauge", what it is, its value now)."""
        self.registry = CollectorRegistry()
        self._requests = Counter("lvmae_requests", "Requests answered.", ["handler", "status"], registry=self.registry)
        self._seconds = Histogram(
            "lvmae_request_seconds", "Time to an answer.", ["handler"], buckets=_BUCKETS, registry=self.registry
        )
        self.registry.register(_Now(values))

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)

    def around(self, app: Any) -> Any:
        """The application with its requests counted, by what answered them."""

        async def measured(scope: Scope, receive: Receive, send: Send) -> None:
            began, status = time.perf_counter(), 500

            async def sending(message: MutableMapping[str, Any]) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await app(scope, receive, sending)
            finally:
                path = getattr(
                    scope.get("endpoint"), "__name__", "other"
                )  # a name from the code, never a visitor's text
                self._requests.labels(path, str(status)).inc()
                self._seconds.labels(path).observe(time.perf_counter() - began)

        return measured


class _Now(Collector):
    """Values that are asked for when somebody looks."""

    def __init__(self, values: Callable[[], dict[str, tuple[str, str, float]]]) -> None:
        self._values = values

    def collect(self) -> Any:
        """A family each."""
        for name, (kind, what, value) in self._values().items():
            family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
            yield family(name, what, value=value)

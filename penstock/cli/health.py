"""Health and metrics of a role that runs alone: ``/healthz``, ``/readyz`` and ``/metrics`` on a port of its own."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Problems = Callable[[], list[str]]
"""Why a role is not ready; empty when it is."""

Numbers = Callable[[], Mapping[str, float]]
"""Numbers of a role by metric name; a name may carry labels: ``name{partition="3"}``."""

STALLED_MS = 10_000


class ProgressCheck:
    """Finds partitions that are behind and do not move: alive is not enough, work must be taken.

    Args:
        lags: how many records each partition is behind.
        offsets: how far each partition is.
        clock_ms: monotonic.
    """

    def __init__(
        self,
        lags: Callable[[], Mapping[int, int]],
        offsets: Callable[[], Mapping[int, int]],
        clock_ms: Callable[[], int] = lambda: time.monotonic_ns() // 1_000_000,
    ) -> None:
        self._lags = lags
        self._offsets = offsets
        self._clock_ms = clock_ms
        self._moved: dict[int, tuple[int, int]] = {}

    def __call__(self) -> list[str]:
        now_ms = self._clock_ms()
        lags = self._lags()
        problems: list[str] = []
        for partition, offset in self._offsets().items():
            known = self._moved.get(partition)
            if known is None or known[0] != offset or not lags.get(partition):
                self._moved[partition] = (offset, now_ms)
            elif now_ms - known[1] >= STALLED_MS:
                problems.append(
                    f"partition {partition} is {lags[partition]} records behind and does not move"
                )
        return problems


class _Numbers(Collector):
    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers

    def collect(self) -> Iterable[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for key, value in self._numbers().items():
            name, _, label = key.partition("{")
            label_name, _, label_value = label.rstrip("}").partition("=")
            family = families.get(name)
            if family is None:
                family = families[name] = GaugeMetricFamily(name, name, labels=[label_name] if label else [])
            family.add_metric([label_value.strip('"')] if label else [], value)
        return families.values()

    def describe(self) -> Iterable[Metric]:
        return []


def health_app(role: str, problems: Problems, numbers: Numbers) -> Starlette:
    """The application that answers for ``role``."""
    registry = CollectorRegistry()
    registry.register(_Numbers(numbers))
    version = importlib.metadata.version("penstock")
    began = time.monotonic()

    async def healthz(request: Request) -> Response:
        uptime_ms = int((time.monotonic() - began) * 1_000)
        return JSONResponse({"status": "ok", "role": role, "version": version, "uptime_ms": uptime_ms})

    async def readyz(request: Request) -> Response:
        found = problems()
        status = "unready" if found else "ready"
        return JSONResponse({"status": status, "role": role, "problems": found}, 503 if found else 200)

    async def metrics(request: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", metrics)],
    )

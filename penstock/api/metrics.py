"""Metrics of the API process, in a registry of their own, and gauges of the read model, taken when asked for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from penstock.api.models import Counts
from penstock.api.progress import ProgressWatch
from penstock.projections.port import PartitionStatus

if TYPE_CHECKING:
    from penstock.api.deps import ApiDeps

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class ApiMetrics:
    """Counts requests and appended lines; renders everything as text.

    Args:
        registry: where the process's other metrics are kept too; one of its own if not given.
    """

    media_type = CONTENT_TYPE_LATEST

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.progress = ProgressWatch()
        self.started_at = time.monotonic()
        self._requests = Counter(
            "penstock_http_requests", "HTTP requests.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "penstock_http_request_seconds",
            "Time from a request's head to the end of its answer.",
            ["method", "route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._appended = Counter(
            "penstock_appended_lines", "Jobs that this process made durable.", registry=self.registry
        )
        self._request_children: dict[tuple[str, str, int], Counter] = {}
        self._seconds_children: dict[tuple[str, str], Histogram] = {}
        self._snapshot = _Snapshot()
        self.registry.register(self._snapshot)

    def appended(self, lines: int) -> None:
        self._appended.inc(lines)

    def requested(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request. ``route`` is the pattern, not the path, so that there are few."""
        counter = self._request_children.get((method, route, status))
        if counter is None:
            counter = self._requests.labels(method, route, str(status))
            self._request_children[method, route, status] = counter
        counter.inc()
        histogram = self._seconds_children.get((method, route))
        if histogram is None:
            histogram = self._seconds_children[method, route] = self._seconds.labels(method, route)
        histogram.observe(seconds)

    def text(self, deps: ApiDeps, statuses: Sequence[PartitionStatus], counts: Counts | None) -> bytes:
        """Prometheus's text format."""
        self._snapshot.families = [
            *_projection(statuses),
            *([] if counts is None else _jobs(counts)),
            *_workers(deps),
        ]
        return generate_latest(self.registry)


class _Snapshot(Collector):
    """Gauges as they were when last asked for."""

    def __init__(self) -> None:
        self.families: list[Metric] = []

    def collect(self) -> Iterable[Metric]:
        return self.families

    def describe(self) -> Iterable[Metric]:
        return []


def _gauge(name: str, text: str, labels: Sequence[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=labels)


def _projection(statuses: Sequence[PartitionStatus]) -> list[Metric]:
    following = _gauge("penstock_projection_next_offset", "Offset that is folded next.", ["partition"])
    ends = _gauge("penstock_projection_end_offset", "End of the log when last seen.", ["partition"])
    lags = _gauge("penstock_projection_lag_records", "Offsets not folded yet.", ["partition"])
    leads = _gauge("penstock_partition_led", "1 where an orchestrator has announced itself.", ["partition"])
    indexed = _gauge(
        "penstock_text_indexed", "1 where the text index has the whole partition.", ["partition"]
    )
    unindexed = _gauge(
        "penstock_text_index_waiting_jobs", "Jobs that wait for the text index.", ["partition"]
    )
    lines = _gauge(
        "penstock_folded_lines", "Lines on the log, by what the fold made of them.", ["partition", "outcome"]
    )
    for status in statuses:
        label = [str(status.partition)]
        following.add_metric(label, status.next_offset)
        ends.add_metric(label, status.end_offset)
        lags.add_metric(label, max(0, status.end_offset - status.next_offset))
        leads.add_metric(label, 1 if status.leader else 0)
        indexed.add_metric(label, 1 if status.text_indexed else 0)
        unindexed.add_metric(label, status.unindexed_jobs)
        for outcome in ("accepted", "refused", "quarantined", "misrouted", "unknown_jobs"):
            lines.add_metric([*label, outcome], getattr(status, outcome))
    return [following, ends, lags, leads, indexed, unindexed, lines]


def _jobs(counts: Counts) -> list[Metric]:
    jobs = _gauge("penstock_jobs", "Jobs by state, queue and type.", ["state", "queue", "type"])
    merged: dict[tuple[str, str, str], int] = {}
    for row in counts.rows:
        key = (row.state, row.queue, row.type)
        merged[key] = merged.get(key, 0) + row.jobs
    for key, number in merged.items():
        jobs.add_metric(list(key), number)
    waiting = _gauge("penstock_unhandled_jobs", "Ready jobs that no live worker takes.", ["type", "pool"])
    for item in counts.unhandled:
        waiting.add_metric([item.type, item.pool], item.ready)
    return [jobs, waiting]


def _workers(deps: ApiDeps) -> list[Metric]:
    workers = _gauge("penstock_workers", "Live workers by pool.", ["pool"])
    busy = _gauge("penstock_busy_handlers", "Handlers running now, by pool.", ["pool"])
    by_pool: dict[str, tuple[int, int]] = {}
    for seen in deps.registry.live():
        number, running = by_pool.get(seen.heartbeat.pool, (0, 0))
        by_pool[seen.heartbeat.pool] = (number + 1, running + seen.heartbeat.busy)
    for pool, (number, running) in sorted(by_pool.items()):
        workers.add_metric([pool], number)
        busy.add_metric([pool], running)
    sessions = _gauge("penstock_gateway_sessions", "Workers that speak HTTP to this process.", [])
    sessions.add_metric([], deps.gateway.sessions)
    parked = _gauge("penstock_gateway_parked_fetches", "Fetches that wait for a job.", [])
    parked.add_metric([], deps.gateway.parked)
    return [workers, busy, sessions, parked]

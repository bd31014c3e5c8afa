"""Names and shapes of the topics of one namespace."""

from __future__ import annotations

from msgspec import Struct

from penstock.schemas.errors import SettingsInvalid
from penstock.schemas.events import PRIORITIES
from penstock.schemas.ids import murmur2

HINT_RETENTION_MS = 600_000
"""How long deliveries, signals and heartbeats are kept on a cluster."""

BROADCAST = 0
"""Partition of the signals topic that everybody reads."""


class Topics(Struct, frozen=True):
    """Topic names and partition counts. ``partitions`` is fixed for the life of the jobs topic."""

    namespace: str = "penstock"
    partitions: int = 16
    work_partitions: int = 64
    worker_partitions: int = 2

    def __post_init__(self) -> None:
        if self.partitions < 1 or self.work_partitions < 2 or self.worker_partitions < 1:
            # One work partition is for broadcasts; the others are routes.
            raise SettingsInvalid(
                "at least 1 jobs partition, 2 work partitions and 1 workers partition are needed"
            )

    @property
    def jobs(self) -> str:
        return f"{self.namespace}.jobs"

    @property
    def control(self) -> str:
        return f"{self.namespace}.control"

    @property
    def signals(self) -> str:
        return f"{self.namespace}.signals"

    @property
    def workers(self) -> str:
        return f"{self.namespace}.workers"

    @property
    def quarantine(self) -> str:
        return f"{self.namespace}.quarantine"

    def work(self, priority: str) -> str:
        return f"{self.namespace}.work.{priority}"

    @property
    def work_topics(self) -> tuple[str, ...]:
        return tuple(self.work(priority) for priority in PRIORITIES)

    def route_of(self, name: str) -> int:
        """Partition of work and signals topics that reaches the worker or gateway ``name``; never the broadcast one."""
        return 1 + (murmur2(name.encode()) & 0x7FFFFFFF) % (self.work_partitions - 1)

    def reports_partition_of(self, worker: str) -> int:
        return (murmur2(worker.encode()) & 0x7FFFFFFF) % self.worker_partitions

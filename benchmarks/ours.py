"""Penstock as it is measured: with everything on.

On Kafka, node, API and worker are processes of their own on a real broker. An acknowledged job is appended with
`acks=all`; every job is leased, its history is kept, and it counts as done when the read model shows it, which is the
last place that hears of it.
"""

from __future__ import annotations

import uuid

from benchmarks.served import CONCURRENCY, TASKS, Served
from penstock import __version__
from tests.acceptance.processes import ROOT, Role, free_port, http
from tests.kafka_broker import Broker
from tests.kafka_jars import KAFKA_VERSION

PARTITIONS = 4
WORK_PARTITIONS = 8
READY_TIMEOUT_S = 180.0
"""For a busy machine."""


class Penstock(Served):
    """A namespace of its own on a broker: nodes, an API and workers, a process each.

    A node is orchestrator and read model over one fold; ``apart`` has a process each of those instead. The partitions
    are dealt out in ``shares`` parts, which nodes take by turns.
    """

    name = "Penstock"

    def __init__(
        self,
        broker: Broker,
        *,
        partitions: int = PARTITIONS,
        nodes: int = 1,
        shares: int = 1,
        workers: int = 1,
        apart: bool = False,
        text_index: bool = True,
    ) -> None:
        super().__init__()
        self.partitions = partitions
        self.gone: set[str] = set()
        """Roles that were killed on purpose."""
        self.workers = [f"worker-{number}" for number in range(workers)]
        self.leaders = [f"{'orchestrator' if apart else 'node'}-{number}" for number in range(nodes)]
        """Roles that lead partitions."""
        self._shared = {
            "PENSTOCK_LOG": f"kafka://{broker.bootstrap}",
            "PENSTOCK_PARTITIONS": str(partitions),
            "PENSTOCK_WORK_PARTITIONS": str(WORK_PARTITIONS),
            "PENSTOCK_LOG_LEVEL": "warning",
            "PENSTOCK_TEXT_INDEX": str(text_index).lower(),
        }
        for number, name in enumerate(self.leaders):
            share = {"PENSTOCK_SHARE": f"{number % shares + 1}/{shares}"}
            self._add(name, name.partition("-")[0], **share, **({} if apart else _reachable()))
        if apart:
            self._add("projection", "projection", **_reachable())
        own = {**self._shared, "PENSTOCK_NAME": "api"}
        self.stack.add("api", ("api", "--port", str(self.port)), own, f"{self.server}/readyz")
        for name in self.workers:
            tallied = {"PYTHONPATH": str(ROOT), "BENCH_TALLY": str(self.tally)}
            self._add(name, "worker", "--app", str(TASKS), PENSTOCK_CONCURRENCY=str(CONCURRENCY), **tallied)
        self.name_anew()

    def _add(self, name: str, *arguments: str, **own: str) -> None:
        health = free_port()
        settings = {**self._shared, "PENSTOCK_NAME": name, "PENSTOCK_HEALTH_PORT": str(health), **own}
        self.stack.add(name, arguments, settings, f"http://127.0.0.1:{health}/readyz")

    def name_anew(self) -> None:
        self.namespace = f"bench-{uuid.uuid4().hex[:8]}"
        for name, role in self.stack.roles.items():
            role.environment["PENSTOCK_NAMESPACE"] = self.namespace
            self.put(role, self.stack.folder / self.namespace / name)

    @property
    def service(self) -> list[Role]:
        """Every role but the workers."""
        return [role for name, role in self.stack.roles.items() if name not in self.workers]

    def wanted(self) -> list[Role]:
        return [role for name, role in self.stack.roles.items() if name not in self.gone]

    def version(self) -> str:
        return f"{__version__} on Kafka {KAFKA_VERSION}"

    def begin_round(self) -> None:
        """Start all roles but the workers, and wait until they are ready."""
        for role in self.service:
            role.start()
        for role in self.service:
            role.wait_ready(READY_TIMEOUT_S)

    def caught_up(self) -> bool:
        """Whether somebody answers for every partition, folded to the log's end."""
        answer = http("GET", f"{self.server}/api/v1/partitions", timeout_s=60)
        items = answer.json["items"] if answer.status == 200 else []
        return len(items) == self.partitions and all(
            item["next_offset"] == item["end_offset"] > 0 for item in items
        )

    def end_round(self) -> None:
        for role in reversed(self.service):
            if role.running:
                role.stop()

    def start_worker(self) -> None:
        for name in self.workers:
            self.stack[name].start()

    def stop_worker(self) -> None:
        for name in self.workers:
            if self.stack[name].running:
                self.stack[name].stop()


def _reachable() -> dict[str, str]:
    """An address for reads that stays the same over restarts."""
    return {"PENSTOCK_PROJECTION_ADDRESS": f"127.0.0.1:{free_port()}"}


class PenstockDev(Served):
    """`penstock dev`: all roles in one process on the embedded log, with every write on the disk before its answer.

    What runs handlers is the same process, started again with them.
    """

    name = "penstock dev"

    def __init__(self) -> None:
        super().__init__()
        command = ("dev", "--port", str(self.port))
        working = (*command, "--app", str(TASKS), "--concurrency", str(CONCURRENCY))
        tallied = {"PYTHONPATH": str(ROOT), "BENCH_TALLY": str(self.tally)}
        quiet = {"PENSTOCK_LOG_LEVEL": "warning"}
        self._idle = self.stack.add("idle", command, quiet, f"{self.server}/readyz")
        self._working = self.stack.add("working", working, {**quiet, **tallied}, f"{self.server}/readyz")
        self.name_anew()

    def name_anew(self) -> None:
        data = self.stack.folder / uuid.uuid4().hex[:8]
        for role in (self._idle, self._working):
            self.put(role, data)

    def wanted(self) -> list[Role]:
        return [self._working]

    def version(self) -> str:
        return f"{__version__} on the embedded log"

    def begin_round(self) -> None:
        self._idle.start().wait_ready(READY_TIMEOUT_S)

    def end_round(self) -> None:
        for role in (self._idle, self._working):
            if role.running:
                role.stop()

    def start_worker(self) -> None:
        self._idle.stop()
        self._working.start().wait_ready(READY_TIMEOUT_S)

    def stop_worker(self) -> None:
        if self._working.running:
            self._working.stop()
        self._idle.start().wait_ready(READY_TIMEOUT_S)

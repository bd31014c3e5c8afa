"""What a scenario happens to: brokers, roles, disks, clocks and producers, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from penstock.core.job_state import TERMINAL
from penstock.schemas.topics import Topics
from tests.acceptance.processes import http, penstock, penstock_json
from tests.faults import checker, records, topics
from tests.faults.checker import Report
from tests.faults.clocks import FakeClock
from tests.faults.load import LogProducerThread, Producer, RestProducer
from tests.faults.network import Network
from tests.faults.roles import Role
from tests.kafka_cluster import Cluster, Node

TASKS = Path(__file__).resolve().parent / "tasks.py"
PARTITIONS, WORK_PARTITIONS = 4, 8
API_PORT, HEALTH_PORT, READ_PORT = 8700, 8701, 8702
READY_S = 90.0
QUIET_S = 150.0
FALSE_STARTS = 3
PAGE = 1_000
FILLER = "filler"
_BEGAN_S = time.monotonic()


class World:
    """Roles, producers and their ledgers. Use as a context manager; :meth:`begin`, play, :meth:`finish`."""

    topics: Topics

    def __init__(
        self, network: Network, folder: Path, *, clocks: Iterable[str] = (), disks: Mapping[str, int] = {}
    ) -> None:
        self.network = network
        self.folder = folder
        self.roles: dict[str, Role] = {}
        self.producers: list[Producer] = []
        self.report = Report()
        self.remembered: dict[str, Any] = {}
        self._runs = folder / "runs.txt"
        self._clocks = {name: FakeClock(folder, name) for name in clocks}
        self._disks = disks
        self._mounted: list[Path] = []
        self._fault_s = 0.0

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        for role in reversed(self.roles.values()):
            role.end_at_once()
        for producer in self.producers:
            producer.stop()
            producer.end(0)
        for mount in self._mounted:
            subprocess.run(["umount", "--lazy", str(mount)], check=False)

    # Set up

    def _add(self, name: str, arguments: Iterable[str], environment: Mapping[str, str], port: int) -> Role:
        clock = self._clocks.get(name)
        role = Role(name, list(arguments), environment, self.network, self.folder, port=port, clock=clock)
        self.roles[name] = role
        if name in self._disks:
            role.data.mkdir()
            size = f"size={self._disks[name]}m"
            subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(role.data)], check=True)
            self._mounted.append(role.data)
        return role

    def begin(self) -> None:
        """Start everybody, then the load, and wait until work is under way."""
        for role in self.roles.values():
            role.start()
        self.until("all roles are ready", self._begun, READY_S)
        say("    all roles are ready")
        for producer in self.producers:
            producer.start()
        self.until("work is under way", lambda: self._runs_so_far() > 60, READY_S)

    def _begun(self) -> bool:
        failed = [name for name, role in self.roles.items() if len(role.ends) >= FALSE_STARTS]
        assert not failed, f"{', '.join(failed)} will not start\n{self.tails()}"
        return self.all_ready()

    def _runs_so_far(self) -> int:
        return len(checker.runs_of(self._runs))

    # Playing

    def note_fault(self) -> None:
        """Now it happens: figures count from here."""
        self._fault_s = self._fault_s or time.monotonic()

    def wait(self, seconds: float) -> None:
        """Let time pass; the supervisor keeps watch."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.tend()
            time.sleep(0.1)

    def until(self, what: str, condition: Callable[[], object], timeout_s: float) -> None:
        """Wait for a condition while the supervisor keeps watch. AssertionError when it does not come."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what}: not within {timeout_s:g} s\n{self.tails()}")
            self.tend()
            time.sleep(0.1)

    def tend(self) -> None:
        """One look of the supervisor."""
        for role in self.roles.values():
            role.tend()

    def all_ready(self) -> bool:
        return all(role.ready() for role in self.roles.values())

    def clock(self, name: str) -> FakeClock:
        """The clock that was given to a role."""
        return self._clocks[name]

    def fill_disk(self, name: str, leave_bytes: int = 0) -> None:
        """Write a file until the role's disk has no more room than that."""
        folder = self.roles[name].data
        with (folder / FILLER).open("ab", buffering=0) as filler, contextlib.suppress(OSError):
            while True:
                stat = os.statvfs(folder)
                room = stat.f_bavail * stat.f_frsize - leave_bytes
                if room <= 0:
                    return
                filler.write(bytes(min(room, 1 << 20)))

    def free_disk(self, name: str) -> None:
        """Give the room back."""
        (self.roles[name].data / FILLER).unlink()

    def tails(self) -> str:
        """What every role printed last."""
        return "\n".join(f"--- {name} {role.ends}\n{role.tail()}" for name, role in self.roles.items())

    # The end

    def finish(self) -> Report:
        """Let the load end and everything come to rest, stop all roles, and check every promise."""
        report = self.report
        self.until("all roles are ready again", self.all_ready, READY_S)
        self.wait(3)
        for producer in self.producers:
            producer.stop()
        load_end_s = time.monotonic()
        self.until(
            "producers have been told of everything",
            lambda: not any(producer.is_alive() for producer in self.producers),
            READY_S,
        )
        say("    the load has ended")
        acknowledged = sum(len(producer.ledger.acknowledged) for producer in self.producers)
        self.until("all jobs have ended", lambda: self._all_ended(acknowledged), QUIET_S)
        say("    all jobs have ended")
        for name, role in self.roles.items():
            by_itself = [code for code in role.ends if code != -signal.SIGKILL]
            if by_itself:
                report.restarts[name] = len(by_itself)
        listed = self._listed()
        live = self._stop_roles()
        stories, outcomes = checker.fold_log(self._records(), self.topics.partitions)
        report.refused = {kind: outcomes[kind] for kind in checker.REFUSALS if outcomes[kind]}
        ledgers = [producer.ledger for producer in self.producers]
        runs = checker.runs_of(self._runs)
        checker.check_ledgers(report, ledgers, stories)
        checker.check_runs(report, runs, stories)
        checker.check_read_model(report, stories, listed)
        acknowledged_s = {job: at for ledger in ledgers for job, at in ledger.acknowledged_s.items()}
        checker.measure(
            report, runs, acknowledged_s, self.topics.partitions,
            fault_s=self._fault_s, load_end_s=load_end_s,
        )  # fmt: skip
        self._check_digests(live)
        return report

    def _servers(self) -> list[str]:
        return [role.url for name, role in self.roles.items() if name.startswith(("api", "dev"))]

    def _ask(self, path: str) -> Any:
        return http("GET", f"{self._servers()[0]}{path}", timeout_s=30).json

    def _all_ended(self, acknowledged: int) -> bool:
        try:
            states: dict[str, int] = self._ask("/api/v1/counts")["states"]
        except (OSError, KeyError, ValueError):
            return False
        ended = sum(count for state, count in states.items() if state in TERMINAL)
        return sum(states.values()) == ended >= acknowledged

    def _listed(self) -> dict[str, tuple[str, int]]:
        """State and attempt of every job in the read model, page by page."""
        found: dict[str, tuple[str, int]] = {}
        cursor = ""
        while True:
            page = self._ask(f"/api/v1/jobs?limit={PAGE}&cursor={cursor}")
            found |= {job["id"]: (job["state"], job["attempt"]) for job in page["items"]}
            cursor = page["next_cursor"]
            if not cursor:
                return found

    def _live_digests(self, ends: Mapping[int, int]) -> dict[int, tuple[int, str]]:
        """Offset and digest by partition, once the read model has all of the log: up to ``ends``, where they are known.

        Its own word for the log's end may be a moment old.
        """
        found: dict[int, tuple[int, str]] = {}

        def caught_up() -> bool:
            with contextlib.suppress(OSError, KeyError, ValueError):
                parts = self._ask("/readyz")["partitions"]
                found.update({part["partition"]: (part["next_offset"], part["digest"]) for part in parts})
                reached = all(found[partition][0] >= end for partition, end in ends.items())
                return reached and not any(part["lag"] for part in parts)
            return False

        self.until("the read model has all of the log", caught_up, READY_S)
        return found

    def _stop_roles(self) -> dict[int, tuple[int, str]]:
        raise NotImplementedError

    def _records(self) -> Iterable[records.RawRecord]:
        raise NotImplementedError

    def _log_environment(self) -> dict[str, str]:
        raise NotImplementedError

    def _check_digests(self, live: Mapping[int, tuple[int, str]]) -> None:
        """A read model built anew has the digests that the live one had, and so have the folders of all roles."""
        environment = self._log_environment()
        built = penstock_json(
            "projection", "rebuild", "--into", str(self.folder / "rebuilt"),
            folder=self.folder, environment=environment,
        )  # fmt: skip
        found = {part["partition"]: (part["next_offset"], part["digest"]) for part in built["partitions"]}
        if found != live:
            self.report.wrong.append(f"a rebuilt read model differs: {found} instead of {live}")
        for name, role in self.roles.items():
            if name.startswith(("projection", "orchestrator", "dev")) and role.data.exists():
                self._verify(name, {**environment, "PENSTOCK_DATA": str(role.data)})

    def _verify(self, name: str, environment: Mapping[str, str]) -> None:
        done = penstock("verify", "--output", "json", folder=self.folder, environment=environment)
        if done.returncode:
            self.report.wrong.append(
                f"verify {name}: {done.returncode} {done.stdout[-500:]}{done.stderr[-500:]}"
            )
        elif '"compared": 0' in done.stdout:
            self.report.wrong.append(f"verify {name}: nothing was compared")


class ClusterWorld(World):
    """Two of each role on three brokers; one more worker speaks HTTP."""

    def __init__(self, network: Network, folder: Path, cluster: Cluster, **options: Any) -> None:
        super().__init__(network, folder, **options)
        self.cluster = cluster
        self.topics = Topics(f"faults-{uuid.uuid4().hex[:8]}", PARTITIONS, WORK_PARTITIONS)
        for number in range(2):
            self._add_lone(f"orchestrator-{number}", "orchestrator")
        for number in range(2):
            name = f"projection-{number}"
            address = f"{network.host(name)}:{network.port(READ_PORT)}"
            self._add_lone(name, "projection", PENSTOCK_PROJECTION_ADDRESS=address)
        for number in range(2):
            name, port = f"api-{number}", network.port(API_PORT)
            own = {"PENSTOCK_HOST": network.host(name), "PENSTOCK_DATA": str(folder / name)}
            own["PENSTOCK_NAME"] = name
            self._add(name, ("api", "--port", str(port)), {**self._log_environment(), **own}, port)
        worker = ("worker", "--app", str(TASKS))
        for number in range(2):
            self._add_lone(f"worker-{number}", *worker, FAULTS_RUNS=str(self._runs))
        over_http = (*worker, "--server", self.roles["api-0"].url)
        self._add_lone("worker-http", *over_http, FAULTS_RUNS=str(self._runs))
        servers = self._servers()
        self.producers = [
            RestProducer("rest-a", servers, 8),
            RestProducer("rest-b", servers[::-1], 8),
            RestProducer("bulk", servers, 12, at_once=12),
            RestProducer("once", servers, 3, insistent=False),
            LogProducerThread("straight", cluster.bootstrap, self.topics, 10, at_once=5),
        ]

    def _add_lone(self, name: str, *arguments: str, **own: str) -> None:
        port = self.network.port(HEALTH_PORT)
        settings = {
            "PENSTOCK_DATA": str(self.folder / name),
            "PENSTOCK_NAME": name,
            "PENSTOCK_HOST": self.network.host(name),
            "PENSTOCK_HEALTH_PORT": str(port),
        }
        self._add(name, arguments, {**self._log_environment(), **settings, **own}, port)

    def _log_environment(self) -> dict[str, str]:
        return {
            "PENSTOCK_LOG": f"kafka://{self.cluster.bootstrap}",
            "PENSTOCK_NAMESPACE": self.topics.namespace,
            "PENSTOCK_PARTITIONS": str(self.topics.partitions),
            "PENSTOCK_WORK_PARTITIONS": str(self.topics.work_partitions),
            "PENSTOCK_REPLICATION": "3",
        }

    def node(self, which: str | int) -> Node:
        """A broker by its number, or by what it was at first: ``leader`` (of the first jobs partition), ``other``,
        ``third``.
        """
        if isinstance(which, int):
            return self.cluster.node(which)
        if "leader" not in self.remembered:
            leader = self.cluster.leader_of(self.topics.jobs, 0)
            self.remembered |= {"leader": leader, "other": leader % 3 + 1, "third": (leader + 1) % 3 + 1}
        return self.cluster.node(self.remembered[which])

    def _stop_roles(self) -> dict[int, tuple[int, str]]:
        # Whoever writes goes first; one that leaves is succeeded by another, which says so on the log.
        writers = [name for name in self.roles if name.startswith(("worker", "orchestrator"))]
        for name in sorted(writers, reverse=True):
            self._stop(name)
        live = self._live_digests(topics.ends(self.cluster.bootstrap, self.topics.jobs))
        for name in self.roles:
            if name not in writers:
                self._stop(name)
        return live

    def _stop(self, name: str) -> None:
        code = self.roles[name].stop()
        if code:
            self.report.wrong.append(f"{name} stopped with {code}:\n{self.roles[name].tail()}")

    def _records(self) -> Iterator[records.RawRecord]:
        return records.of_cluster(self.cluster.bootstrap, self.topics)

    def tails(self) -> str:
        brokers = "\n".join(f"--- broker {node.number}\n{node.log_tail(600)}" for node in self.cluster.nodes)
        return f"{super().tails()}\n{brokers}"


class DevWorld(World):
    """``penstock dev``: all roles in one process, on the embedded log."""

    def __init__(self, network: Network, folder: Path, **options: Any) -> None:
        super().__init__(network, folder, **options)
        self.topics = Topics("penstock", PARTITIONS, PARTITIONS)
        port = network.port(API_PORT)
        settings = {"PENSTOCK_DATA": str(folder / "dev"), "PENSTOCK_HOST": network.host("dev")}
        settings["FAULTS_RUNS"] = str(self._runs)
        self._add("dev", ("dev", "--port", str(port), "--app", str(TASKS)), settings, port)
        servers = self._servers()
        self.producers = [
            RestProducer("rest-a", servers, 15),
            RestProducer("rest-b", servers, 15),
            RestProducer("bulk", servers, 20, at_once=20),
            RestProducer("once", servers, 5, insistent=False),
        ]

    def _log_environment(self) -> dict[str, str]:
        data = self.roles["dev"].data
        return {"PENSTOCK_DATA": str(data), "PENSTOCK_LOG": f"embedded:{data}"}

    def _stop_roles(self) -> dict[int, tuple[int, str]]:
        live = self._live_digests({})
        code = self.roles["dev"].stop()
        if code:
            self.report.wrong.append(f"dev stopped with {code}:\n{self.roles['dev'].tail()}")
        return live

    def _records(self) -> Iterable[records.RawRecord]:
        return records.of_folder(self.roles["dev"].data, self.topics)


def say(text: str) -> None:
    """Progress, for whoever watches."""
    sys.stderr.write(f"{time.monotonic() - _BEGAN_S:7.1f}  {text}\n")
    sys.stderr.flush()

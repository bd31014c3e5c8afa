"""What the two kinds of Penstock have in common when they are measured: an API that is asked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import uuid
from abc import abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any

from benchmarks.system import PATIENCE_S, System, Wrong
from tests.acceptance.processes import Role, Stack, free_port, http, wait_for

HERE = Path(__file__).resolve().parent
TASKS = HERE / "tasks.py"
CONCURRENCY = 200
"""Handlers at once in a worker; its credits, and what it is sent ahead, grow from that."""
BULK_JOBS = 10_000
"""Items of one bulk call."""
BULK_BYTES = 4 << 20
"""Of one bulk call, about."""
BULK_CALLS = 2
"""Bulk calls on their way at once, so that the server needn't wait for the next one to be written."""
SLOWEST_PER_S = 2_000
"""Jobs that the read model takes in, at the least."""
PAYLOAD = "x" * 10_000
SOON = {"kind": "none"}
"""Backoff of `flaky` jobs: as the peers, as soon as possible."""


def item_of(kind: str, number: int) -> dict[str, Any]:
    """A job as a bulk call has it."""
    if kind == "payload":
        return {"type": kind, "payload": {"text": PAYLOAD}}
    if kind == "flaky":
        return {"type": kind, "payload": {"number": number}, "backoff": SOON}
    if kind in ("searched", "tagged"):
        item: dict[str, Any] = {
            "type": kind,
            "payload": {"number": number, "to": f"user{number}@example.org"},
            "tags": [f"group-{number % 1_000:03d}"],
        }
        if kind == "searched":
            item["priority"] = "high" if number % 2 else "normal"
        return item
    if kind == "named":
        return {"type": "noop", "id": uuid.uuid4().hex}
    if kind == "unique":
        return {"type": "noop", "unique": {"key": uuid.uuid4().hex}}
    return {"type": kind}


def bodies_of(jobs: int, kind: str) -> Iterator[tuple[int, bytes]]:
    """The bulk calls that it takes: how many items each has, and its body."""
    items = max(1, min(BULK_JOBS, BULK_BYTES // len(json.dumps(item_of(kind, jobs)))))
    for first in range(0, jobs, items):
        last = min(jobs, first + items)
        yield last - first, json.dumps([item_of(kind, number) for number in range(first, last)]).encode()


class Served(System):
    """A Penstock with an API at ``server``, on whichever log."""

    runs_once = True

    def __init__(self) -> None:
        super().__init__()
        self._home = tempfile.TemporaryDirectory(prefix="penstock-bench-")
        self.stack = Stack(Path(self._home.name))
        self.port = free_port()
        self.server = f"http://127.0.0.1:{self.port}"
        self._finished_before = 0

    @abstractmethod
    def name_anew(self) -> None:
        """Have the roles begin with nothing when they are started the next time."""

    @abstractmethod
    def wanted(self) -> list[Role]:
        """Roles that should be running while a worker is."""

    def put(self, role: Role, data: Path) -> None:
        """Give a role another data folder, instead of the one that it had."""
        if before := role.environment.get("PENSTOCK_DATA"):
            shutil.rmtree(before, ignore_errors=True)
        role.environment["PENSTOCK_DATA"] = str(data)

    def counts(self) -> dict[tuple[str, str], int]:
        """Jobs by type and state, by the read model."""
        found: dict[tuple[str, str], int] = {}
        for row in http("GET", f"{self.server}/api/v1/counts", timeout_s=60).json["rows"]:
            key = row["type"], row["state"]
            found[key] = found.get(key, 0) + row["jobs"]
        return found

    def known(self) -> int:
        """Jobs that the read model has, in whatever state."""
        return sum(self.counts().values())

    def finished(self) -> int:
        """Jobs that the read model shows as succeeded."""
        return sum(jobs for (_, state), jobs in self.counts().items() if state == "succeeded")

    def clear(self) -> None:
        """What is done is left out of the count. When something is left to do, a new log is begun."""
        if any(state != "succeeded" for _, state in self.counts()):
            self.end_round()
            self.name_anew()
            self.begin_round()
        self._finished_before = self.finished()

    def unfinished(self, jobs: int) -> int:
        return self._finished_before + jobs - self.finished()

    def bulk(self, jobs: int, kind: str) -> float:
        bodies = bodies_of(jobs, kind)
        taking = Lock()
        before = self.known()

        def calls(_: int) -> int:
            accepted = 0
            while True:
                with taking:
                    items, body = next(bodies, (0, b""))
                if not items:
                    return accepted
                answer = http("POST", f"{self.server}/api/v1/jobs/bulk", body, timeout_s=120).json
                accepted += answer.get("accepted", 0)
                if answer.get("accepted") != items:
                    raise Wrong(f"{self.name}: a bulk call was answered with {str(answer)[:500]}")

        began = perf_counter()
        with ThreadPoolExecutor(BULK_CALLS) as pool:
            accepted = sum(pool.map(calls, range(BULK_CALLS)))
        seconds = perf_counter() - began
        if accepted != jobs:
            raise Wrong(f"{self.name}: {accepted} of {jobs} jobs were accepted")
        self._wait_known(before + jobs)
        return seconds

    def _wait_known(self, jobs: int) -> None:
        patience_s = max(PATIENCE_S, jobs / SLOWEST_PER_S)
        wait_for(f"the read model has {jobs} jobs", lambda: self.known() >= jobs, patience_s)
        if (known := self.known()) != jobs:
            raise Wrong(f"{self.name}: the read model has {known} jobs, and {jobs} were enqueued")

    def one(self, seconds: float, in_flight: int) -> dict[str, Any]:
        before = self.known()
        found = self._load("one", seconds, in_flight)
        self._wait_known(before + found["sent"])
        return found

    def pace(self, per_s: float, seconds: float, lanes: int) -> dict[str, Any]:
        return self._load("pace", per_s, seconds, lanes)

    def _load(self, *arguments: object) -> dict[str, Any]:
        command = [sys.executable, str(HERE / "http_load.py"), self.server.removeprefix("http://")]
        command += [str(argument) for argument in arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        if done.returncode:
            raise Wrong(f"{self.name} {arguments}:\n{done.stderr[-2_000:]}")
        return json.loads(done.stdout)

    def ran(self) -> int:
        for role in self.wanted():
            if not role.running:
                raise Wrong(f"{self.name}'s {role.name} ended by itself:\n{role.tail()}")
        return super().ran()

    def close(self) -> None:
        self.stack.__exit__()
        self._home.cleanup()
        super().close()
